"""The tasks of a worker: train one trial, or run some of its evaluations. A task is plain data, so that it can be sent."""

import signal
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from dmlm.engines.lease import Busy, Leases
from dmlm.errors import UserError
from dmlm.plan.cell import Cell
from dmlm.sweep.materials import Materials, materials_key, prepare
from dmlm.sweep.trial import Trial, trial_of
from dmlm.tokens import encoding

Task = dict[str, Any]
_leases = Leases()
_last_materials: dict[str, Materials] = {}  # of the previous task only, by the settings that it depends on


def task_of(
    trial: Trial,
    evaluations: tuple[str, ...],
    checkpoint_every_s: float,
    micro_tokens: int | None = None,
) -> Task:
    """Build the task that `train` and `evaluate` take.

    Args:
        evaluations: names of the evaluations to run; empty for a training.
        micro_tokens: replaces the cell's `execution.micro_tokens`, on which no result depends.
    """
    cell = trial.cell
    if micro_tokens is not None:
        cell = cell.model_copy(update={"execution": replace(cell.execution, micro_tokens=micro_tokens)})
    return {
        "cell": cell.model_dump_json(),
        "baseline": trial.baseline,
        "trial": trial.id,
        "evaluations": evaluations,
        "checkpoint_every_s": checkpoint_every_s,
    }


def train(task: Task) -> None:
    """Train a trial, from its last checkpoint if there is one.

    Raises:
        Busy: another process is training it.
    """
    from dmlm.sweep.train_trial import train_trial  # torch is loaded only in the worker

    trial, materials = opened(task)
    with _leases.hold(trial.stored.training_lease):
        if trial.trained:
            return
        if trial.stored.result and trial.stored.result.model_elsewhere:
            raise UserError(
                f"{trial.cell.label} was trained on another machine, and its model is not here, which a new test needs; move"
                f" {trial.folder} away to train it here, tests included."
            )
        if trial.cell.execution.data_parallel > 1:
            _train_together(task, trial.cell.execution.data_parallel)
        else:
            train_trial(trial, materials, task["checkpoint_every_s"])


def evaluate(task: Task) -> None:
    """Run the evaluations of a task that are still pending, each under its own lease.

    Raises:
        Busy: another process is running some of them; the others are finished.
    """
    from dmlm.sweep.evaluate_trial import evaluate_trial

    trial, materials = opened(task)
    leased, busy = set(), None
    with ExitStack() as leases:
        for evaluation in trial.pending:
            name = trial.name_of(evaluation)
            if name in task["evaluations"]:
                try:
                    leases.enter_context(_leases.hold(trial.stored.evaluation_lease(name)))
                    leased.add(evaluation)
                except Busy as error:
                    busy = error
        if pending := [
            evaluation for evaluation in trial.pending if evaluation in leased
        ]:  # read again: under the lease no other process can finish it
            evaluate_trial(trial, pending, materials)
    if busy:
        raise busy


def _train_together(task: Task, processes: int) -> None:
    """Train a trial in several processes, as `torchrun` would start them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
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
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        elastic_launch(config, _train_share)(task)
    except SignalException:
        raise KeyboardInterrupt from None  # the processes have been told, and left their checkpoint
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message.get("message", "") if isinstance(failure.message, dict) else failure.message
        raise UserError(f"Process {rank} of a data-parallel training failed: {message}") from None
    finally:
        for number, handler in handlers.items():  # the launcher does not restore them
            signal.signal(number, handler)


def _train_share(task: Task) -> None:
    """Train in one process of a data-parallel training; the first process writes the files."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from dmlm.sweep.train_trial import train_trial

    def train() -> None:
        trial, materials = opened(task)
        train_trial(trial, materials, task["checkpoint_every_s"])

    record(train)()


def opened(task: Task) -> tuple[Trial, Materials]:
    """Return the trial of a task, and its materials.

    Raises:
        UserError: the corpus or the tokens have changed since the task was made.
    """
    cell = Cell.model_validate_json(task["cell"])
    materials = _materials(cell)
    trial = trial_of(cell, materials, task["baseline"])
    if trial.id != task["trial"]:
        raise UserError(
            f"{task['trial']} is now {trial.id}: its corpus or tokens changed meanwhile; run the grid again."
        )
    return trial, materials


def _materials(cell: Cell) -> Materials:
    """Return the materials of the previous task if this cell shares them; otherwise open them."""
    key = f"{materials_key(cell)} {cell.letters} {cell.train.draws}"
    if key not in _last_materials:
        _last_materials.clear()
        _last_materials[key] = prepare([cell])[0]
    encoding.release_encoder()
    return _last_materials[key]
