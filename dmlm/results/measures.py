"""Compute the numbers of figures and tables from stored counts, each with its interval and the number of runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

import numpy as np

from dmlm.results.grid import GridCell, GridEvaluation, GridResults
from dmlm.score.benefit import Pair, relative_benefit
from dmlm.score.intervals import Estimate, wer_interval
from dmlm.score.perceptual import PerceptualScore, perceptual_score
from dmlm.score.wer import Counts, mean_over_runs, pooled_over_folds
from dmlm.sequence.template import Template


@dataclass(frozen=True)
class System:
    """One line of a figure: all cells that differ only in the training seed, or in the fold that they are tested on."""

    model: str
    template: str
    variant: str = ""
    corpus: str = ""  # label of the corpus

    @classmethod
    def of(cls, cell: GridCell) -> "System":
        """Return the system of a cell."""
        return cls(cell.model, cell.template, cell.variant, cell.corpus.label)

    @property
    def name(self) -> str:
        """Input modalities in order, and the variant if there is one.

        >>> System("opt-tiny", "A+L -> T").name
        'A+L'
        """
        inputs = self.template.removesuffix(" -> T")
        return f"{inputs} ({self.variant})" if self.variant else inputs

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of the input modalities, in order."""
        return Template.parse(self.template).letters


@dataclass(frozen=True)
class Point:
    """A measure of one system under one condition. Without an estimate it is missing."""

    system: System
    snr_db: float
    permuted: str | None
    estimate: Estimate | None
    counts: Counts | None  # of the system; mean over seeds
    runs_done: int  # finished runs in it: seeds, or seeds x draws for a permuted modality; a run is over all folds
    runs_asked: int  # runs of the grid for it, finished or not
    seed_sd: float = math.nan  # sample standard deviation over seeds; NaN for one

    @property
    def status(self) -> str:
        """`measured`, `partly measured` (some runs missing), `undefined` or `missing`."""
        if self.estimate is None:
            return "missing"
        if math.isnan(self.estimate.value):
            return "undefined"
        return "measured" if self.runs_done == self.runs_asked else "partly measured"


@cache
def systems(results: GridResults, model: str | None = None) -> tuple[System, ...]:
    """Return the systems of a grid, or of one of its models, in the order of the grid."""
    all_systems = dict.fromkeys(map(System.of, results.cells))
    return tuple(system for system in all_systems if model in (None, system.model))


def cells_of(results: GridResults, system: System) -> list[GridCell]:
    """Return the cells of a system: one per training seed, and per fold of the corpus where folds take turns."""
    return [cell for cell in results.cells if System.of(cell) == system]


def normaliser_of(results: GridResults, system: System) -> str:
    """Return the normaliser of a system, with its version: cells of several are several systems."""
    return cells_of(results, system)[0].normaliser


def baseline_of(results: GridResults, system: System) -> System | None:
    """Return the baseline of a system, or None: same model, corpus and normaliser; of several variants the most similar."""
    candidates = [
        other
        for other in systems(results, system.model)
        if other.template == results.baseline
        and other.corpus == system.corpus
        and normaliser_of(results, other) == normaliser_of(results, system)
    ]
    parts = set(system.variant.split(", "))
    return max(candidates, key=lambda other: len(parts & set(other.variant.split(", "))), default=None)


def compared_systems(results: GridResults, model: str | None = None) -> list[System]:
    """Return the systems with a relative benefit: they read all modalities of their baseline and are not it."""
    compared = []
    for system in systems(results, model):
        baseline = baseline_of(results, system)
        if baseline and baseline != system and set(baseline.letters) <= set(system.letters):
            compared.append(system)
    return compared


# one evaluation, or those of all folds, which together test each utterance once; None: the grid does not ask that of a fold
Run = tuple[GridEvaluation | None, ...]


def _runs(results: GridResults, system: System, snr_db: float, permuted: str | None = None) -> dict[int, list[Run]]:
    """Return the runs of a condition by training seed, finished or not: one, or one for each draw of a permutation.

    Where seeds have other folds than each other, as when seed and fold change together, all are one run, by the first seed.
    """
    by_seed: dict[int, dict[int | None, list[GridEvaluation]]] = {}
    for cell in cells_of(results, system):
        found = [e for e in cell.evaluations if e.snr_db == snr_db and e.permuted == permuted]
        by_seed.setdefault(cell.seed, {})[cell.fold] = found
    if len({frozenset(folds) for folds in by_seed.values()}) > 1:
        together = [found for folds in by_seed.values() for found in folds.values()]
        return {min(by_seed): list(zip_longest(*together))}
    return {seed: list(zip_longest(*folds.values())) for seed, folds in by_seed.items()}


CountsOf = Callable[[GridEvaluation], Counts | None]  # of a finished evaluation; None if it has none


def _words(evaluation: GridEvaluation) -> Counts:
    return evaluation.counts


def _characters(evaluation: GridEvaluation) -> Counts | None:
    return evaluation.character_counts


