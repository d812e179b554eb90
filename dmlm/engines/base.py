"""What an engine is: it runs tasks, in processes of this machine or on a Ray cluster. Same folders, same results.

A task is a function by name and plain data. What it wrote is the result; what it returns says only how it went.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Function = Callable[[Any], Any]
REPLACEMENTS = 3  # of lost workers, for each task


class LostWorker(Exception):
    """The process or machine that ran a task is gone: killed, out of memory, unplugged."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    task: int
    value: Any = None
    error: BaseException | None = None
    trace: str = ""  # of the error, as far as it is known


class Engine(ABC):
    """Runs submitted tasks, as many at a time as it has room for."""

    @property
    @abstractmethod
    def room(self) -> int:
        """How many more tasks would start at once."""

    @abstractmethod
    def submit(self, function: Function, job: Any) -> int:
        """Queue a task; its number."""

    @abstractmethod
    def ended(self, timeout_s: float) -> list[Outcome]:
        """Tasks that ended since the last call; waits up to `timeout_s` for the first."""

    @abstractmethod
    def stop(self) -> None:
        """Ask what runs to leave a checkpoint and end, forget the rest, and wait."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def map(self, function: Function, jobs: Iterable[Any]) -> Iterator[Any]:
        """Values of a function over jobs, as they end; the first error is raised. A lost worker is replaced."""
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
