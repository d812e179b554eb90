"""Lines that an engine recognised on a page, and the text that is made of them: which ones, where they stood, how spelt.

Nothing here is given more than the lines of one page, so no rule can see the transcript or the manifest.
"""

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from dmlm.errors import UserError
from dmlm.tokens import reading, weights
from dmlm.tokens.tokenizer import Settings as BaseSettings

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

    normaliser: reading.Name = "equations/1"
    positions: Literal["none", "grid"] = Field("none", description="grid: two words before each line, see `place`")
    keep: int | None = Field(None, ge=1, description="so many lines of a page, see `kept`; None: all")
    frequencies: Path | None = Field(
        None, description="lines `word count`: keep the rarest words, not the largest boxes"
    )

    @field_validator("frequencies")
    @classmethod
    def _ranks_what_is_kept(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("keep") is None:
            raise ValueError(f"it ranks the lines to keep, but keep is {info.data.get('keep')}; set keep, or drop it")
        return value


def facts(settings: Settings) -> list[str]:
    """Digests of whatever decides how lines become text."""
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if settings.frequencies is None:
        return [own, reading.digest()]
    _counts(settings.frequencies)
    return [own, reading.digest(), weights.file_digest(settings.frequencies)]


def hull(corners: np.ndarray) -> Box:
    """Least box round corners (N, 2), each x and y.

    >>> hull(np.array([[3.5, 1], [9, 2], [8, 4.2], [3, 4]]))
    (1, 5, 3, 9)
    """
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    return int(top), int(bottom), int(left), int(right)


def written(lines: Sequence[Line], size: tuple[int, ...], settings: Settings) -> str:
    """Text of a page of `size` (height, width, ...): its kept lines in the engine's order, one space between them."""
    parts = []
    for line in kept(lines, settings):
        if text := reading.NORMALISERS[settings.normaliser](line.text):
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


def kept(lines: Sequence[Line], settings: Settings) -> list[Line]:
    """The `keep` lines likeliest to matter, as far as a page alone can tell, in the engine's order.

    Without `frequencies` the most prominent: confidence times the area of the box. With them the ones of the rarest
    words: least mean log count, a word that is not listed counting once, a line without words coming last. That is the
    ranking of SlideAVSR (arXiv 2401.09759: FQ Ranker; experiment/training/utils.py, commit 4478857), which ranks words
    by their count in Wikipedia, taken to lines. Of equals the earlier line is kept.

    What is relevant to the *audio* cannot be known here: arXiv 2409.09221 keeps what is spoken, which takes either the
    reference, an oracle, or a first pass over the audio.
    """
    if settings.keep is None:
        return list(lines)
    counts = _counts(settings.frequencies) if settings.frequencies else None
    ranks = [-_prominence(line) if counts is None else _mean_log_count(line, counts) for line in lines]
    chosen = sorted(range(len(lines)), key=ranks.__getitem__)[: settings.keep]
    return [lines[number] for number in sorted(chosen)]


def _prominence(line: Line) -> float:
    top, bottom, left, right = line.box
    return line.confidence * (bottom - top) * (right - left)


def _mean_log_count(line: Line, counts: dict[str, int]) -> float:
    found = re.findall("[a-z]+", reading.words(line.text))
    return sum(math.log(max(1, counts.get(word, 1))) for word in found) / len(found) if found else math.inf


@functools.cache
def _counts(path: Path) -> dict[str, int]:
    try:
        pairs = map(str.split, path.read_text("utf-8").splitlines())
        return {word: int(count) for word, count in pairs}
    except (OSError, ValueError) as error:
        raise UserError(f"frequencies: {path} cannot be read ({error}); give a file of lines `word count`.") from None