def _finished(runs: dict[int, list[Run]], counts_of: CountsOf = _words) -> dict[int, list[Counts]]:
    """Return the counts of the finished runs by seed; a seed without any is left out, and so is a run that lacks a fold."""
    finished: dict[int, list[Counts]] = {}
    for seed, of_seed in runs.items():
        for run in of_seed:
            counts = [found for e in run if e and e.done and (found := counts_of(e))]
            if len(counts) == len(run):
                finished.setdefault(seed, []).append(pooled_over_folds(counts))
    return finished


@cache
def wer_point(results: GridResults, system: System, snr_db: float) -> Point:
    """Return the WER of a system, pooled over utterances and averaged over training seeds."""
    return _rate_point(results, system, snr_db, _words)


@cache
def cer_point(results: GridResults, system: System, snr_db: float) -> Point:
    """Return the CER of a system, like its WER; missing where no evaluation recorded character errors."""
    return _rate_point(results, system, snr_db, _characters)


def _rate_point(results: GridResults, system: System, snr_db: float, counts_of: CountsOf) -> Point:
    runs = _runs(results, system, snr_db)
    asked = sum(map(len, runs.values()))
    counts_of_runs = [counts for of_seed in _finished(runs, counts_of).values() for counts in of_seed]
    if not counts_of_runs:
        return Point(system, snr_db, None, None, None, 0, asked)
    mean = mean_over_runs(counts_of_runs)
    several = len(counts_of_runs) > 1
    seed_sd = float(np.std([counts.wer for counts in counts_of_runs], ddof=1)) if several else math.nan
    return Point(system, snr_db, None, wer_interval(mean), mean, len(counts_of_runs), asked, seed_sd)


def paired_counts(results: GridResults, system: System, snr_db: float, against: System | None = None) -> Pair | None:
    """Return the mean counts of the baseline (or of `against`) and of the system, for a paired comparison.

    Both are averaged over the seeds that they share or, if they share none, each over its own. None if either has no
    finished evaluation.
    """
    other = against or baseline_of(results, system)
    if other is None:
        return None
    first, second = (_finished(_runs(results, either, snr_db)) for either in (other, system))
    if not first or not second:
        return None
    shared_seeds = sorted(first.keys() & second.keys())
    left, right = (
        mean_over_runs([counts for seed in shared_seeds or finished for counts in finished[seed]])
        for finished in (first, second)
    )
    return left, right


def seeds_of(results: GridResults, system: System, snr_db: float) -> set[int]:
    """Return the training seeds with a finished evaluation at an SNR."""
    return set(_finished(_runs(results, system, snr_db)))


@cache
def benefit_point(results: GridResults, system: System, snr_db: float) -> Point:
    """Return the relative benefit of a system over its baseline; its runs are those of the seeds that both have."""
    baseline = baseline_of(results, system)
    of_system, of_baseline = (set(_runs(results, each, snr_db)) if each else set() for each in (system, baseline))
    asked = len(of_system & of_baseline or of_system)
    pair = paired_counts(results, system, snr_db)
    if pair is None or baseline is None:
        return Point(system, snr_db, None, None, None, 0, asked)
    seeds, others = (seeds_of(results, each, snr_db) for each in (system, baseline))
    return Point(system, snr_db, None, relative_benefit(*pair), pair[1], len(seeds & others or seeds), asked)


def permuted_modalities(results: GridResults, system: System) -> list[str]:
    """Return the modalities that the grid permutes for a system."""
    cells = cells_of(results, system)
    return list(dict.fromkeys(e.permuted for cell in cells for e in cell.evaluations if e.permuted))


def permuted_snrs_db(results: GridResults) -> list[float]:
    """Return the SNRs at which the grid permutes a modality, from easy to hard."""
    return sorted({e.snr_db for cell in results.cells for e in cell.evaluations if e.permuted}, reverse=True)


@cache
def perceptual_point(
    results: GridResults, system: System, modality: str, snr_db: float
) -> tuple[Point, PerceptualScore | None]:
    """Return the perceptual score of a modality in a system, as a point and with its normalisations.

    It covers the seeds whose plain and permuted evaluations are both finished; None if there is none.
    """
    runs = _runs(results, system, snr_db, modality)
    asked = sum(map(len, runs.values()))
    plain, permuted = _finished(_runs(results, system, snr_db)), _finished(runs)
    seeds = sorted(plain.keys() & permuted.keys())
    if not seeds:
        return Point(system, snr_db, modality, None, None, 0, asked), None
    intact = mean_over_runs([counts for seed in seeds for counts in plain[seed]])
    draws = min(len(permuted[seed]) for seed in seeds)
    by_draw = [mean_over_runs([permuted[seed][draw] for seed in seeds]) for draw in range(draws)]
    pair = paired_counts(results, system, snr_db)
    score = perceptual_score(intact, by_draw, pair[0] if pair else None)
    return Point(system, snr_db, modality, score.score, intact, draws * len(seeds), asked), score
