"""Lines that an engine recognised on a page, and the text that is made of them: which ones, where they stood, how spelt.

Nothing here is given more than the lines of one page and what a first pass over the audio understood, so no rule can
see the transcript or the manifest.
"""

import functools
import hashlib
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from rapidfuzz.distance import LCSseq

from dmlm.errors import UserError
from dmlm.ocr import spelling
from dmlm.tokens import first_pass
from dmlm.tokens.encoder import Reader
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.weights import published

Box = tuple[int, int, int, int]  # top, bottom, left, right in pixels of the page; bottom and right lie just outside
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class Line:
    """Text that an engine found in one box."""

    text: str
    box: Box
    confidence: float  # 0 to 1, as the engine means it


class Settings(BaseSettings):
    """What is made of the lines of a page, whichever engine found them."""

    normaliser: spelling.Name = "equations/1"
    positions: Literal["none", "grid"] = Field("none", description="grid: two words before each line, see `place`")
    keep: int | None = Field(None, ge=1, description="so many lines of a page, see `kept`; None: all")
    frequencies: Path | None = Field(
        None, description="lines `word count`: keep the rarest words, not the largest boxes"
    )

    first_pass: Path | None = Field(
        None, description="folder of `dmlm grid transcribe`: keep the lines that were heard, not the largest boxes"
    )

    @model_validator(mode="after")
    def _one_ranking_of_what_is_kept(self) -> "Settings":
        given = [name for name in ("frequencies", "first_pass") if getattr(self, name) is not None]
        if given and self.keep is None:
            raise ValueError(f"{given[0]} ranks the lines to keep, but keep is None; set keep, or drop it")
        if len(given) > 1:
            raise ValueError("frequencies and first_pass both rank the lines to keep; drop one")
        return self


class PageReader(Reader):
    """An engine that finds lines on a page; which of them become the text, and how, is the same for all engines."""

    media = "image"
    Settings = Settings

    def require(self) -> None:
        super().require()
        facts(self.settings)  # the files that settings name are there and can be read

    @abstractmethod
    def lines_of(self, page: np.ndarray) -> list[Line]:
        """The lines of a page, uint8 (H, W, 3), in the engine's order."""

    def read(self, batch: list[np.ndarray], said: list[str] | None = None) -> list[str]:
        """Text of each page, uint8 (H, W, 3); "" where there is none."""
        return [
            written(self.lines_of(page), page.shape, self.settings, understood)
            for page, understood in zip(batch, said or [""] * len(batch), strict=True)
        ]


def facts(settings: Settings) -> list[str]:
    """Digests of whatever decides how lines become text."""
    given = []
    if settings.frequencies:
        _counts(settings.frequencies)
        given.append(published.file_digest(settings.frequencies))
    if settings.first_pass:
        given.append(first_pass.digest(settings.first_pass))
    return [hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), spelling.digest(), *given]


def hull(corners: np.ndarray) -> Box:
    """Least box round corners (N, 2), each x and y.

    >>> hull(np.array([[3.5, 1], [9, 2], [8, 4.2], [3, 4]]))
    (1, 5, 3, 9)
    """
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    return int(top), int(bottom), int(left), int(right)


def written(lines: Sequence[Line], size: tuple[int, ...], settings: Settings, said: str = "") -> str:
    """Text of a page of `size` (height, width, ...): its kept lines in the engine's order, one space between them."""
    parts = []
    for line in kept(lines, settings, said):
        if text := spelling.NORMALISERS[settings.normaliser](line.text):
            parts += [place(line.box, size), text] if settings.positions == "grid" else [text]
    return " ".join(parts)


def place(box: Box, size: tuple[int, ...]) -> str:
    """Which ninth of the page holds the middle of a box, of three rows by three columns of equal size: two words.

    >>> place((10, 30, 400, 440), (200, 450)), place((90, 110, 0, 450), (200, 450))
    ('top right', 'middle centre')
    """
    top, bottom, left, right = box
    row, column = 3 * (top + bottom) // (2 * size[0]), 3 * (left + right) // (2 * size[1])
    return f"{ROWS[max(0, min(row, 2))]} {COLUMNS[max(0, min(column, 2))]}"


def kept(lines: Sequence[Line], settings: Settings, said: str = "") -> list[Line]:
    """The `keep` lines likeliest to matter, in the engine's order. Of equals the earlier line is kept.

    With `first_pass` those that were heard in what it understood (`said`): the words of a line that were heard (see
    `heard`) less the others; lines of which nothing was heard come last, the most prominent of them first. arXiv
    2409.09221 keeps what is spoken; this rule asks the audio for it instead of the reference. With `frequencies` the ones of the rarest words:
    least mean log count, a word that is not listed counting once, a line without words coming last. That is the ranking
    of SlideAVSR (arXiv 2401.09759: FQ Ranker; experiment/training/utils.py, commit 4478857), which ranks words by their
    count in Wikipedia, taken to lines. With neither the most prominent: confidence times the area of the box.
    """
    if settings.keep is None:
        return list(lines)
    if settings.first_pass:
        counts_heard = [heard(line.text, said, settings.normaliser) for line in lines]
        ranks: list[Any] = [
            (1, -_prominence(line)) if not common else (0, others - common)
            for line, (common, others) in zip(lines, counts_heard, strict=True)
        ]
    elif settings.frequencies:
        counts = _counts(settings.frequencies)
        ranks = [_mean_log_count(line, counts) for line in lines]
    else:
        ranks = [-_prominence(line) for line in lines]
    chosen = sorted(range(len(lines)), key=ranks.__getitem__)[: settings.keep]
    return [lines[number] for number in sorted(chosen)]


def heard(line: str, said: str, normaliser: spelling.Name) -> tuple[int, int]:
    """How many words and numbers of a line occur in what was understood, in the same order, and how many do not.

    >>> said = "3 minus 7 x equals 5 r"
    >>> heard("3-7x=5r", said, "equations/1"), heard("x+1/3x=w²", said, "equations/1")
    ((5, 0), (2, 4))
    """
    words = re.findall("[a-z]+|[0-9]+", spelling.NORMALISERS[normaliser](line).lower())
    common = LCSseq.similarity(words, re.findall("[a-z]+|[0-9]+", spelling.words(said)))
    return common, len(words) - common


def _prominence(line: Line) -> float:
    top, bottom, left, right = line.box
    return line.confidence * (bottom - top) * (right - left)


def _mean_log_count(line: Line, counts: dict[str, int]) -> float:
    found = re.findall("[a-z]+", spelling.words(line.text))
    return sum(math.log(max(1, counts.get(word, 1))) for word in found) / len(found) if found else math.inf


def _counts(path: Path) -> dict[str, int]:
    try:
        return _read_counts(path, published.file_digest(path))
    except (OSError, ValueError) as error:
        raise UserError(f"frequencies: {path} cannot be read ({error}); give a file of lines `word count`.") from None


@functools.lru_cache(maxsize=1)
def _read_counts(path: Path, digest: str) -> dict[str, int]:
    return {word: int(count) for word, count in map(str.split, path.read_text("utf-8").splitlines())}
