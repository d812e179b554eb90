"""The tables that a grid prints when it ends: WER and relative benefit by SNR, with intervals, as plain text."""

import math
from collections.abc import Sequence

from dmlm import snr
from dmlm.results.grid import GridResults
from dmlm.results.measures import System, baseline_of, benefit_point, compared, pair, systems, wer_point
from dmlm.score.benefit import benefit_of_pooled, mean_of_benefits
from dmlm.score.intervals import RESAMPLES, Estimate

MISSING = "—"
UNDEFINED = "undef."


def percent(value: float, signed: bool = False) -> str:
    """A fraction as it is printed, in per cent with one decimal.

    >>> percent(0.1234), percent(0.05, signed=True)
    ('12.3', '+5.0')
    """
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if float(text) == 0 else text


def shown(estimate: Estimate | None, signed: bool = False) -> tuple[str, str]:
    """Value and interval of a table cell; a signed value whose interval excludes zero carries a star.

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
    """Value, spread over seeds where there are several, and interval, in one cell.

    >>> bracketed(Estimate(0.2, 0.1, 0.3), seed_sd=0.012)
    '20.0 ± 1.2 [10.0, 30.0]'
    """
    value, interval = shown(estimate, signed)
    spread = "" if math.isnan(seed_sd) else f" ± {percent(seed_sd)}"
    return f"{value}{spread} [{interval.replace('..', ', ')}]" if interval else value


def _grid(head: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Two lines a row: values, and intervals beneath; the first column is left-aligned."""
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
    """Over the noisy levels: the mean of the RBs, and the RB of the pooled WER; None where a level is missing."""
    pairs = [pair(results, system, snr_db) for snr_db in results.snrs_db if snr.noisy(snr_db)]
    whole = [found for found in pairs if found]
    if not whole or len(whole) < len(pairs):
        return None, None
    return mean_of_benefits(whole), benefit_of_pooled(whole)


def _label(system: System, results: GridResults) -> str:
    return f"{system.model}  {system.name}" if len(results.models) > 1 else system.name


def learned(results: GridResults, system: System) -> bool:
    """Whether a system does better anywhere than writing nothing, which is a WER of 100 %."""
    points = [wer_point(results, system, snr_db).estimate for snr_db in results.snrs_db]
    return any(point.value < 1 for point in points if point)


def terminal_tables(results: GridResults) -> str:
    """WER by SNR and relative benefit by SNR of a grid, finished or not."""
    levels = results.snrs_db
    head = list(map(snr.with_unit, levels))
    wer = [
        [(_label(system, results), ""), *(shown(wer_point(results, system, snr_db).estimate) for snr_db in levels)]
        for system in systems(results)
    ]
    utterances = {
        len(p.counts.ids) for system in systems(results) for s in levels if (p := wer_point(results, system, s)).counts
    }
    size = " or ".join(map(str, sorted(utterances))) or "no"
    parts = [
        *([results.about] if results.about else []),
        f"{results.name}: WER in %, 95 % interval beneath"
        f" (bootstrap over {size} test utterances, {RESAMPLES} resamples)",
        _grid(["WER %", *head], wer) if wer else "The grid has no cell.",
    ]
    if benefiting := compared(results):

        def able(system: System) -> bool:
            baseline = baseline_of(results, system)
            return learned(results, system) and baseline is not None and learned(results, baseline)

        rows = [
            [
                (_label(system, results) + ("" if able(system) else " †"), ""),
                *(shown(benefit_point(results, system, snr_db).estimate, signed=True) for snr_db in levels),
                *(shown(estimate, signed=True) for estimate in mean_benefits(results, system)),
            ]
            for system in benefiting
        ]
        parts += [
            "",
            f"Relative benefit over {results.baseline} in %, 95 % interval beneath (* it excludes zero)",
            "mean: of the RBs of the noisy levels; pooled: RB of their pooled WER",
            _grid(["RB %", *head, "mean", "pooled"], rows),
        ]
        if not all(map(able, benefiting)):
            parts += ["† it or the baseline never beats writing nothing: not trained enough to read an effect into it"]
    if missing := len(results.missing):
        parts += ["", f"{MISSING} missing: {missing} of {results.asked} evaluations are not finished."]
    return "\n".join(parts)
