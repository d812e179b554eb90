"""Search for settings such as the loss weights: propose points, train them, read them on split `val`, keep the best.

Every point is an ordinary trial. The sampler keeps nothing on disk: a search that is run again asks again, is proposed
the same points in the same order (by the same seed, answers and version of Optuna), and finds them done. A point that
diverged is not tried again; one that failed otherwise is, and if it succeeds, what follows may be others. The test
split is not opened here: the best point of each cell becomes a cell of the grid, and is tested like any other.
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
from dmlm.engines.base import Engine
from dmlm.errors import UserError
from dmlm.plan.cell import Cell
from dmlm.plan.grid import Grid
from dmlm.plan.space import Search, Span, changed
from dmlm.results.failures import Failure, read_failures
from dmlm.score.wer import pool
from dmlm.sweep.materials import prepare_alone
from dmlm.sweep.trial import Trial, trial_of

Values = dict[str, Any]  # by dotted setting
Asked = tuple[Cell, Values]
Runner = Callable[[Grid, Sequence[Trial]], dict[str, Failure]]  # `run_trials` with all else given
Say = Callable[[str], None]
DIGITS = 6  # of a proposed number: what another machine calculates in the last bits is still the same trial


class Proposals:
    """Points for one cell, in batches: the combinations of a grid, or what Optuna's TPE makes of the answers so far."""

    def __init__(self, search: Search, cell: Cell) -> None:
        """TPE begins with the cell's own values, if the space holds them."""
        try:
            import optuna
        except ImportError:
            raise UserError('A search needs the package optuna: pip install -e ".[search]"') from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():  # the liar, which keeps the points of a batch apart, is called experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            liar = search.parallel > 1
            sampler = optuna.samplers.TPESampler(n_startup_trials=search.startup, constant_liar=liar, seed=search.seed)
        self._study = optuna.create_study(sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._parallel, self._left = search.parallel, search.points(cell)
        self._asked: list[Any] = []
        space = search.concerning(cell)
        plain: Any = cell.model_dump()
        own = {key: functools.reduce(lambda at, part: (at or {}).get(part), key.split("."), plain) for key in space}
        self._exact = {key: (own[key], *span.choices) for key, span in space.items()}
        self._space = {key: _distribution(span, whole=type(own[key]) is int) for key, span in space.items()}
        if search.sampler == "grid":
            columns = [span.spaced(whole=type(own[key]) is int) for key, span in space.items()]
            for values in itertools.product(*columns):
                self._study.enqueue_trial(dict(zip(space, values, strict=True)))
        elif all(own[key] in span for key, span in space.items()):
            self._study.enqueue_trial(own)

    def ask(self) -> list[Values]:
        """The next points; none once the search is over."""
        count = min(self._parallel, self._left)
        self._left -= count
        self._asked = [self._study.ask(self._space) for _ in range(count)]
        return [{key: self._rounded(key, value) for key, value in point.params.items()} for point in self._asked]

    def _rounded(self, key: str, value: Any) -> Any:
        return value if value in self._exact[key] or not isinstance(value, float) else float(f"{value:.{DIGITS}g}")

    def tell(self, wers: Sequence[float | None]) -> None:
        """The WER of each point of the last batch; None if it failed."""
        for point, wer in zip(self._asked, wers, strict=True):
            self._study.tell(point, wer, state=self._failed if wer is None else None)


def _distribution(span: Span, whole: bool) -> Any:
    """A span in Optuna's form; a range of a setting that is a whole number is one of whole numbers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if span.choices:
        return CategoricalDistribution(span.choices)
    if whole:
        return IntDistribution(int(span.low), int(span.high), span.log)
    return FloatDistribution(span.low, span.high, span.log)


@dataclass(frozen=True)
class SearchPoint:
    """One point and what came of it."""

    values: Values
    trial: str  # name of its folder
    wer: float | None  # on split val, counts pooled over the levels; None if it failed
    failure: str = ""


@dataclass(eq=False)
class Hunt:
    """The search for one cell of the grid."""

    cell: Cell
    variant: str
    proposals: Proposals
    points: list[SearchPoint] = field(default_factory=list)

    @property
    def best(self) -> SearchPoint | None:
        """The lowest WER, the first of equals; None if all failed."""
        return min((p for p in self.points if p.wer is not None), key=lambda p: p.wer or 0.0, default=None)


def explore(hunts: Sequence[Hunt], read: Callable[[list[Asked]], list[SearchPoint]], note: Callable[[], None]) -> None:
    """Ask, read, tell, until nothing more is proposed; the batches of all cells are read together."""
    while batches := [(hunt, asked) for hunt in hunts if (asked := hunt.proposals.ask())]:
        points = iter(read([(changed(hunt.cell, values), values) for hunt, asked in batches for values in asked]))
        for hunt, asked in batches:
            batch = list(itertools.islice(points, len(asked)))
            hunt.proposals.tell([point.wer for point in batch])
            hunt.points += batch
        note()


def searched(grid: Grid, search: Search, run: Runner, engine: Engine, say: Say) -> tuple[Grid, list[str]]:
    """Search for every cell that the space concerns; the grid with the best point beside each, and who found none.

    Raises:
        UserError: the corpus has no split val, or a package is missing.
        TimeUp: as in `run_trials`.
    """
    wanted = zip(grid.cells, grid.variants, strict=True)
    hunts = [Hunt(c, variant, Proposals(search, c)) for c, variant in wanted if search.concerning(c)]

    def read(asked: list[Asked]) -> list[SearchPoint]:
        on_val = {"split": "val", "snr_db.test": search.snr_db}
        return _read(grid, [(changed(cell, on_val), values) for cell, values in asked], run, engine)

    explore(hunts, read, lambda: _note(hunts, search, paths.runs() / grid.name, say))
    what = "λ" if all(key.startswith("train.lambdas.") for key in search.space) else ", ".join(search.space)
    found: list[tuple[Cell, tuple[str, str]]] = []
    for cell, variant in zip(grid.cells, grid.variants, strict=True):
        hunt = next((hunt for hunt in hunts if hunt.cell is cell), None)
        found.append((cell, (variant, f"default {what}" if hunt else "")))
        if hunt and hunt.best:
            found.append((changed(cell, hunt.best.values), (variant, f"{what} searched")))
    variants = tuple(", ".join(filter(None, parts)) for _, parts in found)
    without_point = [
        f"{h.cell.label}: no point of its search succeeded: {h.points[-1].failure}" for h in hunts if not h.best
    ]
    return replace(grid, cells=tuple(cell for cell, _ in found), variants=variants), without_point


def _read(grid: Grid, asked: list[Asked], run: Runner, engine: Engine) -> list[SearchPoint]:
    """Train and evaluate points."""
    cells = tuple(cell for cell, _ in asked)
    letters = "+".join(dict.fromkeys(letter for cell in cells for letter in cell.letters))
    batch = replace(grid, cells=cells, baseline=f"{letters} -> T")  # a baseline that reads all: nothing is permuted
    materials = prepare_alone(cells, lambda line: None, engine.map)
    for corpus in (found.corpus for found in materials):
        if not corpus.split("val"):
            raise UserError(f"{corpus.folder} has no utterance of split val, which a search is read on; add some.")
    trials = [trial_of(cell, found, batch.baseline) for cell, found in zip(cells, materials, strict=True)]
    last = {trial.id: read_failures(trial.folder)[-1:] for trial in trials if not trial.trained}
    said = {name: f.message for name, found in last.items() for f in found if f.kind == "not_finite"}  # it would again
    said |= {name: failure.message for name, failure in run(batch, [t for t in trials if t.id not in said]).items()}
    return [SearchPoint(v, t.id, dev_wer(t), said.get(t.id, "")) for (_, v), t in zip(asked, trials, strict=True)]


def dev_wer(trial: Trial) -> float | None:
    """Errors per reference word over all evaluations of a trial; None while one is missing."""
    if not trial.trained or trial.pending:
        return None
    return pool(trial.folder_of(evaluation).result for evaluation in trial.evaluations).wer


def _note(hunts: Sequence[Hunt], search: Search, folder: Path, say: Say) -> None:
    """Write `search.csv`, a line for every point so far; say where each search stands."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["model", "template", "seed", "variant", "number", *search.space, "dev_wer", "status", "trial"])
    for hunt in hunts:
        cell, best = hunt.cell, hunt.best
        for number, point in enumerate(hunt.points):
            wer = "" if point.wer is None else f"{point.wer:.6f}"
            status = "best" if point is best else "done" if wer else f"failed: {point.failure}"
            row = [cell.backbone, cell.template, cell.seed, hunt.variant, number]
            row += [point.values.get(key, "") for key in search.space]
            rows.writerow([*row, wer, status, f"../trials/{point.trial}"])
        shown = [*(f"{key} {value}" for key, value in best.values.items()), f"WER {best.wer:.1%}"] if best else ["none"]
        so_far = f"{len(hunt.points)} of {search.points(cell)} points"
        say(f"search   {cell.label}: {so_far}, best on split val: {', '.join(shown)}")
    files.write_text(folder / "search.csv", table.getvalue())
