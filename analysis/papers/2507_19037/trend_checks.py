"""The trends that the paper (arXiv 2507.19037) states, held against this grid.

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
from dmlm.results.measures import System, compared, pair, systems
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
Combine = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _verdict(*estimates: Estimate) -> str:
    """Whether all statistics are positive, by their intervals."""
    if any(estimate.high < 0 for estimate in estimates):
        return FAILS
    return HOLDS if all(estimate.low > 0 for estimate in estimates) else UNDECIDED


def _points(estimate: Estimate) -> str:
    return f"{percent(estimate.value, signed=True)} [{percent(estimate.low)}, {percent(estimate.high)}] points"


def _system(results: GridResults, model: str, template: str) -> System | None:
    """The system with these inputs, controls aside; None where there are several variants, of which none is the one."""
    found = [
        system for system in systems(results, model) if system.template == template and "permuted" not in system.variant
    ]
    return found[0] if len(found) == 1 else None


def _noisy(results: GridResults) -> list[float]:
    return [snr_db for snr_db in results.snrs_db if snr.noisy(snr_db)]


def _pairs(results: GridResults, system: System | None, levels: Iterable[float]) -> list[Pair] | None:
    """Baseline and system at each level; None where the system or a level is missing."""
    found = [pair(results, system, snr_db) for snr_db in levels] if system else []
    return [each for each in found if each] if found and all(found) else None


def _grows(results: GridResults, model: str) -> Row:
    """Lips are synchronous with the speech: the louder the noise, the more they help."""
    name, levels = "1  Relative benefit of lips (A+L) grows with noise", _noisy(results)
    pairs = _pairs(results, _system(results, model, "A+L -> T"), levels)
    if not pairs or len(levels) < 2:
        return name, model, UNMEASURED, "needs A+L and the baseline at every noisy level, two at least"
    rise = benefit_statistic(pairs, lambda b: b[..., -1] - b[..., 0])
    falls = []
    for place in range(len(levels) - 1):
        step = benefit_statistic(pairs[place : place + 2], lambda b: b[..., 1] - b[..., 0])
        falls += [f"{snr.text(levels[place])} to {snr.text(levels[place + 1])} dB"] if step.high < 0 else []
    said = f"{snr.text(levels[-1])} dB less {snr.text(levels[0])} dB: {_points(rise)}; "
    said += f"it falls from {', '.join(falls)}" if falls else "no step between neighbours is a clear fall"
    return name, model, FAILS if falls else _verdict(rise), said


def _peaks(results: GridResults, model: str, letter: str) -> Row:
    """Image and recognised text cannot be tied to the speech where it is drowned: they help most in between."""
    name = f"2  Relative benefit of A+{letter} is larger between +5 and -10 dB than at either end"
    levels = _noisy(results)
    middle = [place for place, snr_db in enumerate(levels) if -10 <= snr_db <= 5]
    pairs = _pairs(results, _system(results, model, f"A+{letter} -> T"), levels)
    if not pairs or not middle or levels[0] <= 5 or levels[-1] >= -10:
        return (
            name,
            model,
            UNMEASURED,
            f"needs A+{letter} and the baseline at every noisy level, above +5, between, and below -10 dB",
        )
    ends = [benefit_statistic(pairs, lambda b, end=end: b[..., middle].mean(-1) - b[..., end]) for end in (0, -1)]
    where = [f"middle less {snr.text(levels[end])} dB: {_points(gap)}" for end, gap in zip((0, -1), ends, strict=True)]
    return name, model, _verdict(*ends), "; ".join(where)


def _together(results: GridResults, model: str) -> Row:
    """Two further modalities help at least as much as the better one of them."""
    name, levels = "3  Mean benefit of A+I+L is at least that of A+I and of A+L", _noisy(results)
    both = next((system for system in compared(results, model) if sorted(system.letters) == ["A", "I", "L"]), None)
    all_pairs = [
        _pairs(results, system, levels) for system in (both, *(_system(results, model, f"A+{x} -> T") for x in "IL"))
    ]
    if not all(all_pairs):
        return name, model, UNMEASURED, "needs A+I, A+L and both together at every noisy level"
    joint = [each for pairs in all_pairs for each in pairs or []]
    count = len(levels)

    def lead(start: int) -> Combine:
        return lambda b: b[..., :count].mean(-1) - b[..., start : start + count].mean(-1)

    leads = [benefit_statistic(joint, lead(start)) for start in (count, 2 * count)]
    said = "; ".join(f"lead over {system}: {_points(gap)}" for system, gap in zip(("A+I", "A+L"), leads, strict=True))
    return name, model, _verdict(*leads), said


def _order(results: GridResults, model: str) -> Row:
    """Audio first is better, and the more so in noise."""
    name, levels = "5  A+L has a lower WER than L+A, and the gap widens with noise", _noisy(results)
    first, second = (_system(results, model, template) for template in ("A+L -> T", "L+A -> T"))
    found = [pair(results, second, snr_db, against=first) for snr_db in levels] if first and second else []
    pairs = [each for each in found if each]
    if len(pairs) < 2 or len(pairs) < len(levels):
        return name, model, UNMEASURED, "needs A+L and L+A at every noisy level, two at least"
    sides: Sequence[Counts] = [mean_over_runs(side) for side in zip(*pairs, strict=True)]
    gap = wer_difference(sides[1], sides[0])
    # the gap at the hardest level less the gap at the easiest: errors may be added, the references are the same
    (easy_first, easy_second), (hard_first, hard_second) = pairs[0], pairs[-1]
    widened = wer_difference(_sum(hard_second, easy_first), _sum(hard_first, easy_second))
    said = f"WER(L+A) less WER(A+L): {_points(gap)}; widening to {snr.text(levels[-1])} dB: {_points(widened)}"
    return name, model, _verdict(gap, widened), said


def _is_dalle(choice: Choice) -> bool:
    return choice["recipe"] == "image_dalle"


def _is_vit(choice: Choice) -> bool:
    return choice["recipe"] == "image_vit_kmeans"


def _is_filtered(choice: Choice) -> bool:
    return choice["settings"].get("first_pass") is not None  # the paper's filter keeps what is spoken


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
    """Of two tokenizers of one modality, beside the same audio, one lowers WER more."""
    choices = {
        System.of(cell): cell.settings["tokenizers"][letter]
        for cell in results.cells
        if (cell.model, cell.template) == (model, f"A+{letter} -> T")
        and cell.settings  # older versions kept none
        and not cell.settings["permute"]
    }
    gaps, said = [], []
    for first, second in product(
        filter(lambda a: better(choices[a]), choices), filter(lambda a: worse(choices[a]), choices)
    ):
        found = [pair(results, second, snr_db, against=first) for snr_db in _noisy(results)]
        if found and all(found):
            sides = [mean_over_runs(side) for side in zip(*(each for each in found if each), strict=True)]
            gaps.append(wer_difference(sides[1], sides[0]))
            said.append(f"WER of {second.name} less that of {first.name}: {_points(gaps[-1])}")
    if not gaps:
        return name, model, UNMEASURED, f"needs both as A+{letter} in one grid, at every noisy level"
    return name, model, _verdict(*gaps), "; ".join(said)


def _sum(one: Counts, other: Counts) -> Counts:
    both = mean_over_runs([one, other])
    return Counts(both.ids, 2 * both.errors, both.words)


def _decode_s(results: GridResults, model: str) -> list[float]:
    """Seconds per utterance of each finished evaluation."""
    done = [e for cell in results.cells if cell.model == model for e in cell.evaluations if e.done]
    return [e.result.decode_s / e.result.utterances for e in done]


def _mamba(results: GridResults) -> Iterator[Row]:
    """Mamba shows the trends of OPT, faster."""
    families = [[m for m in results.models if m.startswith(prefix)] for prefix in ("opt", "mamba")]
    signs = "7  Mamba: benefits have the signs of OPT's"
    speed = "7  Mamba decodes about twice as fast (1.5 times or more)"
    if not all(families):
        return (yield from ((name, "—", UNMEASURED, "needs an OPT and a Mamba backbone") for name in (signs, speed)))
    opt, mamba = (family[0] for family in families)
    verdicts, said = [], []
    for system in compared(results, opt):
        other = _system(results, mamba, system.template)
        pooled = [mean_benefits(results, each)[1] if each else None for each in (system, other)]
        if all(pooled):
            left, right = (e for e in pooled if e)
            agree = left.value * right.value > 0
            clear = left.excludes_zero and right.excludes_zero
            verdicts.append((HOLDS if agree else FAILS) if clear else UNDECIDED)
            said.append(f"{system.name} {percent(left.value, signed=True)} and {percent(right.value, signed=True)} %")
    order = (FAILS, UNDECIDED, HOLDS)
    verdict = min(verdicts, key=order.index, default=UNMEASURED)
    yield signs, f"{opt}, {mamba}", verdict, "; ".join(said) or "no pair is whole"
    seconds = [_decode_s(results, model) for model in (opt, mamba)]
    if not all(seconds):
        yield speed, f"{opt}, {mamba}", UNMEASURED, "no evaluation is finished"
        return
    times = float(np.mean(seconds[0]) / np.mean(seconds[1])) if np.mean(seconds[1]) else math.nan
    note = f"{times:.2f} times OPT's speed where this grid ran, at this size; without interval"
    yield speed, f"{opt}, {mamba}", HOLDS if times >= 1.5 else FAILS, note


def _ranges(results: GridResults, model: str) -> Iterator[Row]:
    """The paper's benefits average +3.1 to +20.4 %."""
    for system in compared(results, model):
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
        tables=(Table("Trends of the paper", head, rows, words=4),),
    )
