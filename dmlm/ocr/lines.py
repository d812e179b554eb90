"""From the lines that an OCR engine found on a page to text: which lines are selected, their positions, their spelling.

The functions here see only the lines of one page and its first-pass transcript, so no rule can use the reference
transcript or the manifest.
"""

import functools
import hashlib
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from rapidfuzz.distance import LCSseq

from dmlm import known_files
from dmlm.errors import UserError
from dmlm.ocr import spelling
from dmlm.tokens import first_pass
from dmlm.tokens.encoder import Reader
from dmlm.tokens.encoder import Settings as BaseSettings

Box = tuple[int, int, int, int]  # top, bottom, left, right in pixels of the page; bottom and right are exclusive
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class Line:
    """The text of one box."""

    text: str
    box: Box
    confidence: float  # 0 to 1, the engine's own score


class Settings(BaseSettings):
    """How the lines of a page become text; the same for all engines."""

    normaliser: spelling.Name = "equations/1"
    positions: Literal["none", "grid"] = Field(
        "none", description="grid: two words before each line, see `grid_position`"
    )
    keep: int | None = Field(None, ge=1, description="number of lines of a page, see `select_lines`; None: all")
    frequencies: Path | None = Field(
        None, description="lines `word count`: keep the rarest words, not the largest boxes"
    )

    first_pass: Path | None = Field(
        None, description="folder of `dmlm grid transcribe`: keep the lines that were heard, not the largest boxes"
    )

    @model_validator(mode="after")
    def _has_at_most_one_ranking(self) -> "Settings":
        rankings = [name for name in ("frequencies", "first_pass") if getattr(self, name) is not None]
        if rankings and self.keep is None:
            raise ValueError(f"{rankings[0]} ranks the lines to keep, but keep is None; set keep, or drop it")
        if len(rankings) > 1:
            raise ValueError("frequencies and first_pass both rank the lines to keep; drop one")
        return self


class PageReader(Reader):
    """A reader whose engine finds lines on a page; how the lines become text is the same for all engines."""

    media = "image"
    Settings: ClassVar[type[BaseSettings]] = Settings

    def require(self) -> None:
        super().require()
        facts(self.settings)  # raises if a file that the settings name is missing or unreadable

    @abstractmethod
    def lines_of(self, page: np.ndarray) -> list[Line]:
        """The lines of a page, uint8 (H, W, 3), in the engine's order."""

    def read(self, batch: list[np.ndarray], heard: list[str] | None = None) -> list[str]:
        """Text of each page, uint8 (H, W, 3); "" for a page without text. `heard`: see `Reader.read`."""
        return [
            page_text(self.lines_of(page), page.shape, self.settings, transcript)
            for page, transcript in zip(batch, heard or [""] * len(batch), strict=True)
        ]


def facts(settings: Settings) -> list[str]:
    """Digests of everything that determines how lines become text, for the fingerprint of a reader."""
    digests = []
    if settings.frequencies:
        _counts(settings.frequencies)
        digests.append(known_files.digest(settings.frequencies))
    if settings.first_pass:
        digests.append(first_pass.digest(settings.first_pass))
    return [hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), spelling.digest(), *digests]


def hull(corners: np.ndarray) -> Box:
    """Smallest box around corners (N, 2), each (x, y).

    >>> hull(np.array([[3.5, 1], [9, 2], [8, 4.2], [3, 4]]))
    (1, 5, 3, 9)
    """
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    return int(top), int(bottom), int(left), int(right)


def page_text(lines: Sequence[Line], size: tuple[int, ...], settings: Settings, heard: str = "") -> str:
    """Text of a page of `size` (height, width, ...): its selected lines in the engine's order, joined by spaces."""
    parts = []
    for line in select_lines(lines, settings, heard):
        if text := spelling.NORMALISERS[settings.normaliser](line.text):
            parts += [grid_position(line.box, size), text] if settings.positions == "grid" else [text]
    return " ".join(parts)


def grid_position(box: Box, size: tuple[int, ...]) -> str:
    """Name the cell, in a grid of three by three on the page, that contains the centre of a box: two words.

    >>> grid_position((10, 30, 400, 440), (200, 450)), grid_position((90, 110, 0, 450), (200, 450))
    ('top right', 'middle centre')
    """
    top, bottom, left, right = box
    row, column = 3 * (top + bottom) // (2 * size[0]), 3 * (left + right) // (2 * size[1])
    return f"{ROWS[max(0, min(row, 2))]} {COLUMNS[max(0, min(column, 2))]}"


def select_lines(lines: Sequence[Line], settings: Settings, heard: str = "") -> list[Line]:
    """Select the `keep` lines of the best rank, in the engine's order. Of equal lines the earlier one wins.

    The rank depends on the settings:

    - `first_pass`: the number of words of a line that are in the first-pass transcript `heard` less the number that are
      not (see `count_heard`), highest first. Lines without any heard word come last, the most prominent first. arXiv
      2409.09221 keeps what is spoken; this rule takes that from the audio instead of the reference.
    - `frequencies`: the mean log count of the words of a line, lowest first. An unlisted word counts as 1; a line without
      words comes last. This is the FQ Ranker of SlideAVSR (arXiv 2401.09759; experiment/training/utils.py, commit
      4478857), which ranks words by their count in Wikipedia, applied to lines.
    - neither: prominence, which is confidence times the area of the box, highest first.
    """
    if settings.keep is None:
        return list(lines)
    if settings.first_pass:
        word_counts = [count_heard(line.text, heard, settings.normaliser) for line in lines]
        ranks: list[Any] = [
            (1, -_prominence(line)) if not common else (0, others - common)
            for line, (common, others) in zip(lines, word_counts, strict=True)
        ]
    elif settings.frequencies:
        counts = _counts(settings.frequencies)
        ranks = [_mean_log_count(line, counts) for line in lines]
    else:
        ranks = [-_prominence(line) for line in lines]
    best = sorted(range(len(lines)), key=ranks.__getitem__)[: settings.keep]
    return [lines[number] for number in sorted(best)]


def count_heard(line: str, transcript: str, normaliser: spelling.Name) -> tuple[int, int]:
    """Count the words and numbers of a line that are in a transcript in the same order, and those that are not.

    >>> transcript = "3 minus 7 x equals 5 r"
    >>> count_heard("3-7x=5r", transcript, "equations/1"), count_heard("x+1/3x=w²", transcript, "equations/1")
    ((5, 0), (2, 4))
    """
    words = re.findall("[a-z]+|[0-9]+", spelling.NORMALISERS[normaliser](line).lower())
    common = LCSseq.similarity(words, re.findall("[a-z]+|[0-9]+", spelling.words(transcript)))
    return common, len(words) - common


def _prominence(line: Line) -> float:
    top, bottom, left, right = line.box
    return line.confidence * (bottom - top) * (right - left)


def _mean_log_count(line: Line, counts: dict[str, int]) -> float:
    words = re.findall("[a-z]+", spelling.words(line.text))
    return sum(math.log(max(1, counts.get(word, 1))) for word in words) / len(words) if words else math.inf


def _counts(path: Path) -> dict[str, int]:
    try:
        return _read_counts(path, known_files.digest(path))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"frequencies: {path} cannot be read ({error}); give a file of lines `word count`.") from None


@functools.lru_cache(maxsize=1)
def _read_counts(path: Path, digest: str) -> dict[str, int]:
    return {word: int(count) for word, count in map(str.split, path.read_text("utf-8").splitlines())}
