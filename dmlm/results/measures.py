"""From the stored counts of a grid to the numbers of its figures, each with its interval and what it rests on."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from dmlm.results.grid import GridCell, GridEvaluation, GridResults
from dmlm.score.benefit import Pair, relative_benefit
from dmlm.score.intervals import Estimate, wer_interval
from dmlm.score.perceptual import PerceptualScore, perceptual_score
from dmlm.score.wer import Counts, mean_over_runs
from dmlm.sequence.template import Template


@dataclass(frozen=True)
class System:
    """What a line of a figure stands for: cells that differ in nothing but the training seed."""

    model: str
    template: str
    variant: str = ""
    corpus: str = ""  # its label

    @classmethod
    def of(cls, cell: GridCell) -> "System":
        """That of a cell."""
        return cls(cell.model, cell.template, cell.variant, cell.corpus.label)

    @property
    def name(self) -> str:
        """Inputs in order, with the variant where there is one.

        >>> System("opt-tiny", "A+L -> T").name
        'A+L'
        """
        inputs = self.template.removesuffix(" -> T")
        return f"{inputs} ({self.variant})" if self.variant else inputs

    @property
    def letters(self) -> tuple[str, ...]:
        """Input modalities in order."""
        return Template.parse(self.template).letters


@dataclass(frozen=True)
class Point:
    """One number: a measure of one system under one condition. Without an estimate it is missing."""

    system: System
    snr_db: float
    permuted: str | None
    estimate: Estimate | None
    counts: Counts | None  # of the system; mean over seeds
    runs: int  # finished evaluations (seeds; for a permuted modality seeds x draws) that it rests on
    asked: int
    seed_sd: float = math.nan  # sample standard deviation over seeds; NaN for one

    @property
    def status(self) -> str:
        """`measured`, `partly measured` (some runs missing), `undefined` or `missing`."""
        if self.estimate is None:
            return "missing"
        if math.isnan(self.estimate.value):
            return "undefined"
        return "measured" if self.runs == self.asked else "partly measured"


@cache
def systems(results: GridResults, model: str | None = None) -> tuple[System, ...]:
    """Systems of a grid, or of one of its models, in the order of the grid."""
    found = dict.fromkeys(map(System.of, results.cells))
    return tuple(system for system in found if model in (None, system.model))


def cells_of(results: GridResults, system: System) -> list[GridCell]:
    """The cells of a system: one a training seed."""
    return [cell for cell in results.cells if System.of(cell) == system]


def baseline_of(results: GridResults, system: System) -> System | None:
    """The system to measure benefits against: of the same model and corpus, and of several variants the most alike."""
    candidates = [
        other
        for other in systems(results, system.model)
        if other.template == results.baseline and other.corpus == system.corpus
    ]
    parts = set(system.variant.split(", "))
    return max(candidates, key=lambda other: len(parts & set(other.variant.split(", "))), default=None)


def compared(results: GridResults, model: str | None = None) -> list[System]:
    """Systems that have a relative benefit: they read at least what the baseline reads, and are not the baseline."""
    found = []
    for system in systems(results, model):
        baseline = baseline_of(results, system)
        if baseline and baseline != system and set(baseline.letters) <= set(system.letters):
            found.append(system)
    return found


def _runs(
    results: GridResults, system: System, snr_db: float, permuted: str | None = None
) -> dict[int, list[GridEvaluation]]:
    """Evaluations of a condition by training seed, finished or not."""
    return {
        cell.seed: [e for e in cell.evaluations if e.snr_db == snr_db and e.permuted == permuted]
        for cell in cells_of(results, system)
    }


def _finished(runs: dict[int, list[GridEvaluation]]) -> dict[int, list[Counts]]:
    """Counts of the finished evaluations, by seed; seeds without one are left out."""
    done = {seed: [e.counts for e in evaluations if e.done] for seed, evaluations in runs.items()}
    return {seed: counts for seed, counts in done.items() if counts}


@cache
def wer_point(results: GridResults, system: System, snr_db: float) -> Point:
    """WER, pooled over utterances and averaged over training seeds."""
    runs = _runs(results, system, snr_db)
    asked = sum(map(len, runs.values()))
    done = [counts for by_seed in _finished(runs).values() for counts in by_seed]
    if not done:
        return Point(system, snr_db, None, None, None, 0, asked)
    mean = mean_over_runs(done)
    seed_sd = float(np.std([counts.wer for counts in done], ddof=1)) if len(done) > 1 else math.nan
    return Point(system, snr_db, None, wer_interval(mean), mean, len(done), asked, seed_sd)


def pair(results: GridResults, system: System, snr_db: float, against: System | None = None) -> Pair | None:
    """Counts of the baseline (or of `against`) and of the system, over the seeds that both have, or None."""
    other = against or baseline_of(results, system)
    if other is None:
        return None
    first, second = (_finished(_runs(results, either, snr_db)) for either in (other, system))
    if not first or not second:
        return None
    seeds = sorted(first.keys() & second.keys())
    chosen = [[done[seed] for seed in seeds or done] for done in (first, second)]
    left, right = (mean_over_runs([counts for by_seed in side for counts in by_seed]) for side in chosen)
    return left, right


@cache
def benefit_point(results: GridResults, system: System, snr_db: float) -> Point:
    """Relative benefit of an system over the baseline of its model."""
    point = wer_point(results, system, snr_db)
    found = pair(results, system, snr_db)
    estimate = relative_benefit(*found) if found else None
    return Point(system, snr_db, None, estimate, found[1] if found else None, point.runs if found else 0, point.asked)


def permuted_modalities(results: GridResults, system: System) -> list[str]:
    """Modalities that the grid permutes for an system."""
    cells = cells_of(results, system)
    return list(dict.fromkeys(e.permuted for cell in cells for e in cell.evaluations if e.permuted))


def permuted_levels(results: GridResults) -> list[float]:
    """Conditions at which the grid permutes a modality, from easy to hard."""
    return sorted({e.snr_db for cell in results.cells for e in cell.evaluations if e.permuted}, reverse=True)


@cache
def perceptual(
    results: GridResults, system: System, modality: str, snr_db: float
) -> tuple[Point, PerceptualScore | None]:
    """Perceptual score of a modality in an system; over the seeds whose plain and permuted evaluations are finished."""
    runs = _runs(results, system, snr_db, modality)
    asked = sum(map(len, runs.values()))
    plain, permuted = _finished(_runs(results, system, snr_db)), _finished(runs)
    seeds = sorted(plain.keys() & permuted.keys())
    if not seeds:
        return Point(system, snr_db, modality, None, None, 0, asked), None
    intact = mean_over_runs([counts for seed in seeds for counts in plain[seed]])
    draws = min(len(permuted[seed]) for seed in seeds)
    by_draw = [mean_over_runs([permuted[seed][draw] for seed in seeds]) for draw in range(draws)]
    against = pair(results, system, snr_db)
    found = perceptual_score(intact, by_draw, against[0] if against else None)
    return Point(system, snr_db, modality, found.score, intact, draws * len(seeds), asked), found
