"""What every figure and table of `analysis/` hands back: its title, its files, and its part of the report."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from dmlm import files, snr
from dmlm.results.measures import Point

POINT_HEAD = (
    *("model", "template", "variant", "snr_db", "permuted", "measure", "value", "low_95", "high_95", "status"),
    *("runs_done", "runs_asked", "sd_over_seeds", "utterances", "errors", "reference_words", "undefined_resamples"),
)


@dataclass(frozen=True)
class Table:
    """A table as text: the first row is the head, the first column is left-aligned."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1  # leading columns that hold words, not numbers
    folded: bool = False  # the report shows it on a click


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One figure or table. Parts that it does not have stay empty; an exhibit without any says why in `caption`."""

    title: str
    caption: str
    files: tuple[Path, ...] = ()
    svg: str = ""
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    text: str = ""  # shown in a fixed-width font


def number(value: float) -> str:
    """For a CSV file: every digit; empty where there is no number.

    >>> number(0.1), number(math.nan), number(12)
    ('0.1', '', '12')
    """
    return "" if math.isnan(value) else repr(int(value)) if value == int(value) else repr(float(value))


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV file; rates in it are fractions, never per cent."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
    return path


def write_points(path: Path, measure: str, points: Iterable[Point]) -> Path:
    """The numbers behind a figure, one point a line. A missing point has a line too, with its status and no number."""
    rows = []
    for point in points:
        estimate, counts = point.estimate, point.counts
        values = (estimate.value, estimate.low, estimate.high) if estimate else (math.nan,) * 3
        sizes = (len(counts.ids), counts.errors.sum(), counts.words.sum()) if counts else (math.nan,) * 3
        rows.append(
            [
                *(
                    point.system.model,
                    point.system.template,
                    point.system.variant,
                    snr.text(point.snr_db),
                    point.permuted or "",
                ),
                *(measure, *map(number, values), point.status, point.runs, point.asked, number(point.seed_sd)),
                *map(number, map(float, sizes)),
                estimate.undefined if estimate else "",
            ]
        )
    return write_csv(path, POINT_HEAD, rows)
