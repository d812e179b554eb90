"""Exhibits: what every figure or table of `analysis/` returns, with its files and its part of the report."""

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
    *("runs_done", "runs_asked", "sd_over_seeds", "utterances", "errors"),
)


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1  # number of leading columns with words, which are left-aligned
    folded: bool = False  # collapsed in the report until it is clicked
    notes: tuple[str, ...] = ()  # sentences beneath it


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One figure or table. Unused parts stay empty; an exhibit with none of them says why in `caption`."""

    title: str
    caption: str
    files: tuple[Path, ...] = ()
    svg: str = ""
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    text: str = ""  # preformatted, in a fixed-width font


def csv_number(value: float) -> str:
    """Write a number for a CSV file with all its digits; empty for NaN.

    >>> csv_number(0.1), csv_number(math.nan), csv_number(12)
    ('0.1', '', '12')
    """
    return "" if math.isnan(value) else repr(int(value)) if value == int(value) else repr(float(value))


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV file and return its path; rates in it are fractions, not per cent."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
    return path


def write_points(path: Path, measure: str, points: Iterable[Point], unit: str = "words") -> Path:
    """Write the numbers of a figure, one point per line. A missing point has a line with its status and no number.

    Errors and references are counted in `unit`.
    """
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
                *(measure, *map(csv_number, values), point.status),
                *(point.runs_done, point.runs_asked, csv_number(point.seed_sd)),
                *map(csv_number, map(float, sizes)),
                estimate.undefined if estimate else "",
            ]
        )
    return write_csv(path, (*POINT_HEAD, f"reference_{unit}", "undefined_resamples"), rows)
