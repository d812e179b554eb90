"""Tasks in processes of this machine."""

import os
import traceback
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from dmlm import processes
from dmlm.engines.base import Engine, Function, LostWorker, Outcome


class Local(Engine):
    """Processes of this machine: on CUDA one a GPU, else one a core, each with one thread."""

    def __init__(self, places: list[str] | None = None) -> None:
        """`places` are the GPUs, one a process, as CUDA_VISIBLE_DEVICES names them; none: the cores."""
        self._free: list[str] = list(places) if places else [""] * processes.count()
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
            pool = spare.pop() if spare else processes.pool(1, place)
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
            processes.terminate(pool)
        for pool in (*idle, *busy):
            pool.shutdown(wait=True, cancel_futures=True)
        self._running.clear()
        self._pools.clear()


def gpus() -> list[str]:
    """GPUs of this machine, as CUDA_VISIBLE_DEVICES names them, found without loading torch."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip()]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
