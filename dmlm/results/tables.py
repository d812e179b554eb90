"""The tables that a grid prints when it ends: WER and relative benefit by SNR, with intervals, as plain text.

A cell of such a table is *shown* as two texts: the value, and its interval on the line beneath. The tables of the report
put both on one line, the interval in brackets: the value is *bracketed*.
"""

import math
from collections.abc import Sequence

from dmlm import snr
from dmlm.results.grid import GridResults
from dmlm.results.measures import (
    System,
    baseline_of,
    benefit_point,
    compared_systems,
    paired_counts,
    systems,
    wer_point,
)
from dmlm.score.benefit import benefit_of_pooled, mean_of_benefits
from dmlm.score.intervals import RESAMPLES, Estimate

MISSING = "—"
UNDEFINED = "undef."


def percent(value: float, signed: bool = False) -> str:
    """Write a fraction in per cent with one decimal, without sign for zero.

    >>> percent(0.1234), percent(0.05, signed=True)
    ('12.3', '+5.0')
    """
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if float(text) == 0 else text


def shown(estimate: Estimate | None, signed: bool = False) -> tuple[str, str]:
    """Return value and interval of a table cell; a signed value gets a star if its interval excludes zero.

    >>> shown(Estimate(0.2, 0.1, 0.3), signed=True), shown(None)
    (('+20.0*', '10.0..30.0'), ('—', ''))
    """
    if estimate is None:
        return MISSING, ""
    if math.isnan(estimate.value):
        return UNDEFINED, ""
    star = "*" if signed and estimate.excludes_zero else ""
    interval = "" if math.isnan(estimate.low) else f"{percent(estimate.low)}..{percent(estimate.high)}"
    return percent(estimate.value, signed) + star, interval


def bracketed(estimate: Estimate | None, signed: bool = False, seed_sd: float = math.nan) -> str:
    """Return value, standard deviation over seeds (unless NaN) and interval as one text.

    >>> bracketed(Estimate(0.2, 0.1, 0.3), seed_sd=0.012)
    '20.0 ± 1.2 [10.0, 30.0]'
    """
    value, interval = shown(estimate, signed)
    spread = "" if math.isnan(seed_sd) else f" ± {percent(seed_sd)}"
    return f"{value}{spread} [{interval.replace('..', ', ')}]" if interval else value


def _layout(head: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Lay out a table with two lines per row: values, and intervals beneath. The first column is left-aligned."""
    widths = [
        max(len(title), *(len(text) for row in rows for text in row[column])) for column, title in enumerate(head)
    ]

    def line(texts: Sequence[str]) -> str:
        first, *others = (
            text.ljust(width) if not index else text.rjust(width)
            for index, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    lines = [line(head), "-" * (sum(widths) + 2 * (len(widths) - 1))]
    for row in rows:
        lines += filter(None, (line([cell[part] for cell in row]) for part in (0, 1)))
    return "\n".join(lines)


def mean_benefits(results: GridResults, system: System) -> tuple[Estimate | None, Estimate | None]:
    """Return the mean of the RBs at the noisy SNRs, and the RB of the WER pooled over them; None if an SNR is missing."""
    pairs = [paired_counts(results, system, snr_db) for snr_db in results.snrs_db if snr.noisy(snr_db)]
    measured = [pair for pair in pairs if pair]
    if not measured or len(measured) < len(pairs):
        return None, None
    return mean_of_benefits(measured), benefit_of_pooled(measured)


def _label(system: System, results: GridResults) -> str:
    return f"{system.model}  {system.name}" if len(results.models) > 1 else system.name


def has_learned(results: GridResults, system: System) -> bool:
    """Whether a system has a WER below 100 %, which an empty transcript reaches, at any SNR."""
    points = [wer_point(results, system, snr_db).estimate for snr_db in results.snrs_db]
    return any(point.value < 1 for point in points if point)


def terminal_tables(results: GridResults) -> str:
    """Return the tables of WER and of relative benefit by SNR of a grid, finished or not, as text."""
    snrs_db = results.snrs_db
    head = list(map(snr.with_unit, snrs_db))
    wer_rows = [
        [(_label(system, results), ""), *(shown(wer_point(results, system, snr_db).estimate) for snr_db in snrs_db)]
        for system in systems(results)
    ]
    points = [wer_point(results, system, snr_db) for system in systems(results) for snr_db in snrs_db]
    utterance_counts = {len(point.counts.ids) for point in points if point.counts}
    utterances = " or ".join(map(str, sorted(utterance_counts))) or "no"
    parts = [
        *([results.about] if results.about else []),
        f"{results.name}: WER in %, 95 % interval beneath"
        f" (bootstrap over {utterances} test utterances, {RESAMPLES} resamples)",
        _layout(["WER %", *head], wer_rows) if wer_rows else "The grid has no cell.",
    ]
    if compared := compared_systems(results):

        def both_learned(system: System) -> bool:
            baseline = baseline_of(results, system)
            return has_learned(results, system) and baseline is not None and has_learned(results, baseline)

        rows = [
            [
                (_label(system, results) + ("" if both_learned(system) else " †"), ""),
                *(shown(benefit_point(results, system, snr_db).estimate, signed=True) for snr_db in snrs_db),
                *(shown(estimate, signed=True) for estimate in mean_benefits(results, system)),
            ]
            for system in compared
        ]
        parts += [
            "",
            f"Relative benefit over {results.baseline} in %, 95 % interval beneath (* it excludes zero)",
            "mean: of the RBs of the noisy levels; pooled: RB of their pooled WER",
            _layout(["RB %", *head, "mean", "pooled"], rows),
        ]
        if not all(map(both_learned, compared)):
            parts += ["† it or the baseline never beats writing nothing: not trained enough to read an effect into it"]
    if missing := len(results.missing):
        parts += ["", f"{MISSING} missing: {missing} of {results.evaluation_count} evaluations are not finished."]
    return "\n".join(parts)
