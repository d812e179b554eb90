"""Search for settings such as the loss weights: propose points, train them, score them on split `val`, keep the best.

Every point is an ordinary trial. The sampler stores nothing on disk. When a search is run again, the sampler proposes
the same points in the same order (given the same seed, results and version of Optuna), and their trials are found
finished. A point that diverged is not trained again. One that failed otherwise is, and if it succeeds now, later points
may differ. The test split is not opened here: the best point of each cell becomes a cell of the grid, tested like others.
"""

import csv
import functools
import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dmlm import files, paths
from dmlm.corpus.faults import describe_left_out
from dmlm.engines.base import Engine
from dmlm.errors import UserError
from dmlm.plan.cell import Cell
from dmlm.plan.grid import Grid
from dmlm.plan.space import Search, Span, with_settings
from dmlm.results.failures import Failure, read_failures
from dmlm.score.wer import pool
from dmlm.sweep.materials import fold_key
from dmlm.sweep.preparation import prepare_under_lease
from dmlm.sweep.trial import Trial, trial_of

Values = dict[str, Any]  # by dotted setting
Candidate = tuple[Cell, Values]  # a cell with the values of a point, and those values
Runner = Callable[[Sequence[Trial]], dict[str, Failure]]  # `run_trials` with its other arguments bound
Say = Callable[[str], None]
DIGITS = 6  # significant digits of a proposed number, so that rounding errors of a machine give no other trial


class Sampler:
    """Proposes points for one cell, in batches: the combinations of a grid, or points by Optuna's TPE."""

    def __init__(self, search: Search, cell: Cell) -> None:
        """With TPE, the first point is the cell's own values, if the space contains them.

        Raises:
            UserError: Optuna is not installed.
        """
        try:
            import optuna
        except ImportError:
            raise UserError('A search needs the package optuna: pip install -e ".[search]"') from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():  # `constant_liar`, which makes the points of a batch differ, is experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            liar = search.parallel > 1
            tpe = optuna.samplers.TPESampler(n_startup_trials=search.startup, constant_liar=liar, seed=search.seed)
        self._study = optuna.create_study(sampler=tpe)
        self._failed = optuna.trial.TrialState.FAIL
        self._parallel, self._points_left = search.parallel, search.point_count(cell)
        self._batch: list[Any] = []  # Optuna's trials, between `ask` and `tell`
        space = search.space_of(cell)
        settings: Any = cell.model_dump()
        defaults = {
            key: functools.reduce(lambda section, part: (section or {}).get(part), key.split("."), settings)
            for key in space
        }
        is_integer = {key: type(defaults[key]) is int for key in space}
        self._not_rounded = {key: (defaults[key], *span.choices) for key, span in space.items()}
        self._space = {key: _distribution(span, is_integer[key]) for key, span in space.items()}
        if search.sampler == "grid":
            columns = [span.grid_values(is_integer[key]) for key, span in space.items()]
            for values in itertools.product(*columns):
                self._study.enqueue_trial(dict(zip(space, values, strict=True)))
        elif all(defaults[key] in span for key, span in space.items()):
            self._study.enqueue_trial(defaults)

    def ask(self) -> list[Values]:
        """Return the next batch of points; empty when the search is over."""
        count = min(self._parallel, self._points_left)
        self._points_left -= count
        self._batch = [self._study.ask(self._space) for _ in range(count)]
        return [{key: self._round(key, value) for key, value in point.params.items()} for point in self._batch]

    def _round(self, key: str, value: Any) -> Any:
        if value in self._not_rounded[key] or not isinstance(value, float):
            return value
        return float(f"{value:.{DIGITS}g}")

    def tell(self, wers: Sequence[float | None]) -> None:
        """Report the WER of each point of the last batch; None for a point that failed."""
        for point, wer in zip(self._batch, wers, strict=True):
            self._study.tell(point, wer, state=self._failed if wer is None else None)


