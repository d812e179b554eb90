"""The Python API: what the command line does, as functions for a notebook or a script.

    from dmlm.sweep.api import run_grid
    run = run_grid("modalities:small", ["train.steps=400"])
    print(run.missing)
    results = run.results          # a dmlm.results.grid.GridResults

`prepare`, `train` and `evaluate` are the parts of it, for one cell at a time in this process.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dmlm import paths, recipes
from dmlm.engines.base import Engine
from dmlm.engines.choice import open_engine
from dmlm.errors import UserError, did_you_mean
from dmlm.plan.cell import Cell
from dmlm.plan.grid import Grid, read_grid_file
from dmlm.results.failures import Failure
from dmlm.results.folders import trial_folders
from dmlm.results.grid import (
    CorpusCard,
    GridCell,
    GridEvaluation,
    GridResults,
    grid_folders,
    is_grid,
    read_grid,
    write_grid,
)
from dmlm.score.normalisers import NORMALISERS
from dmlm.sweep import tasks
from dmlm.sweep.materials import Materials, drop_failed
from dmlm.sweep.parts import noise_notes
from dmlm.sweep.preparation import prepare_under_lease
from dmlm.sweep.requirements import check
from dmlm.sweep.schedule import missing_cells, run_trials
from dmlm.sweep.trial import SCHEMA, Trial, trial_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class GridRun:
    """The outcome of running a grid."""

    grid: Grid  # with the cells that a search added, without those that could not be prepared
    folder: Path
    trials: tuple[Trial, ...]
    missing: tuple[str, ...]  # a line for each cell with incomplete results, and why
    only_mistakes: bool  # whether every failure is a `UserError`, which the user can fix
    left_out: int  # number of cells that could not be prepared
    seconds: float

    @property
    def results(self) -> GridResults:
        """The results on disk, as far as they are finished now."""
        return read_grid(self.folder)


def run_grid(
    grid: Grid | str,
    overrides: Sequence[str] = (),
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpu_share: float = 1.0,
    checkpoint_every_s: float = 30.0,
    time_limit_s: float | None = None,
    say: Say = print,
) -> GridRun:
    """Train and evaluate every cell of a grid that is not finished. Call it again to continue.

    Args:
        grid: a grid, or its name as in `dmlm grid run`.
        overrides: changes such as `train.steps=200`, used only if `grid` is a name.
        engine: `local` (processes on this machine) or `ray` (the Ray cluster at `address`, or one on this machine).
        workers: trials at a time; None: one per GPU, or else one per core.
        gpu_share: GPUs per trial (Ray only).
        checkpoint_every_s: seconds between checkpoints.
        time_limit_s: after this many seconds, checkpoints are written and `TimeUp` is raised.
        say: called with a line of progress now and then.

    Raises:
        UserError: a wrong setting, or a package or weights that a tokenizer lacks; raised before any work is done.
        TimeUp: the time limit is over; the same call continues the work.
    """
    started = time.monotonic()
    deadline = None if time_limit_s is None else started + time_limit_s
    if isinstance(grid, str):
        grid = read_grid_file(grid, overrides)
        for note in grid.notes:
            say(note)
    if engine not in ("local", "ray"):
        raise UserError(f"There is no engine {engine!r}; {did_you_mean(engine, ('local', 'ray'))}.")
    check(grid.cells)
    for note in noise_notes(grid.cells):
        say(note)
    processes_per_trial = max(cell.execution.data_parallel for cell in grid.cells)
    with open_engine(engine, workers, address, gpu_share, processes_per_trial) as opened:
        run_all = partial(run_trials, engine=opened, say=say, checkpoint_every_s=checkpoint_every_s, deadline=deadline)
        grid, search_failures = _run_search(grid, run_all, opened, say)
        preparation_errors: dict[int, Exception] = {}
        materials = prepare_under_lease(grid.cells, say, opened.map, preparation_errors)
        grid, preparation_failures = drop_failed(grid, preparation_errors)
        trials = [trial_of(c, m, grid.baseline) for c, m in zip(grid.cells, materials, strict=True)]
        _report_older_trials(trials, say)
        results = index_of(grid, materials, trials)
        write_grid(results)
        failures = run_all(trials)
    is_mistake = [failure.kind == "user_error" for failure in failures.values()]
    is_mistake += [isinstance(error, UserError) for error in preparation_errors.values()]
    missing = (*search_failures, *preparation_failures, *missing_cells(trials, failures))
    only_mistakes = bool(is_mistake) and all(is_mistake)
    seconds = time.monotonic() - started
    return GridRun(grid, results.folder, tuple(trials), missing, only_mistakes, len(preparation_failures), seconds)


def _run_search(
    grid: Grid, run_all: Callable[[Sequence[Trial]], dict[str, Failure]], engine: Engine, say: Say
) -> tuple[Grid, list[str]]:
    """Run the search of a grid, if it has one. Return the grid with the best points as cells, and a line per failed search."""
    if not grid.search:
        return grid, []
    from dmlm.sweep.search import search_grid

    return search_grid(grid, grid.search, run_all, engine, say)


def _report_older_trials(trials: Sequence[Trial], say: Say) -> None:
    """Say that finished trials of an earlier version are not reused, if there are any and work is left to do."""
    if all(trial.trained for trial in trials):
        return
    older = [
        folder
        for folder in trial_folders(paths.runs())
        if folder.result and folder.spec_if_written.get("schema") != SCHEMA
    ]
    if older:
        say(
            f"earlier  {len(older)} finished trials of an earlier version are not reused, because its recipes had other"
            " identities; tables and figures of their grids are still drawn, and the folders may be removed."
        )


def index_of(grid: Grid, materials: Sequence[Materials], trials: Sequence[Trial]) -> GridResults:
    """Return the index of a grid, as written to `grid.json`: the folders, corpus, tokenizers and settings of each cell."""
    folder = paths.runs() / grid.name
    cells = []
    for trial, cell_materials, variant in zip(trials, materials, grid.variants, strict=True):
        cell, corpus = trial.cell, cell_materials.corpus
        cells.append(
            GridCell(
                model=cell.backbone,
                template=cell.template,
                seed=cell.seed,
                label=cell.label,
                variant=variant,
                corpus=CorpusCard.of(corpus.card | _counts(cell_materials, cell)),
                normaliser=str(NORMALISERS[cell.corpus.normaliser]),
                tokenizers={letter: cell.tokenizers[letter].recipe for letter in cell.letters},
                noise=cell.noise.model_dump(mode="json"),
                steps=cell.train.steps,
                settings=cell.model_dump(mode="json", exclude={"execution": True, "corpus": {"left_out"}}),
                trial=trial.stored,
                evaluations=tuple(
                    GridEvaluation(e.snr_db, e.permuted, e.draw, trial.folder_of(e)) for e in trial.evaluations
                ),
            )
        )
    return GridResults(
        folder=folder,
        name=grid.name,
        about=grid.about,
        baseline=grid.baseline,
        cells=tuple(cells),
    )


def _counts(materials: Materials, cell: Cell) -> dict[str, Any]:
    """Return how many utterances of a corpus a cell uses, leaves out, and reads with an empty segment."""
    corpus = materials.corpus
    counts: dict[str, Any] = {"utterances": corpus.counts, "left_out": corpus.left_out_counts}
    counts["folds"] = corpus.card.get("folds") if cell.corpus.fold is not None else None
    return counts | {
        "lacking": corpus.lacking_counts([materials.sources[letter].encoder.media for letter in cell.letters])
    }


def prepare(cell: Cell, baseline: str = "A -> T", say: Say = lambda line: None) -> tuple[Trial, Materials]:
    """Make the materials of one cell, up to its tokens; existing parts are reused. Trains nothing.

    Raises:
        UserError: a wrong setting, or a package or weights that a tokenizer lacks.
    """
    check([cell])
    (materials,) = prepare_under_lease([cell], say)
    return trial_of(cell, materials, baseline), materials


def train(trial: Trial, checkpoint_every_s: float = 30.0) -> None:
    """Train a trial in this process, from its last checkpoint if there is one. A trained trial stays as it is.

    Raises:
        Busy: another process is training it.
    """
    tasks.train(tasks.task_of(trial, (), checkpoint_every_s))


def evaluate(trial: Trial) -> None:
    """Run the missing evaluations of a trained trial in this process.

    Raises:
        Busy: another process is running some of them.
    """
    names = tuple(trial.name_of(evaluation) for evaluation in trial.pending)
    tasks.evaluate(tasks.task_of(trial, names, 30.0))


def load_results(name: str) -> GridResults:
    """Read the results of a grid, finished or not, by its name or its folder.

    Raises:
        UserError: no such grid.
    """
    return read_grid(results_folder(name))


def results_folder(name: str) -> Path:
    """Return the folder of a grid that was run, by its name or its path.

    Raises:
        UserError: no such grid; the sentence suggests the nearest name.
    """
    for folder in (paths.runs() / name.replace(":", "_"), Path(name)):
        if is_grid(folder):
            return folder
    if "/" in name:
        return Path(name)  # whoever reads it names the file that is not there
    if name.partition(":")[0] in recipes.names("sweeps"):
        raise UserError(f"Grid {name!r} has not been run in {paths.home()}; run: dmlm grid run {name}")
    known = [folder.name for folder in grid_folders(paths.runs())]
    raise UserError(f"There is no grid {name!r} in {paths.runs()}; {did_you_mean(name, known)}.")
