"""Recognised text by Tesseract: a classical engine to compare with, a program of its own that is called once a page.

It needs `pip install pytesseract` and the program itself (Debian: `apt-get install tesseract-ocr`). Superscripts come
out as plain digits or are lost, fractions as noise.
"""

import os
from functools import cached_property
from importlib.metadata import version
from typing import Literal

import numpy as np
from pydantic import Field

from dmlm.errors import UserError
from dmlm.tokens import reading
from dmlm.tokens.tokenizer import Reader
from dmlm.tokens.tokenizer import Settings as BaseSettings

INSTALL = "install the program (Debian: apt-get install tesseract-ocr)"


class Settings(BaseSettings):
    """How Tesseract looks at a page."""

    language: str = Field("eng", pattern=r"^[A-Za-z_+]+$")
    segmentation: Literal[3, 4, 6, 11] = 11  # --psm: automatic, one column, one block, sparse text
    scale: float = Field(2.0, ge=1, le=4)  # enlarges the page first
    normaliser: reading.Name = "equations/1"


class Tesseract(Reader):
    """One process a page, one thread each."""

    media = "image"
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
        """Versions of the program and of its wrapper, and the digest of the normalisers."""
        self.require()
        return [f"tesseract {self.program}", f"pytesseract {version('pytesseract')}", reading.digest()]

    def read(self, batch: list[np.ndarray]) -> list[str]:
        """Normalised text of each page, uint8 (H, W, 3); "" where there is none."""
        return [self._read(page) for page in batch]

    def _read(self, page: np.ndarray) -> str:
        import cv2
        import pytesseract

        large = cv2.resize(page, None, fx=self.settings.scale, fy=self.settings.scale, interpolation=cv2.INTER_CUBIC)
        options = f"--psm {self.settings.segmentation}"
        text = pytesseract.image_to_string(large, lang=self.settings.language, config=options)
        return reading.NORMALISERS[self.settings.normaliser](text)
