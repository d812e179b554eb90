"""The engine interface: run tasks in processes of this machine or on a Ray cluster, with the same folders and results.

A task is a module-level function and plain data. Its result is what it writes to disk; its return value only reports
how it went.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Function = Callable[[Any], Any]
REPLACEMENTS = 3  # how often `map` starts a task again after its worker was lost


class LostWorker(Exception):
    """The process or machine that ran a task is gone: killed, out of memory, unplugged."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    task: int
    value: Any = None
    error: BaseException | None = None
    trace: str = ""  # traceback of the error, if it is known


class Engine(ABC):
    """Runs submitted tasks, as many at a time as it has free slots."""

    @property
    @abstractmethod
    def free_slots(self) -> int:
        """Number of further tasks that would start at once; negative if tasks are waiting."""

    @abstractmethod
    def submit(self, function: Function, job: Any) -> int:
        """Queue a task and return its number."""

    @abstractmethod
    def ended(self, timeout_s: float) -> list[Outcome]:
        """Return the tasks that ended since the last call; waits up to `timeout_s` for the first one."""

    @abstractmethod
    def stop(self) -> None:
        """Drop the queue, ask running tasks to write a checkpoint and end, and wait for them."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def map(self, function: Function, jobs: Iterable[Any]) -> Iterator[Any]:
        """Yield the values of a function over jobs as they end. A task whose worker is lost runs again.

        Raises the first error of a task.
        """
        waiting = {self.submit(function, job): (job, 0) for job in jobs}
        while waiting:
            for outcome in self.ended(1.0):
                job, losses = waiting.pop(outcome.task)
                if isinstance(outcome.error, LostWorker) and losses < REPLACEMENTS:
                    waiting[self.submit(function, job)] = job, losses + 1
                elif outcome.error:
                    raise outcome.error
                else:
                    yield outcome.value
