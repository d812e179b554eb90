"""Check the trends that the paper (arXiv 2507.19037) states against this grid.

A trend holds where the 95 % interval of its statistic lies wholly on the stated side, does not hold where it lies
wholly on the other, and is undecided in between.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlm import snr
from dmlm.results.exhibit import Exhibit, Table, write_csv
from dmlm.results.grid import GridResults
from dmlm.results.measures import System, compared_systems, paired_counts, systems
from dmlm.results.tables import mean_benefits, percent
from dmlm.score.benefit import Pair, benefit_statistic
from dmlm.score.intervals import Estimate, wer_difference
from dmlm.score.wer import Counts, mean_over_runs

ORDER = 50
NAME = "trend_checks"
HOLDS, FAILS, UNDECIDED, UNMEASURED = "holds", "does not hold", "undecided", "not measured"
LOW, HIGH = 0.031, 0.204  # range of relative benefits in the paper
Row = tuple[str, str, str, str]  # trend, model, verdict, evidence
Choice = dict[str, Any]  # recipe and settings of a tokenizer
Benefits = NDArray[np.float64]  # (..., N): relative benefit of N pairs; leading axes are resamples
Combine = Callable[[Benefits], Benefits]  # (..., N) -> (...)


def _verdict(*estimates: Estimate) -> str:
    """Judge by their intervals whether all statistics are positive."""
    if any(estimate.high < 0 for estimate in estimates):
        return FAILS
    return HOLDS if all(estimate.low > 0 for estimate in estimates) else UNDECIDED


def _points(estimate: Estimate) -> str:
    return f"{percent(estimate.value, signed=True)} [{percent(estimate.low)}, {percent(estimate.high)}] points"


def _system(results: GridResults, model: str, template: str) -> System | None:
    """Return the system with this template, leaving out controls; None if there is none, or several variants."""
    matching = [
        system for system in systems(results, model) if system.template == template and "permuted" not in system.variant
    ]
    return matching[0] if len(matching) == 1 else None


def _noisy(results: GridResults) -> list[float]:
    """Return the noisy SNRs of the grid, from easy to hard."""
    return [snr_db for snr_db in results.snrs_db if snr.noisy(snr_db)]


def _pairs(
    results: GridResults, system: System | None, snrs_db: Iterable[float], against: System | None = None
) -> list[Pair] | None:
    """Return the counts of the baseline (or of `against`) and of the system at each SNR; None if anything is missing."""
    pairs = [paired_counts(results, system, snr_db, against) for snr_db in snrs_db] if system else []
    measured = [pair for pair in pairs if pair]
    return measured if measured and len(measured) == len(pairs) else None


def _grows(results: GridResults, model: str) -> Row:
    """Lips are synchronous with the speech: the louder the noise, the more they help."""
    name, snrs_db = "1  Relative benefit of lips (A+L) grows with noise", _noisy(results)
    pairs = _pairs(results, _system(results, model, "A+L -> T"), snrs_db)
    if not pairs or len(snrs_db) < 2:
        return name, model, UNMEASURED, "needs A+L and the baseline at every noisy level, two at least"
    rise = benefit_statistic(pairs, _last_minus_first)
    falls = []
    for i in range(len(snrs_db) - 1):
        step = benefit_statistic(pairs[i : i + 2], _last_minus_first)
        falls += [f"{snr.text(snrs_db[i])} to {snr.text(snrs_db[i + 1])} dB"] if step.high < 0 else []
    evidence = f"{snr.text(snrs_db[-1])} dB less {snr.text(snrs_db[0])} dB: {_points(rise)}; "
    evidence += f"it falls from {', '.join(falls)}" if falls else "no step between neighbours is a clear fall"
    return name, model, FAILS if falls else _verdict(rise), evidence


def _last_minus_first(benefits: Benefits) -> Benefits:
    return benefits[..., -1] - benefits[..., 0]


def _peaks(results: GridResults, model: str, letter: str) -> Row:
    """Image and recognised text cannot be aligned with speech that is inaudible: they help most in between."""
    name = f"2  Relative benefit of A+{letter} is larger between +5 and -10 dB than at either end"
    snrs_db = _noisy(results)
    middle = [index for index, snr_db in enumerate(snrs_db) if -10 <= snr_db <= 5]
    pairs = _pairs(results, _system(results, model, f"A+{letter} -> T"), snrs_db)
    if not pairs or not middle or snrs_db[0] <= 5 or snrs_db[-1] >= -10:
        return (
            name,
            model,
            UNMEASURED,
            f"needs A+{letter} and the baseline at every noisy level, above +5, between, and below -10 dB",
        )

    def middle_minus(end: int) -> Combine:
        return lambda benefits: benefits[..., middle].mean(-1) - benefits[..., end]

    gaps = {end: benefit_statistic(pairs, middle_minus(end)) for end in (0, -1)}
    evidence = [f"middle less {snr.text(snrs_db[end])} dB: {_points(gap)}" for end, gap in gaps.items()]
    return name, model, _verdict(*gaps.values()), "; ".join(evidence)


def _together(results: GridResults, model: str) -> Row:
    """Two further modalities help at least as much as the better one of them."""
    name, snrs_db = "3  Mean benefit of A+I+L is at least that of A+I and of A+L", _noisy(results)
    both = next(
        (system for system in compared_systems(results, model) if sorted(system.letters) == ["A", "I", "L"]), None
    )
    single = (_system(results, model, f"A+{letter} -> T") for letter in "IL")
    pairs_of_systems = [_pairs(results, system, snrs_db) for system in (both, *single)]
    if not all(pairs_of_systems):
        return name, model, UNMEASURED, "needs A+I, A+L and both together at every noisy level"
    all_pairs = [pair for pairs in pairs_of_systems for pair in pairs or []]  # A+I+L, then A+I, then A+L
    count = len(snrs_db)

    def lead(start: int) -> Combine:
        return lambda benefits: benefits[..., :count].mean(-1) - benefits[..., start : start + count].mean(-1)

    leads = [benefit_statistic(all_pairs, lead(start)) for start in (count, 2 * count)]
    evidence = [f"lead over {system}: {_points(gap)}" for system, gap in zip(("A+I", "A+L"), leads, strict=True)]
    return name, model, _verdict(*leads), "; ".join(evidence)


def _order(results: GridResults, model: str) -> Row:
    """Audio first is better, and the more so in noise."""
    name, snrs_db = "5  A+L has a lower WER than L+A, and the gap widens with noise", _noisy(results)
    audio_first, lips_first = (_system(results, model, template) for template in ("A+L -> T", "L+A -> T"))
    pairs = _pairs(results, lips_first, snrs_db, against=audio_first) if audio_first else None
    if not pairs or len(pairs) < 2:
        return name, model, UNMEASURED, "needs A+L and L+A at every noisy level, two at least"
    sides: Sequence[Counts] = [mean_over_runs(side) for side in zip(*pairs, strict=True)]
    gap = wer_difference(sides[1], sides[0])
    # the gap at the hardest SNR less the gap at the easiest: errors may be added, as the references are the same
    (easy_audio, easy_lips), (hard_audio, hard_lips) = pairs[0], pairs[-1]
    widening = wer_difference(_sum(hard_lips, easy_audio), _sum(hard_audio, easy_lips))
    evidence = f"WER(L+A) less WER(A+L): {_points(gap)}; widening to {snr.text(snrs_db[-1])} dB: {_points(widening)}"
    return name, model, _verdict(gap, widening), evidence


def _is_dalle(choice: Choice) -> bool:
    return choice["recipe"] == "image_dalle"


def _is_vit(choice: Choice) -> bool:
    return choice["recipe"] == "image_vit_kmeans"


def _is_filtered(choice: Choice) -> bool:
    return choice["settings"].get("first_pass") is not None  # the filter of the paper: lines that a first pass heard


def _is_raw(choice: Choice) -> bool:
    return choice["settings"].get("keep") is None


def _tokenizers(
    results: GridResults,
    model: str,
    name: str,
    letter: str,
    better: Callable[[Choice], bool],
    worse: Callable[[Choice], bool],
) -> Row:
    """Of two tokenizers of a modality, next to the same audio, the better one gives the lower WER."""
    choices = {
        System.of(cell): cell.settings["tokenizers"][letter]
        for cell in results.cells
        if (cell.model, cell.template) == (model, f"A+{letter} -> T")
        and cell.settings  # empty if an older version wrote the grid
        and not cell.settings["permute"]
    }
    gaps, evidence = [], []
    better_systems = [system for system, choice in choices.items() if better(choice)]
    worse_systems = [system for system, choice in choices.items() if worse(choice)]
    for first, second in product(better_systems, worse_systems):
        if pairs := _pairs(results, second, _noisy(results), against=first):
            sides = [mean_over_runs(side) for side in zip(*pairs, strict=True)]
            gaps.append(wer_difference(sides[1], sides[0]))
            evidence.append(f"WER of {second.name} less that of {first.name}: {_points(gaps[-1])}")
    if not gaps:
        return name, model, UNMEASURED, f"needs both as A+{letter} in one grid, at every noisy level"
    return name, model, _verdict(*gaps), "; ".join(evidence)


def _sum(one: Counts, other: Counts) -> Counts:
    """Add the errors of two systems on the same references, whose words are counted once."""
    mean = mean_over_runs([one, other])
    return Counts(mean.ids, 2 * mean.errors, mean.words)


def _decode_s(results: GridResults, model: str) -> list[float]:
    """Return the decoding time per utterance in seconds of each finished evaluation."""
    done = [e for cell in results.cells if cell.model == model for e in cell.evaluations if e.done]
    return [e.result.decode_s / e.result.utterances for e in done]


def _mamba(results: GridResults) -> Iterator[Row]:
    """Mamba shows the trends of OPT and decodes faster."""
    families = [[m for m in results.models if m.startswith(prefix)] for prefix in ("opt", "mamba")]
    signs = "7  Mamba: benefits have the signs of OPT's"
    speed = "7  Mamba decodes about twice as fast (1.5 times or more)"
    if not all(families):
        return (yield from ((name, "—", UNMEASURED, "needs an OPT and a Mamba backbone") for name in (signs, speed)))
    opt, mamba = (family[0] for family in families)
    verdicts, evidence = [], []
    for system in compared_systems(results, opt):
        other = _system(results, mamba, system.template)
        pooled = [mean_benefits(results, either)[1] if either else None for either in (system, other)]
        if all(pooled):
            left, right = (e for e in pooled if e)
            agree = left.value * right.value > 0
            clear = left.excludes_zero and right.excludes_zero
            verdicts.append((HOLDS if agree else FAILS) if clear else UNDECIDED)
            evidence.append(
                f"{system.name} {percent(left.value, signed=True)} and {percent(right.value, signed=True)} %"
            )
    order = (FAILS, UNDECIDED, HOLDS)
    verdict = min(verdicts, key=order.index, default=UNMEASURED)
    yield signs, f"{opt}, {mamba}", verdict, "; ".join(evidence) or "no pair is whole"
    seconds = [_decode_s(results, model) for model in (opt, mamba)]
    if not all(seconds):
        yield speed, f"{opt}, {mamba}", UNMEASURED, "no evaluation is finished"
        return
    times = float(np.mean(seconds[0]) / np.mean(seconds[1])) if np.mean(seconds[1]) else math.nan
    note = f"{times:.2f} times OPT's speed where this grid ran, at this size; without interval"
    yield speed, f"{opt}, {mamba}", HOLDS if times >= 1.5 else FAILS, note


def _ranges(results: GridResults, model: str) -> Iterator[Row]:
    """The mean benefits in the paper are between +3.1 and +20.4 %."""
    for system in compared_systems(results, model):
        if "permuted" in system.variant:
            continue  # a control
        name = f"8  Mean benefit of {system.name} lies in the paper's +3.1 to +20.4 %"
        mean = mean_benefits(results, system)[0]
        if mean is None or math.isnan(mean.low):
            yield name, model, UNMEASURED, "needs every noisy level, each with an error of the baseline"
            continue
        inside = mean.low >= LOW and mean.high <= HIGH
        outside = mean.high < LOW or mean.low > HIGH
        yield name, model, HOLDS if inside else FAILS if outside else UNDECIDED, _points(mean).replace("points", "%")


def _rows(results: GridResults) -> Iterator[Row]:
    for model in results.models:
        yield _grows(results, model)
        yield from (_peaks(results, model, letter) for letter in "IO")
        yield _together(results, model)
        yield _tokenizers(results, model, "4  DALL-E tokens help more than ViT tokens", "I", _is_dalle, _is_vit)
    yield from (_order(results, model) for model in results.models)
    for model in results.models:
        yield _tokenizers(results, model, "6  Filtered OCR helps more than raw OCR", "O", _is_filtered, _is_raw)
    yield from _mamba(results)
    for model in results.models:
        yield from _ranges(results, model)


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Write every check with its verdict and evidence."""
    rows = tuple(sorted(_rows(results), key=lambda row: row[0].split()[0]))
    head = ("trend", "model", "verdict", "evidence")
    counts = ", ".join(f"{v}: {sum(row[2] == v for row in rows)}" for v in (HOLDS, FAILS, UNDECIDED, UNMEASURED))
    return Exhibit(
        title="Trend checks",
        caption=(
            f"Of {len(rows)} checks, {counts}. A trend holds where the 95 % interval of its statistic lies wholly on"
            " the stated side, does not hold where it lies wholly on the other, and is undecided in between;"
            " intervals are not corrected for the number of checks. Lips may fall back where the audio alone is"
            " lost anyway: a fall at the lowest SNR is not by itself a failure."
        ),
        files=(write_csv(folder / f"{NAME}.csv", head, rows),),
        tables=(Table("Trends of the paper", head, rows, words=4),)
        if any(row[2] != UNMEASURED for row in rows)
        else (),
    )
