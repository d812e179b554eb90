"""Run a grid: prepare, train and evaluate what is missing, and say of each cell that failed why.

The folders are the truth: a trial or an evaluation is done when its `result.json` exists, which is written last. So
tasks may be lost, repeated, or done by somebody else, and nothing is.
"""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dmlm.engines.base import REPLACEMENTS, Engine, LostWorker, Outcome
from dmlm.engines.lease import Busy
from dmlm.errors import OutOfMemory
from dmlm.model.pretrained import family_of
from dmlm.plan.cell import Cell
from dmlm.plan.grid import Grid
from dmlm.results.failures import Failure, record_failure
from dmlm.sweep import tasks
from dmlm.sweep.failure_kinds import failure_kind
from dmlm.sweep.trial import Trial
from dmlm.sweep.watch import Watch

LOOK_AGAIN_S = 3.0  # at what another process works on
LOOKS = 40  # for a result that a worker has written: a network file system may show it late
EVALUATIONS_PER_TASK = 16


class TimeUp(Exception):
    """The time limit of this run is over; checkpoints are written."""


@dataclass(order=True)
class _Task:
    """Training of a trial, or some of its evaluations."""

    not_before: float
    order: int
    trial: Trial = field(compare=False)
    evaluations: tuple[str, ...] = field(default=(), compare=False)  # folder names; none: the training
    losses: int = field(default=0, compare=False)
    looks: int = field(default=0, compare=False)  # at what another process has, or has written
    micro_tokens: int | None = field(default=None, compare=False)  # set once memory was too small

    @property
    def name(self) -> str:
        return f"{self.trial.cell.label}, {'evaluation' if self.evaluations else 'training'}"

    def done(self) -> bool:
        """Whether somebody finished it, however this attempt went."""
        pending = {self.trial.name_of(e) for e in self.trial.pending}
        return not pending & set(self.evaluations) if self.evaluations else self.trial.trained


