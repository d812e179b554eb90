"""The tables that a grid prints when it ends: WER and relative benefit by SNR, with intervals, as plain text.

A cell of such a table is *shown* as two texts: the value, and its interval on the line beneath. The tables of the report
put both on one line, the interval in brackets: the value is *bracketed*.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from dmlm import snr
from dmlm.corpus.faults import describe_left_out
from dmlm.results.grid import GridCell, GridResults
from dmlm.results.measures import (
    System,
    baseline_of,
    benefit_point,
    compared_systems,
    paired_counts,
    seeds_of,
    systems,
    wer_point,
)
from dmlm.score.benefit import benefit_of_pooled, mean_of_benefits
from dmlm.score.intervals import RESAMPLES, Estimate

MISSING = "—"
UNDEFINED = "undef."
UNTRAINED = "†"
UNTRAINED_PAIR = "it or the baseline never beats writing nothing: not trained enough to read an effect into it"


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


def marked(text: str, results: GridResults, system: System) -> str:
    """Return the name of a compared system, with a dagger if it or its baseline has not learned."""
    baseline = baseline_of(results, system)
    learned = has_learned(results, system) and baseline is not None and has_learned(results, baseline)
    return text if learned else f"{text} {UNTRAINED}"


def benefit_notes(results: GridResults) -> list[str]:
    """Return the sentences beneath a table of relative benefits: of fewer seeds than the table of WER, and the dagger."""
    notes = []
    for system in compared_systems(results):
        baseline = baseline_of(results, system)
        for snr_db in results.snrs_db if baseline else ():
            seeds, others = (seeds_of(results, each, snr_db) for each in (system, baseline) if each)
            if (shared := seeds & others) and seeds != others:
                numbers = [", ".join(map(str, sorted(each))) for each in (shared, seeds, others)]
                notes.append(
                    f"{_label(system, results)}: the benefit is over seed {numbers[0]}, which it shares with the baseline;"
                    f" WER is over seed {numbers[1]}, that of the baseline over seed {numbers[2]}."
                )
    if any(UNTRAINED in marked("", results, system) for system in compared_systems(results)):
        notes.append(f"{UNTRAINED} {UNTRAINED_PAIR}")
    return list(dict.fromkeys(notes))


def _decode_setting(key: str, cell: GridCell) -> Any:
    return cell.settings.get("decode", {}).get(key)


def left_out(results: GridResults) -> list[str]:
    """Return a sentence for each corpus of which utterances were left out, such as `left out of mine: test 3 (silent 3)`.

    And one for each of which utterances were read without a modality, such as `read with an empty segment, of mine: ...`.
    Each fold has its own.
    """
    parts = results.distinct(lambda cell: (cell.corpus, cell.fold))
    named = [(card, card.name if fold is None else f"{card.name}, fold {fold}") for card, fold in parts]
    sentences = [f"left out of {name}: {describe_left_out(card.left_out)}" for card, name in named if card.left_out]
    sentences += [
        f"read with an empty segment, of {name}: {describe_left_out(card.lacking)}"
        for card, name in named
        if card.lacking
    ]
    sentences += [
        f"not imported into {card.name}: " + ", ".join(f"{rule} {count:,}" for rule, count in card.not_imported.items())
        for card, _ in parts
        if card.not_imported
    ]
    return list(dict.fromkeys(sentences))


def folds_tested(results: GridResults) -> list[str]:
    """Return a sentence for each corpus that the grid tests on some of its folds alone."""
    folds: dict[str, dict[int, int]] = {}  # number of folds, by corpus and fold
    for cell in results.cells:
        if cell.fold is not None and cell.corpus.folds:
            folds.setdefault(cell.corpus.label, {})[cell.fold] = cell.corpus.folds
    return [
        f"of the {count} folds of {label}, only {', '.join(map(str, sorted(tested)))} are tested"
        for label, tested in folds.items()
        if len(tested) < (count := max(tested.values()))
    ]


def unended(results: GridResults) -> list[str]:
    """Return sentences about hypotheses that did not end by themselves, such as `12 of 300 hypotheses were cut at ...`."""
    sentences = []
    recorded = [evaluation.result for evaluation in results.finished]
    for kind, verb, key in (
        ("cut_hypotheses", "cut", "max_new_tokens"),
        ("looped_hypotheses", "stopped", "max_repeats"),
    ):
        counts = [
            (getattr(result, kind), result.utterances) for result in recorded if getattr(result, kind) is not None
        ]
        if total := sum(count for count, _ in counts):
            values = results.distinct(partial(_decode_setting, key))
            setting = f"decode.{key}" + (f"={values[0]}" if len(values) == 1 and values[0] is not None else "")
            among = sum(utterances for _, utterances in counts)
            sentences.append(f"{total:,} of {among:,} hypotheses were {verb} at {setting}")
    return sentences


def _without_baseline(results: GridResults) -> str:
    """Return a sentence about systems whose baseline was scored with another normaliser; empty if there is none."""
    baselines = [system for system in systems(results) if system.template == results.baseline]
    alone = [
        _label(system, results)
        for system in systems(results)
        if system.template != results.baseline
        and baseline_of(results, system) is None
        and any((other.model, other.corpus) == (system.model, system.corpus) for other in baselines)
    ]
    if not alone:
        return ""
    return (
        f"{', '.join(alone)}: no relative benefit, because {results.baseline} was scored with another normaliser;"
        " give both the same corpus.normaliser."
    )


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
        rows = [
            [
                (marked(_label(system, results), results, system), ""),
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
            *benefit_notes(results),
        ]
    if mixed := _without_baseline(results):
        parts += [mixed]
    parts += [f"{sentence}." for sentence in (*folds_tested(results), *left_out(results), *unended(results))]
    if results.has_characters:
        parts += ["Character error rates: figures/summary.md and the report."]
    if missing := len(results.missing):
        parts += ["", f"{MISSING} missing: {missing} of {results.evaluation_count} evaluations are not finished."]
    return "\n".join(parts)
