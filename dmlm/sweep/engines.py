"""Where the tasks of a sweep run: in processes of this machine, or on a Ray cluster. Same folders, same results.

A task is a function by name and plain data. What it wrote is the result; what it returns says only how it went.
"""

import os
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlm import workers
from dmlm.errors import UserError

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

    def map(self, function: Function, jobs: Iterable[Any], count: int | None = None) -> Iterator[Any]:
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


class Inline(Engine):
    """Processes of this machine: on CUDA one a GPU, else one a core, each with one thread."""

    def __init__(self, places: list[str] | None = None) -> None:
        """`places` are the GPUs, one a process, as CUDA_VISIBLE_DEVICES names them; none: the cores."""
        self._free: list[str] = list(places) if places else [""] * workers.count()
        self._pools: dict[str, list[ProcessPoolExecutor]] = {}
        self._queue: deque[tuple[int, Function, Any]] = deque()
        self._running: dict[Future[Any], tuple[int, str, ProcessPoolExecutor]] = {}
        self._count = 0

    @property
    def room(self) -> int:
        return len(self._free) - len(self._queue)

    def submit(self, function: Function, job: Any) -> int:
        self._count += 1
        self._queue.append((self._count, function, job))
        self._fill()
        return self._count

    def _fill(self) -> None:
        while self._queue and self._free:
            number, function, job = self._queue.popleft()
            place = self._free.pop()
            spare = self._pools.setdefault(place, [])
            pool = spare.pop() if spare else workers.pool(1, place)
            try:
                self._running[pool.submit(function, job)] = number, place, pool
            except BrokenProcessPool:  # its process was killed while it had nothing to do: another one takes the task
                pool.shutdown(wait=False)
                self._free.append(place)
                self._queue.appendleft((number, function, job))

    def ended(self, timeout_s: float) -> list[Outcome]:
        outcomes = []
        for future in wait(self._running, timeout_s, FIRST_COMPLETED).done:
            number, place, pool = self._running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                pool.shutdown(wait=False)
                error = LostWorker("its process was killed, perhaps because the machine ran out of memory")
            else:
                self._pools[place].append(pool)
            self._free.append(place)
            trace = "".join(traceback.format_exception(error)) if error else ""
            outcomes.append(Outcome(number, None if error else future.result(), error, trace))
        self._fill()
        return outcomes

    def stop(self) -> None:
        self._queue.clear()
        idle = [pool for pools in self._pools.values() for pool in pools]
        busy = [pool for _, _, pool in self._running.values()]
        for pool in busy:
            workers.terminate(pool)
        for pool in (*idle, *busy):
            pool.shutdown(wait=True, cancel_futures=True)
        self._running.clear()
        self._pools.clear()


def gpus() -> list[str]:
    """GPUs of this machine, as CUDA_VISIBLE_DEVICES names them, found without loading torch."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip()]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def open_engine(name: str, workers_wanted: int | None, address: str | None, gpu_share: float, together: int) -> Engine:
    """The engine of that name. `together` is the largest number of processes that share one training.

    Raises:
        UserError: an option that the engine does not have, a missing package, or a cluster that cannot be reached.
    """
    if name == "ray":
        try:
            from dmlm.sweep.engine_ray import Ray
        except ModuleNotFoundError:
            raise UserError('The engine `ray` needs the package ray: pip install -e ".[ray]"') from None
        return Ray(address, workers_wanted, gpu_share, together)
    if address:
        raise UserError("--address is for --engine ray; leave it out, or choose that engine.")
    places = gpus()
    if together > 1 and places:
        return Inline([",".join(places)])
    if workers_wanted:
        places = (places or [""])[:workers_wanted] if places else [""] * workers_wanted
    return Inline(places)