def _distribution(span: Span, integer: bool) -> Any:
    """Convert a span to a distribution of Optuna; with `integer`, a range yields integers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if span.choices:
        return CategoricalDistribution(span.choices)
    if integer:
        return IntDistribution(int(span.low), int(span.high), span.log)
    return FloatDistribution(span.low, span.high, span.log)


@dataclass(frozen=True)
class SearchPoint:
    """A point of a search and its result."""

    values: Values
    trial: str  # name of its folder
    wer: float | None  # on split val, counts pooled over the SNRs; None if it failed
    failure: str = ""


@dataclass(eq=False)
class CellSearch:
    """The search for one cell of the grid."""

    cell: Cell
    variant: str
    sampler: Sampler
    points: list[SearchPoint] = field(default_factory=list)

    @property
    def best(self) -> SearchPoint | None:
        """The point with the lowest WER, the first of equals; None if all failed."""
        return min((p for p in self.points if p.wer is not None), key=lambda p: p.wer or 0.0, default=None)


def run_searches(
    searches: Sequence[CellSearch],
    evaluate: Callable[[list[Candidate]], list[SearchPoint]],
    report: Callable[[], None],
) -> None:
    """Propose, evaluate and report points until no search proposes more. Batches of all cells are evaluated together."""
    while batches := [(search, batch) for search in searches if (batch := search.sampler.ask())]:
        candidates = [(with_settings(search.cell, values), values) for search, batch in batches for values in batch]
        points = iter(evaluate(candidates))
        for search, batch in batches:
            new_points = list(itertools.islice(points, len(batch)))
            search.sampler.tell([point.wer for point in new_points])
            search.points += new_points
        report()


def search_grid(grid: Grid, search: Search, run: Runner, engine: Engine, say: Say) -> tuple[Grid, list[str]]:
    """Run the search for every cell that has a searched setting.

    Returns:
        The grid with the best point of each search as a cell after the cell itself, and a line for each search in
        which no point succeeded.

    Raises:
        UserError: the corpus has no split val, or a package is missing.
        TimeUp: as in `run_trials`.
    """
    searches = [
        CellSearch(cell, variant, Sampler(search, cell))
        for cell, variant in zip(grid.cells, grid.variants, strict=True)
        if search.space_of(cell)
    ]

    left_out: dict[str, dict[str, str]] = {}

    def evaluate(candidates: list[Candidate]) -> list[SearchPoint]:
        on_val = {"split": "val", "snr_db.test": search.snr_db}
        on_val_split = [(with_settings(cell, on_val), values) for cell, values in candidates]
        return _evaluate(on_val_split, run, engine, say, left_out)

    run_searches(searches, evaluate, lambda: _report(searches, search, paths.runs() / grid.name, say))
    subject = "λ" if all(key.startswith("train.lambdas.") for key in search.space) else ", ".join(search.space)
    cells: list[Cell] = []
    variants: list[str] = []
    for cell, variant in zip(grid.cells, grid.variants, strict=True):
        cell_search = next((s for s in searches if s.cell is cell), None)
        cells.append(cell)
        variants.append(_joined(variant, f"default {subject}" if cell_search else ""))
        if cell_search and cell_search.best:
            cells.append(with_settings(cell, cell_search.best.values))
            variants.append(_joined(variant, f"{subject} searched"))
    failures = [
        f"{s.cell.label}: no point of its search succeeded: {s.points[-1].failure}" for s in searches if not s.best
    ]
    return replace(grid, cells=tuple(cells), variants=tuple(variants)), failures


def _say_left_out(say: Say, line: str) -> None:
    if line.startswith("left out"):  # the rest was said for the grid, or will be
        say(line)


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _evaluate(
    candidates: list[Candidate], run: Runner, engine: Engine, say: Say, left_out: dict[str, dict[str, str]]
) -> list[SearchPoint]:
    """Train and evaluate candidates, whose cells are set to split val.

    Args:
        candidates: the cells and their values.
        run: trains and evaluates trials.
        engine: prepares their materials.
        say: called with what is left out.
        left_out: what earlier points left out, by `fold_key` of the corpus; empty before the first ones.

    Raises:
        UserError: the corpus has no split val, or points leave out different clips, so that they cannot be compared.
    """
    cells = tuple(cell for cell, _ in candidates)
    letters = "+".join(dict.fromkeys(letter for cell in cells for letter in cell.letters))
    baseline = f"{letters} -> T"  # of all modalities: nothing is permuted
    quiet = functools.partial(_say_left_out, say)
    materials = prepare_under_lease(cells, quiet, engine.map, left_out=left_out)
    for cell, corpus in zip(cells, (cell_materials.corpus for cell_materials in materials), strict=True):
        if not corpus.split("val"):
            raise UserError(f"{corpus.folder} has no utterance of split val, which a search is read on; add some.")
        if left_out.setdefault(fold_key(cell.corpus), corpus.left_out) != corpus.left_out:
            raise UserError(
                f"{corpus.folder}: a point of the search leaves out more than those before it"
                f" ({describe_left_out(corpus.left_out_counts)}), so that their WERs cannot be compared; do not search over what"
                " decides it, or leave out by fewer rules."
            )
    trials = [trial_of(cell, m, baseline) for cell, m in zip(cells, materials, strict=True)]
    last_failures = {trial.id: read_failures(trial.folder)[-1:] for trial in trials if not trial.trained}
    # a point that diverged would diverge again
    reasons = {id_: f.message for id_, failures in last_failures.items() for f in failures if f.kind == "not_finite"}
    to_run = [trial for trial in trials if trial.id not in reasons]
    reasons |= {id_: failure.message for id_, failure in run(to_run).items()}
    return [
        SearchPoint(values, trial.id, val_wer(trial), reasons.get(trial.id, ""))
        for (_, values), trial in zip(candidates, trials, strict=True)
    ]


def val_wer(trial: Trial) -> float | None:
    """Return the WER of a trial, with counts pooled over all its evaluations; None while one is missing."""
    if not trial.trained or trial.pending:
        return None
    return pool(trial.folder_of(evaluation).result for evaluation in trial.evaluations).wer


def _report(searches: Sequence[CellSearch], search: Search, folder: Path, say: Say) -> None:
    """Write `search.csv`, with a line for every point so far, and say how far each search is."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "template", "seed", "variant", "number", *search.space, "dev_wer", "status", "trial"])
    for cell_search in searches:
        cell, best = cell_search.cell, cell_search.best
        for number, point in enumerate(cell_search.points):
            wer = "" if point.wer is None else f"{point.wer:.6f}"
            status = "best" if point is best else "done" if wer else f"failed: {point.failure}"
            fold = "" if cell.corpus.fold is None else f"fold {cell.corpus.fold}"
            row = [cell.backbone, cell.template, cell.seed, _joined(fold, cell_search.variant), number]
            row += [point.values.get(key, "") for key in search.space]
            writer.writerow([*row, wer, status, f"../trials/{point.trial}"])
        facts = [*(f"{key} {value}" for key, value in best.values.items()), f"WER {best.wer:.1%}"] if best else ["none"]
        so_far = f"{len(cell_search.points)} of {search.point_count(cell)} points"
        say(f"search   {cell.label}: {so_far}, best on split val: {', '.join(facts)}")
    files.write_text(folder / "search.csv", text.getvalue())
