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
from dmlm.score.wer import NORMALISER
from dmlm.sweep import tasks
from dmlm.sweep.materials import Materials, check, prepare_alone, without
from dmlm.sweep.schedule import missing_cells, run_trials
from dmlm.sweep.trial import SCHEMA, Trial, trial_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class GridRun:
    """What came of running a grid."""

    grid: Grid  # with the cells that a search found
    folder: Path
    trials: tuple[Trial, ...]
    missing: tuple[str, ...]  # a line for each cell without all its results, with the reason
    only_mistakes: bool  # whether every reason is a mistake that the user can mend
    left_out: int  # cells that could not be prepared
    seconds: float

    @property
    def results(self) -> GridResults:
        """What is on disk of it now."""
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
    """Train and evaluate every cell of a grid that is not done yet; run again to continue.

    Args:
        grid: a grid, or its name as `dmlm grid run` takes it.
        overrides: changes such as `train.steps=200`, where `grid` is a name.
        engine: `local` (processes of this machine) or `ray` (a Ray cluster, of `address` or of this machine).
        workers: trials at a time; None: one a GPU, or one a core.
        gpu_share: GPUs that a trial takes (Ray).
        time_limit_s: after which trainings leave checkpoints and `TimeUp` is raised.
        say: is given a line now and then.

    Raises:
        UserError: a mistake in the grid, or something that a tokenizer lacks, before any work is done.
        TimeUp: the time limit is over; the same call continues.
    """
    started = time.monotonic()
    deadline = None if time_limit_s is None else started + time_limit_s
    if isinstance(grid, str):
        grid = read_grid_file(grid, overrides)
    if engine not in ("local", "ray"):
        raise UserError(f"There is no engine {engine!r}; {did_you_mean(engine, ('local', 'ray'))}.")
    check(grid.cells)
    processes_a_trial = max(cell.execution.data_parallel for cell in grid.cells)
    with open_engine(engine, workers, address, gpu_share, processes_a_trial) as opened:
        run_all = partial(run_trials, engine=opened, say=say, checkpoint_every_s=checkpoint_every_s, deadline=deadline)
        grid, not_searched = _searched(grid, run_all, opened, say)
        unprepared: dict[int, Exception] = {}
        materials = prepare_alone(grid.cells, say, opened.map, unprepared)
        grid, not_prepared = without(grid, unprepared)
        trials = [trial_of(c, m, grid.baseline) for c, m in zip(grid.cells, materials, strict=True)]
        _say_what_is_not_reused(trials, say)
        results = index_of(grid, materials, trials)
        write_grid(results)
        failures = run_all(grid, trials)
    mistakes = [failure.kind == "user_error" for failure in failures.values()]
    mistakes += [isinstance(error, UserError) for error in unprepared.values()]
    missing = (*not_searched, *not_prepared, *missing_cells(trials, failures))
    only_mistakes = bool(mistakes) and all(mistakes)
    seconds = time.monotonic() - started
    return GridRun(grid, results.folder, tuple(trials), missing, only_mistakes, len(not_prepared), seconds)


def _searched(
    grid: Grid, run_all: Callable[[Grid, Sequence[Trial]], dict[str, Failure]], engine: Engine, say: Say
) -> tuple[Grid, list[str]]:
    """The grid with the cells that its search found, and a line for each cell for which none succeeded."""
    if not grid.search:
        return grid, []
    from dmlm.sweep.search import searched

    return searched(grid, grid.search, run_all, engine, say)


def _say_what_is_not_reused(trials: Sequence[Trial], say: Say) -> None:
    """Say once if an earlier version finished trials that would be used if it had been this one."""
    if all(trial.trained for trial in trials):
        return
    older = [folder for folder in trial_folders(paths.runs()) if folder.result and folder.spec.get("schema") != SCHEMA]
    if older:
        say(
            f"earlier  {len(older)} finished trials of an earlier version are not reused, because its recipes had other"
            " identities; tables and figures of their grids are still drawn, and the folders may be removed."
        )


def index_of(grid: Grid, materials: Sequence[Materials], trials: Sequence[Trial]) -> GridResults:
    """What `grid.json` says of a grid: which folders it is made of, and of each cell its corpus and tokenizers."""
    folder = paths.runs() / grid.name
    cells = []
    for trial, own, variant in zip(trials, materials, grid.variants, strict=True):
        cell, card = trial.cell, own.corpus.card
        cells.append(
            GridCell(
                model=cell.backbone,
                template=cell.template,
                seed=cell.seed,
                label=cell.label,
                variant=variant,
                corpus=CorpusCard(**{key: card.get(key, "not recorded") for key in CorpusCard.__dataclass_fields__}),
                tokenizers={letter: cell.tokenizers[letter].recipe for letter in cell.letters},
                noise=cell.noise.model_dump(mode="json"),
                steps=cell.train.steps,
                settings=cell.model_dump(mode="json", exclude={"execution"}),
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
        normaliser=NORMALISER,
        baseline=grid.baseline,
        cells=tuple(cells),
    )


def prepare(cell: Cell, baseline: str = "A -> T", say: Say = lambda line: None) -> tuple[Trial, Materials]:
    """Make everything that one cell needs up to its tokens, or find it; nothing is trained.

    Raises:
        UserError: a wrong setting, or something that a tokenizer lacks.
    """
    check([cell])
    (materials,) = prepare_alone([cell], say)
    return trial_of(cell, materials, baseline), materials


def train(trial: Trial, checkpoint_every_s: float = 30.0) -> None:
    """Train a trial in this process, from its last checkpoint if there is one; nothing if it is trained.

    Raises:
        Busy: another process trains it.
    """
    tasks.train(tasks.task_of(trial, "A -> T", (), checkpoint_every_s))


def evaluate(trial: Trial, baseline: str = "A -> T") -> None:
    """Run the evaluations of a trained trial that are missing, in this process.

    Raises:
        Busy: another process runs some of them.
    """
    names = tuple(trial.name_of(evaluation) for evaluation in trial.pending)
    tasks.evaluate(tasks.task_of(trial, baseline, names, 30.0))


def load_results(name: str) -> GridResults:
    """The results of a grid, finished or not, by its name or its folder.

    Raises:
        UserError: no such grid.
    """
    return read_grid(results_folder(name))


def results_folder(name: str) -> Path:
    """Folder of a grid that was run, by its name or its path.

    Raises:
        UserError: no such grid; the message names the nearest.
    """
    for folder in (paths.runs() / name.replace(":", "_"), Path(name)):
        if is_grid(folder):
            return folder
    if name.partition(":")[0] in recipes.names("sweeps"):
        raise UserError(f"Grid {name!r} has not been run in {paths.home()}; run: dmlm grid run {name}")
    known = [folder.name for folder in grid_folders(paths.runs())]
    raise UserError(f"There is no grid {name!r} in {paths.runs()}; {did_you_mean(name, known)}.")
