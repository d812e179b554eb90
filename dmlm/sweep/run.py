"""Run a grid: prepare, train and evaluate what is missing, write the index, draw the figures.

The folders are the truth: a trial or an evaluation is done when its `result.json` exists, which is written last.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from dmlm import places, workers
from dmlm.errors import UserError
from dmlm.model.pretrained import family_of
from dmlm.score.wer import NORMALISER
from dmlm.sweep.grid import Cell, Grid
from dmlm.sweep.materials import Materials, prepare
from dmlm.sweep.trial import Evaluation, Trial, evaluations_of, training_spec, trial_folder
from dmlm.sweep.watch import Watch

LOCK_S = 10.0


def plan(grid: Grid, materials: Materials, cells: Sequence[Cell] | None = None) -> list[Trial]:
    """The trials of a grid (or of some of its cells), in its order."""
    runs, trials = places.home() / "runs", []
    for cell in grid.cells if cells is None else cells:
        conditions = materials.train_conditions[: cell.train.draws]
        spec = training_spec(
            cell, grid, materials.corpus.digest, materials.text.digest, materials.fingerprints, conditions
        )
        evaluations = evaluations_of(cell, grid, materials.test_conditions)
        trials.append(Trial(cell, spec, trial_folder(runs, cell, spec), evaluations))
    return trials


def done(folder: Path) -> bool:
    """Whether the trial or evaluation in this folder has its result."""
    return (folder / "result.json").is_file()


def write_index(grid: Grid, materials: Materials, trials: list[Trial]) -> Path:
    """`runs/GRID/grid.json`: which folders the grid is made of. Figures are drawn from it."""
    folder = places.home() / "runs" / grid.name
    cells = [
        {
            "model": trial.cell.backbone,
            "template": trial.cell.template.notation,
            "seed": trial.cell.seed,
            "label": trial.cell.label,
            "trial": f"../trials/{trial.id}",
            "evaluations": [
                {
                    "snr_db": "clean" if e.condition.clean else e.condition.snrs_db[0],
                    "permuted": e.permuted,
                    "draw": e.draw,
                    "folder": f"../trials/{trial.id}/evals/{e.folder_name(grid)}",
                }
                for e in trial.evaluations
            ],
        }
        for trial in trials
    ]
    card = {key: materials.corpus.card[key] for key in ("name", "version", "licence", "digest", "utterances")}
    index = {
        "schema": 1,
        "name": grid.name,
        "corpus": card,
        "normaliser": NORMALISER,
        "noise": grid.noise.model_dump(mode="json"),
        "readers": {letter: source.spec.recipe for letter, source in materials.sources.items()},
        "baseline": grid.baseline,
        "cells": cells,
    }
    places.write_text(folder / "grid.json", json.dumps(index, indent=1) + "\n")
    return folder


def pending(trial: Trial, grid: Grid) -> list[Evaluation]:
    """Evaluations of a trial that have no result yet."""
    return [e for e in trial.evaluations if not done(trial.folder / "evals" / e.folder_name(grid))]


def run_trials(
    grid: Grid, materials: Materials, trials: list[Trial], say: Callable[[str], None], checkpoint_every_s: float
) -> None:
    """Train and evaluate what is missing: on a CPU one trial per core, each on one thread; on CUDA one at a time.

    One thread per trial wastes no time on synchronisation, which dominates at this size, and makes results independent
    of the number of cores.
    """
    left = [n for n, trial in enumerate(trials) if not done(trial.folder) or pending(trial, grid)]
    for number, trial in enumerate(trials):
        say(f"model    {trial.cell.label:<12} {'to do' if number in left else 'done '}  {trial.folder}")
    if not left:
        return
    # longest first: no long training is left to run alone at the end
    order = sorted(left, key=lambda number: -_effort(trials[number].cell))
    jobs = [(grid.model_dump_json(by_alias=True), number, checkpoint_every_s) for number in order]
    with Watch([trials[number] for number in left], grid):
        for _ in workers.run(_run_one, jobs, 1 if has_cuda() else min(len(jobs), workers.count())):
            pass


def _effort(cell: Cell) -> float:
    """Rough cost of a training, for the order of work only; a step of Mamba costs about two of OPT on a CPU."""
    step = cell.train.batch_size * len(cell.template.letters) * (2 if family_of(cell.backbone) == "mamba" else 1)
    return cell.train.steps * step


def has_cuda() -> bool:
    """Whether there is a CUDA device, without loading torch into this process."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _run_one(job: tuple[str, int, float]) -> None:
    """One trial, in a process of its own; it finds everything by name."""
    from dmlm.sweep.execute import evaluate_conditions, train_cell  # torch is loaded only in the worker

    grid, trial, materials = _opened(job)
    trial.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(trial.folder / ".lock", timeout=LOCK_S):
            if not done(trial.folder):
                if grid.execution.data_parallel > 1:
                    _train_together(job, grid.execution.data_parallel)
                else:
                    train_cell(trial, grid, materials, job[2])
            evaluate_conditions(trial, pending(trial, grid), grid, materials)
    except Timeout:
        raise UserError(f"{trial.folder} is being worked on by another process; wait for it, or stop it.") from None


def _train_together(job: tuple[str, int, float], processes: int) -> None:
    """The training of a trial in several processes, as `torchrun` would start them."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, _train_share)(job)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message.get("message", "") if isinstance(failure.message, dict) else failure.message
        raise UserError(f"Process {rank} of a data-parallel training failed: {message}") from None


def _train_share(job: tuple[str, int, float]) -> None:
    """What each of those processes does; the first writes the files."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from dmlm.sweep.execute import train_cell

    def train() -> None:
        grid, trial, materials = _opened(job)
        train_cell(trial, grid, materials, job[2])

    record(train)()


def _opened(job: tuple[str, int, float]) -> tuple[Grid, Trial, Materials]:
    """The grid, trial and materials that a job names."""
    grid = Grid.model_validate_json(job[0])
    cell = grid.cells[job[1]]
    materials = prepare(grid, lambda line: None, cell.template.letters)
    (trial,) = plan(grid, materials, [cell])
    return grid, trial, materials
