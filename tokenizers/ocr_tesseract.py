"""Recognised text by Tesseract: a classical engine to compare with, a program of its own that is called once a page.

It needs `pip install pytesseract` and the program itself (Debian: `apt-get install tesseract-ocr`). Superscripts come
out as plain digits or are lost, fractions as noise.
"""

import os
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dmlm.errors import UserError
from dmlm.ocr import lines

LEVELS, SIDES = ("block_num", "par_num", "line_num"), ("left", "top", "width", "height")  # columns of its table
INSTALL = "install the program (Debian: apt-get install tesseract-ocr)"


class Settings(lines.Settings):
    """How Tesseract looks at a page, and what is made of its lines."""

    language: str = Field("eng", pattern=r"^[A-Za-z_+]+$")
    segmentation: Literal[3, 4, 6, 11] = 11  # --psm: automatic, one column, one block, sparse text
    scale: float = Field(2.0, ge=1, le=4)  # enlarges the page first


class Tesseract(lines.PageReader):
    """One process a page, one thread each."""

    Settings = Settings

    packages = {"pytesseract": 'pip install -e ".[tesseract]"'}

    @cached_property
    def program(self) -> str:
        """Version of the program, which has the data of the languages."""
        os.environ["OMP_THREAD_LIMIT"] = "1"  # every core has a worker already
        import pytesseract

        try:
            found, languages = str(pytesseract.get_tesseract_version()), pytesseract.get_languages()
        except OSError as error:
            raise UserError(f"ocr_tesseract: {str(error).splitlines()[0]}; {INSTALL}.") from None
        if missing := set(self.settings.language.split("+")) - set(languages):
            raise UserError(f"ocr_tesseract: no data for {sorted(missing)}; installed languages: {sorted(languages)}.")
        return found

    def require(self) -> None:
        """The wrapper and the program."""
        super().require()
        assert self.program

    def facts(self) -> list[str]:
        """Versions of the program and of its wrapper, and what turns lines into text."""
        self.require()
        return [f"tesseract {self.program}", f"pytesseract {version('pytesseract')}", *lines.facts(self.settings)]

    def lines_of(self, page: np.ndarray) -> list[lines.Line]:
        """The lines of a page, in Tesseract's order; the confidence of one is the mean of its words'."""
        import cv2
        import pytesseract

        scale, options = self.settings.scale, f"--psm {self.settings.segmentation}"
        large = cv2.resize(page, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        table = pytesseract.image_to_data(
            large, lang=self.settings.language, config=options, output_type=pytesseract.Output.DICT
        )
        found: dict[tuple[int, ...], list[int]] = {}  # block, paragraph and line: rows of the table, a word each
        for row, (text, *line) in enumerate(zip(*(table[name] for name in ("text", *LEVELS)), strict=True)):
            if text.strip():
                found.setdefault(tuple(line), []).append(row)
        return [_line(table, rows, scale) for rows in found.values()]


def _line(table: dict[str, list[Any]], rows: list[int], scale: float) -> lines.Line:
    """Words of one line, in a box of the size that the page has."""
    left, top, width, height = (np.array([table[name][row] for row in rows]) / scale for name in SIDES)
    corners = np.concatenate([np.stack([left, top], axis=1), np.stack([left + width, top + height], axis=1)])
    confidence = float(np.mean([float(table["conf"][row]) for row in rows])) / 100
    return lines.Line(" ".join(table["text"][row] for row in rows), lines.hull(corners), confidence)
