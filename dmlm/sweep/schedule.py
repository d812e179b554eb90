"""Train and evaluate what is missing of a grid, on an engine, and report why a cell failed.

The folders alone decide what is done: a trial or an evaluation is finished when its `result.json` exists, which is
written last. So a task may be lost, run twice or be finished by another process, without loss or double results.
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
from dmlm.results.failures import Failure, record_failure
from dmlm.sweep import tasks
from dmlm.sweep.failure_kinds import failure_kind
from dmlm.sweep.trial import Trial
from dmlm.sweep.watch import Watch

RECHECK_S = 3.0  # wait before a task is tried again that another process holds, or whose result is not visible
MAX_RECHECKS = 40  # for the result of a finished task: a network file system may show it late
EVALUATIONS_PER_TASK = 16


class TimeUp(Exception):
    """Raised when the time limit of a run is over; checkpoints are written."""


@dataclass(order=True)
class _Task:
    """The training of a trial, or some of its evaluations. Ordered by time, then by priority (lower first)."""

    not_before: float
    order: int
    trial: Trial = field(compare=False)
    evaluations: tuple[str, ...] = field(default=(), compare=False)  # folder names; empty: the training
    losses: int = field(default=0, compare=False)  # workers that died
    rechecks: int = field(default=0, compare=False)  # waits for another process, or for a result to show
    micro_tokens: int | None = field(default=None, compare=False)  # set after an out-of-memory error

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.trial.cell.label}, {'evaluation' if self.evaluations else 'training'}"

    def done(self) -> bool:
        """Whether its results are on disk, whichever process wrote them."""
        pending = {self.trial.name_of(e) for e in self.trial.pending}
        return not pending & set(self.evaluations) if self.evaluations else self.trial.trained


class Sweep:
    """The queue of tasks of one run of a grid, and its failures."""

    def __init__(self, trials: Sequence[Trial], engine: Engine, say: Callable[[str], None]) -> None:
        self.engine, self.say = engine, say
        self.failures: dict[str, Failure] = {}  # see `run_trials`
        self._trials_by_id: dict[str, list[Trial]] = {}  # cells that differ only in tests share an id
        self._waiting: list[_Task] = []
        self._running: dict[int, _Task] = {}
        for trial in trials:
            self._trials_by_id.setdefault(trial.id, []).append(trial)
        unique = [same_model[0] for same_model in self._trials_by_id.values()]
        for trial in sorted(unique, key=lambda trial: -_effort(trial.cell)):  # longest first, to end together
            self._enqueue(trial)

    def _enqueue(self, trial: Trial) -> None:
        """Queue the training of a model or, if it is trained, the pending evaluations of every cell that shares it."""
        same_model = self._trials_by_id[trial.id]
        trial = next((other for other in same_model if not other.trained), trial)  # any cell may lack its model
        if not trial.trained:
            heapq.heappush(self._waiting, _Task(0.0, len(self._waiting), trial))
            return
        queued: set[str] = set()
        for other in same_model:
            names = [name for e in other.pending if (name := other.name_of(e)) not in queued]
            queued.update(names)
            for start in range(0, len(names), EVALUATIONS_PER_TASK):
                some_names = tuple(names[start : start + EVALUATIONS_PER_TASK])
                heapq.heappush(self._waiting, _Task(0.0, -1, other, some_names))  # -1: before any training

    def run(self, checkpoint_every_s: float, deadline: float | None) -> None:
        """Work until every task is done or has failed.

        Raises:
            TimeUp: the deadline (a `time.monotonic` value) has passed.
            KeyboardInterrupt: on Ctrl-C. In both cases checkpoints are written and the same command continues.
        """
        while self._waiting or self._running:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeUp
            self._submit(checkpoint_every_s)
            if not self._running:
                time.sleep(0.2)  # all remaining tasks wait for other processes
            for outcome in self.engine.ended(1.0):
                self._handle(self._running.pop(outcome.task), outcome)

    def _submit(self, checkpoint_every_s: float) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0].not_before <= now and self.engine.free_slots > 0:
            task = heapq.heappop(self._waiting)
            if task.done():
                self._enqueue_evaluations(task)
                continue
            job = tasks.task_of(task.trial, task.evaluations, checkpoint_every_s, task.micro_tokens)
            self._running[self.engine.submit(tasks.evaluate if task.evaluations else tasks.train, job)] = task

    def _enqueue_evaluations(self, task: _Task) -> None:
        """After a training, queue the evaluations; after evaluations, nothing follows."""
        if not task.evaluations:
            self._enqueue(task.trial)

    def _handle(self, task: _Task, outcome: Outcome) -> None:
        """Decide what follows the end of a task: its evaluations, another attempt, or a recorded failure."""
        error = outcome.error
        if task.done():
            self._enqueue_evaluations(task)
        elif isinstance(error, Busy) or (error is None and task.rechecks < MAX_RECHECKS):
            if error and not task.rechecks:
                self.say(f"{task.name}: {error}; waiting for it.")
            task.rechecks += 1
            self._push(task, RECHECK_S)
        elif isinstance(error, LostWorker | KeyboardInterrupt) and task.losses < REPLACEMENTS:
            task.losses += 1
            self._retry(task, error, str(error) or "its worker was asked to end")
        elif isinstance(error, OutOfMemory) and task.micro_tokens is None:
            task.micro_tokens = max(1, error.args[0] // 2)
            self._retry(task, error, f"{error} Trying once with execution.micro_tokens={task.micro_tokens}")
        else:
            why = (str(error) or repr(error)) if error else "it ended, but its result cannot be seen from here"
            failure = record_failure(task.trial.folder, failure_kind(error), why, outcome.trace, again=False)
            keys = (f"{task.trial.id}/{evaluation}" for evaluation in task.evaluations)
            self.failures |= dict.fromkeys([task.trial.id, *keys], failure)
            self.say(f"{task.name} failed ({failure.kind}): {failure.message}")

    def _retry(self, task: _Task, error: BaseException, why: str) -> None:
        self.say(f"{task.name}: {why}; starting it again.")
        record_failure(task.trial.folder, failure_kind(error), why, "", again=True)
        self._push(task, 0.0)

    def _push(self, task: _Task, delay_s: float) -> None:
        task.not_before = time.monotonic() + delay_s
        heapq.heappush(self._waiting, task)


def run_trials(
    trials: Sequence[Trial],
    engine: Engine,
    say: Callable[[str], None],
    checkpoint_every_s: float,
    deadline: float | None = None,
) -> dict[str, Failure]:
    """Train and evaluate what is missing. A cell that fails does not stop the others.

    Returns:
        The failures: the last one of each trial by its id, and those of evaluations by ID/EVALUATION.

    Raises:
        TimeUp: the deadline (a `time.monotonic` value) has passed.
    """
    unfinished = []
    for trial in trials:
        to_do = not trial.trained or bool(trial.pending)
        unfinished += [trial] if to_do else []
        say(f"model    {trial.cell.label:<12} {'to do' if to_do else 'done '}  {trial.folder}")
    if not unfinished:
        return {}
    sweep = Sweep(unfinished, engine, say)
    with Watch(unfinished):
        sweep.run(checkpoint_every_s, deadline)
    return sweep.failures


def _effort(cell: Cell) -> float:
    """Estimate the relative cost of a training; used only to order the tasks."""
    cost_per_step = cell.train.batch_size * len(cell.letters) * family_of(cell.backbone).relative_cost
    return cell.train.steps * cost_per_step


def missing_cells(trials: Sequence[Trial], failures: dict[str, Failure]) -> list[str]:
    """Return a line for each cell with missing results: its label and why."""
    lines = []
    for trial in trials:
        if not trial.trained or trial.pending:
            keys = (*(f"{trial.id}/{trial.name_of(evaluation)}" for evaluation in trial.pending), trial.id)
            why = next((failures[key].message for key in keys if key in failures), "not finished")
            lines.append(f"{trial.cell.label}: {why}")
    return lines