class Sweep:
    """What is left of a grid, on its way through an engine."""

    def __init__(self, grid: Grid, trials: Sequence[Trial], engine: Engine, say: Callable[[str], None]) -> None:
        self.grid, self.engine, self.say = grid, engine, say
        self.failures: dict[str, Failure] = {}  # as `run_trials` returns them
        self._sharing: dict[str, list[Trial]] = {}  # cells that are one model, by its id
        self._waiting: list[_Task] = []
        self._running: dict[int, _Task] = {}
        for trial in trials:
            self._sharing.setdefault(trial.id, []).append(trial)
        first = [cells[0] for cells in self._sharing.values()]
        for trial in sorted(first, key=lambda trial: -_effort(trial.cell)):  # no long one is left to the end
            self._enter(trial)

    def _enter(self, trial: Trial) -> None:
        """Queue the training, or once that is done the evaluations of every cell that is this model."""
        trial = next((cell for cell in self._sharing[trial.id] if not cell.trained), trial)  # lacks a model it needs
        if not trial.trained:
            heapq.heappush(self._waiting, _Task(0.0, len(self._waiting), trial))
            return
        queued: set[str] = set()
        for cell in self._sharing[trial.id]:
            names = [name for e in cell.pending if (name := cell.name_of(e)) not in queued]
            queued.update(names)
            for start in range(0, len(names), EVALUATIONS_PER_TASK):
                task = _Task(
                    0.0, -1, cell, tuple(names[start : start + EVALUATIONS_PER_TASK])
                )  # a finished cell is worth more
                heapq.heappush(self._waiting, task)

    def run(self, checkpoint_every_s: float, deadline: float | None) -> None:
        """Until everything is done or has failed.

        Raises:
            TimeUp: the deadline (of `time.monotonic`) is over.
            KeyboardInterrupt: on Ctrl-C. In both cases checkpoints are written and the same command continues.
        """
        while self._waiting or self._running:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeUp
            self._submit(checkpoint_every_s)
            if not self._running:
                time.sleep(0.2)  # only what other processes work on is left
            for outcome in self.engine.ended(1.0):
                self._settle(self._running.pop(outcome.task), outcome)

    def _submit(self, checkpoint_every_s: float) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0].not_before <= now and self.engine.room > 0:
            task = heapq.heappop(self._waiting)
            if task.done():
                self._follow(task)
                continue
            job = tasks.task_of(task.trial, self.grid.baseline, task.evaluations, checkpoint_every_s, task.micro_tokens)
            self._running[self.engine.submit(tasks.evaluate if task.evaluations else tasks.train, job)] = task

    def _follow(self, task: _Task) -> None:
        if not task.evaluations:
            self._enter(task.trial)

    def _settle(self, task: _Task, outcome: Outcome) -> None:
        error = outcome.error
        if task.done():
            self._follow(task)
        elif isinstance(error, Busy) or (error is None and task.looks < LOOKS):
            if error and not task.looks:
                self.say(f"{task.name}: {error}; waiting for it.")
            task.looks += 1
            heapq.heappush(self._waiting, _later(task, LOOK_AGAIN_S))
        elif isinstance(error, LostWorker | KeyboardInterrupt) and task.losses < REPLACEMENTS:
            task.losses += 1
            self._again(task, error, str(error) or "its worker was asked to end")
        elif isinstance(error, OutOfMemory) and task.micro_tokens is None:
            task.micro_tokens = max(1, error.args[0] // 2)
            self._again(task, error, f"{error} Trying once with execution.micro_tokens={task.micro_tokens}")
        else:
            why = (str(error) or repr(error)) if error else "it ended, but its result cannot be seen from here"
            failure = record_failure(task.trial.folder, failure_kind(error), why, outcome.trace, again=False)
            failed = (f"{task.trial.id}/{evaluation}" for evaluation in task.evaluations)
            self.failures |= dict.fromkeys([task.trial.id, *failed], failure)
            self.say(f"{task.name} failed ({failure.kind}): {failure.message}")

    def _again(self, task: _Task, error: BaseException, why: str) -> None:
        self.say(f"{task.name}: {why}; starting it again.")
        record_failure(task.trial.folder, failure_kind(error), why, "", again=True)
        heapq.heappush(self._waiting, _later(task, 0.0))


def _later(task: _Task, seconds: float) -> _Task:
    task.not_before = time.monotonic() + seconds
    return task


def run_trials(
    grid: Grid,
    trials: Sequence[Trial],
    engine: Engine,
    say: Callable[[str], None],
    checkpoint_every_s: float,
    deadline: float | None = None,
) -> dict[str, Failure]:
    """Train and evaluate what is missing. One failing cell never stops the others.

    Returns the failures: by id of the trial the last of each, and by ID/EVALUATION those of what was to be evaluated.
    """
    left = []
    for trial in trials:
        to_do = not trial.trained or bool(trial.pending)
        left += [trial] if to_do else []
        say(f"model    {trial.cell.label:<12} {'to do' if to_do else 'done '}  {trial.folder}")
    if not left:
        return {}
    sweep = Sweep(grid, left, engine, say)
    with Watch(left):
        sweep.run(checkpoint_every_s, deadline)
    return sweep.failures


def _effort(cell: Cell) -> float:
    """Rough cost of a training, for the order of work only."""
    step = cell.train.batch_size * len(cell.letters) * family_of(cell.backbone).relative_cost
    return cell.train.steps * step


def missing_cells(trials: Sequence[Trial], failures: dict[str, Failure]) -> list[str]:
    """Every cell that is missing, and why, in a line each."""
    lines = []
    for trial in trials:
        if not trial.trained or trial.pending:
            keys = (*(f"{trial.id}/{trial.name_of(evaluation)}" for evaluation in trial.pending), trial.id)
            why = next((failures[key].message for key in keys if key in failures), "not finished")
            lines.append(f"{trial.cell.label}: {why}")
    return lines
