"""Recognised text by Tesseract, a classical engine for comparison. Its program is called once per page.

It needs `pip install pytesseract` and the program itself (Debian: `apt-get install tesseract-ocr`). Superscripts are
read as plain digits or lost; fractions are read as noise.
"""

import os
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dmlm.errors import UserError
from dmlm.ocr import lines

LINE_COLUMNS = ("block_num", "par_num", "line_num")  # of Tesseract's table: together they identify a line
BOX_COLUMNS = ("left", "top", "width", "height")
INSTALL = "install the program (Debian: apt-get install tesseract-ocr)"


class Settings(lines.Settings):
    """How Tesseract segments a page, and how its lines become text."""

    language: str = Field("eng", pattern=r"^[A-Za-z_+]+$")
    segmentation: Literal[3, 4, 6, 11] = 11  # --psm: automatic, one column, one block, sparse text
    scale: float = Field(2.0, ge=1, le=4)  # enlargement of the page before recognition


class Tesseract(lines.PageReader):
    """One process per page, with one thread."""

    Settings = Settings

    packages = {"pytesseract": 'pip install -e ".[tesseract]"'}

    @cached_property
    def program(self) -> str:
        """Version of the program.

        Raises:
            UserError: the program or the data of a language is not installed.
        """
        os.environ["OMP_THREAD_LIMIT"] = "1"  # there is already one worker per core
        import pytesseract

        try:
            version_text, languages = str(pytesseract.get_tesseract_version()), pytesseract.get_languages()
        except OSError as error:
            raise UserError(f"ocr_tesseract: {str(error).splitlines()[0]}; {INSTALL}.") from None
        if missing := set(self.settings.language.split("+")) - set(languages):
            raise UserError(f"ocr_tesseract: no data for {sorted(missing)}; installed languages: {sorted(languages)}.")
        return version_text

    def require(self) -> None:
        """Check that the Python package and the program are installed."""
        super().require()
        assert self.program

    def facts(self) -> list[str]:
        """Versions of the program and of pytesseract, and how lines become text."""
        self.require()
        return [f"tesseract {self.program}", f"pytesseract {version('pytesseract')}", *lines.facts(self.settings)]

    def lines_of(self, page: np.ndarray) -> list[lines.Line]:
        """The lines of a page, in Tesseract's order. The confidence of a line is the mean over its words."""
        import cv2
        import pytesseract

        scale, options = self.settings.scale, f"--psm {self.settings.segmentation}"
        large = cv2.resize(page, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        table = pytesseract.image_to_data(
            large, lang=self.settings.language, config=options, output_type=pytesseract.Output.DICT
        )
        rows_of_lines: dict[tuple[int, ...], list[int]] = {}  # (block, paragraph, line) -> table rows, one per word
        for row, (text, *line) in enumerate(zip(*(table[name] for name in ("text", *LINE_COLUMNS)), strict=True)):
            if text.strip():
                rows_of_lines.setdefault(tuple(line), []).append(row)
        return [_line(table, rows, scale) for rows in rows_of_lines.values()]


def _line(table: dict[str, list[Any]], rows: list[int], scale: float) -> lines.Line:
    """Join the words of one line; its box is in pixels of the page before enlargement."""
    left, top, width, height = (np.array([table[name][row] for row in rows]) / scale for name in BOX_COLUMNS)
    corners = np.concatenate([np.stack([left, top], axis=1), np.stack([left + width, top + height], axis=1)])
    confidence = float(np.mean([float(table["conf"][row]) for row in rows])) / 100
    return lines.Line(" ".join(table["text"][row] for row in rows), lines.hull(corners), confidence)
