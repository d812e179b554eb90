"""Steps of `on_a_gpu.py`, and the rows that they yield.

A row is plain data. A check has `check`, `value`, `at_most` and `ok`; a fact has `fact` and `value`; a speed is a row of
`harness.row`, with `name`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]


class LeftOut(Exception):
    """Raised by a step that cannot run on this machine; says what is missing."""


@dataclass(frozen=True)
class Step:
    """A part of the work that is measured, timed and recorded by itself, in a process of its own."""

    name: str
    part: str  # right, fast or useful: the file of its results
    limit_s: float  # it is stopped after this time, and keeps the rows that it has yielded
    run: Callable[[bool], Iterator[Row]]  # its argument says whether to do it at toy size
    inputs: str = ""  # digest of what it reads besides the code


def check(what: str, value: float, at_most: float) -> Row:
    """Return the row of a value that must not be larger than a limit; NaN never passes."""
    value = float(value)
    shown = float(f"{value:.4g}") if math.isfinite(value) else None
    return {"check": what, "value": shown, "at_most": at_most, "ok": bool(value <= at_most)}


def fact(what: str, value: Any) -> Row:
    """Return the row of something found out that cannot be wrong."""
    return {"fact": what, "value": value}


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest absolute difference, relative to the largest expected value; NaN if one is NaN."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
