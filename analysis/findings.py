"""Findings: sentences that are computed from the numbers of the grid, one for each system."""

import math
from pathlib import Path

from dmlm import files, snr
from dmlm.modalities import MODALITIES
from dmlm.results import measures
from dmlm.results.exhibit import Exhibit
from dmlm.results.grid import GridResults
from dmlm.results.measures import System
from dmlm.results.tables import UNTRAINED_PAIR, has_learned, percent
from dmlm.score.intervals import Estimate, wer_difference
from dmlm.score.wer import mean_over_runs
from dmlm.snr import CLEAN_DB

ORDER = 0
NAME = "findings"
LOUD_DB = 0.0  # loud noise is this SNR and below
UNTRAINED = 1.0  # WER


def _at(snr_db: float) -> str:
    return "in clean speech" if snr_db == CLEAN_DB else f"at {snr.text(snr_db)} dB"


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return "no interval"
    verdict = "yes" if estimate.excludes_zero else "no"
    return f"95 % interval {percent(estimate.low)} to {percent(estimate.high)}, excludes zero: {verdict}"


def _rise(results: GridResults, system: System) -> str:
    """Return how the WER of a system rises from the easiest to the hardest SNR."""
    points = [measures.wer_point(results, system, snr_db) for snr_db in results.snrs_db]
    measured = [(point.snr_db, point.estimate.value) for point in points if point.estimate]
    if len(measured) < 2:
        return "not measured under two conditions yet"
    (easy, low), (hard, high) = measured[0], measured[-1]
    verb = "rises" if high > low else "goes"
    sentence = f"WER {verb} from {percent(low)} % {_at(easy)} to {percent(high)} % {_at(hard)}"
    if low >= UNTRAINED:
        sentence += (
            ", no less than writing nothing would give: it has not learned to transcribe, so read no effect into it"
        )
    return sentence


def _gain(results: GridResults, system: System) -> str:
    """Return the effect of further inputs on WER in loud noise, against the baseline; empty without such noise."""
    loud = [snr_db for snr_db in results.snrs_db if snr_db <= LOUD_DB]
    if not loud:
        return ""
    where = f"at {snr.text(LOUD_DB)} dB and below" if len(loud) > 1 else _at(loud[0])
    pairs = [pair for snr_db in loud if (pair := measures.paired_counts(results, system, snr_db))]
    if len(pairs) < len(loud):
        return f"{where}, the effect on WER is not measured at every level yet"
    baseline, with_inputs = (mean_over_runs(side) for side in zip(*pairs, strict=True))
    gain = wer_difference(baseline, with_inputs)
    verb = "lowers" if gain.value >= 0 else "raises"
    if gain.value < 0:
        gain = Estimate(-gain.value, -gain.high, -gain.low)
    return f"{where}, it {verb} WER by {percent(gain.value)} points ({_interval(gain)})"


def _best(results: GridResults, system: System) -> str:
    """Return at which SNR the relative benefit is largest; empty if it is measured at fewer than two."""
    points = [measures.benefit_point(results, system, snr_db) for snr_db in results.snrs_db]
    measured = [(p.estimate, p.snr_db) for p in points if p.estimate and not math.isnan(p.estimate.value)]
    if len(measured) < 2:
        return ""
    best, snr_db = max(measured, key=lambda item: item[0].value)
    return f"its relative benefit is largest {_at(snr_db)}, {percent(best.value, signed=True)} % ({_interval(best)})"


def _use(results: GridResults, system: System) -> list[str]:
    """Return for each permuted modality whether the model uses it, at the hardest SNR of the permutations."""
    sentences = []
    for letter in measures.permuted_modalities(results, system):
        snr_db = measures.permuted_snrs_db(results)[-1]
        score = measures.perceptual_point(results, system, letter, snr_db)[0].estimate
        if not score:
            continue
        benefit = measures.benefit_point(results, system, snr_db).estimate
        size = f"{percent(score.value, signed=True)} points"
        sentences.append(
            f"{_at(snr_db)}, {MODALITIES[letter].name} of another utterance: WER {size} ({_interval(score)})"
        )
        if benefit and benefit.low > 0 and not score.excludes_zero:
            sentences[-1] += ", which, beside a positive relative benefit, points to a benefit in training only"
    return sentences


def _measured(results: GridResults, system: System) -> bool:
    """Whether a system has a WER at any SNR."""
    return any(measures.wer_point(results, system, snr_db).estimate for snr_db in results.snrs_db)


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Write the sentences. What is not measured is left out or reported as not measured."""
    notes: list[str] = []
    for model in results.models:
        baselines = {
            system: measures.baseline_of(results, system) for system in measures.compared_systems(results, model)
        }
        several = (
            len({system for system in measures.systems(results, model) if system.template == results.baseline}) > 1
        )
        for system in measures.systems(results, model):
            if system.template == results.baseline and (system in baselines.values() or not several):
                notes.append(f"{model}, {system.name} (baseline): {_rise(results, system)}.")
            elif system in baselines:
                baseline = baselines[system]
                name = f"{system.name} over {baseline.name}" if several and baseline else system.name
                pair = [each for each in (system, baseline) if each]
                if any(_measured(results, each) and not has_learned(results, each) for each in pair):
                    notes.append(f"{model}, {name}: {UNTRAINED_PAIR}.")
                    continue
                parts = [_gain(results, system), _best(results, system), *_use(results, system)]
                notes.append(f"{model}, {name}: {'; '.join(part for part in parts if part) or 'not measured yet'}.")
            else:
                notes.append(f"{model}, {system.name}: {_rise(results, system)}.")
    files.write_text(folder / f"{NAME}.md", "".join(f"- {note}\n" for note in notes))
    return Exhibit(
        title="What it shows",
        caption=(
            "Sentences computed from the stored results. Letters: "
            + ", ".join(f"{letter} {modality.name}" for letter, modality in MODALITIES.items())
            + f". Benefits and gains are over {results.baseline} of the same model."
        ),
        files=(folder / f"{NAME}.md",),
        notes=tuple(notes),
    )
