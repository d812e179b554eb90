"""The engine that runs tasks in processes of this machine."""

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
    """Runs tasks in processes of this machine, one per GPU or, without GPUs, one per core, each with one thread."""

    def __init__(self, slots: list[str] | None = None) -> None:
        """`slots` has the value of CUDA_VISIBLE_DEVICES for each process; empty or None: one process per core."""
        self._free: list[str] = list(slots) if slots else [""] * processes.count()
        self._pools: dict[str, list[ProcessPoolExecutor]] = {}
        self._queue: deque[tuple[int, Function, Any]] = deque()
        self._running: dict[Future[Any], tuple[int, str, ProcessPoolExecutor]] = {}
        self._submitted = 0

    @property
    def free_slots(self) -> int:
        return len(self._free) - len(self._queue)

    def submit(self, function: Function, job: Any) -> int:
        self._submitted += 1
        self._queue.append((self._submitted, function, job))
        self._start_queued()
        return self._submitted

    def _start_queued(self) -> None:
        """Start queued tasks while there are free slots; an idle process of the slot is used again."""
        while self._queue and self._free:
            number, function, job = self._queue.popleft()
            slot = self._free.pop()
            idle_pools = self._pools.setdefault(slot, [])
            pool = idle_pools.pop() if idle_pools else processes.pool(1, slot)
            try:
                self._running[pool.submit(function, job)] = number, slot, pool
            except BrokenProcessPool:  # its process was killed while it was idle: start the task in a new one
                pool.shutdown(wait=False)
                self._free.append(slot)
                self._queue.appendleft((number, function, job))

    def ended(self, timeout_s: float) -> list[Outcome]:
        outcomes = []
        for future in wait(self._running, timeout_s, FIRST_COMPLETED).done:
            number, slot, pool = self._running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                pool.shutdown(wait=False)
                error = LostWorker(
                    "its process was killed, perhaps because the machine ran out of memory; or it could not begin: a script"
                    ' that runs a grid needs a file of its own and `if __name__ == "__main__":`'
                )
            else:
                self._pools[slot].append(pool)
            self._free.append(slot)
            trace = "".join(traceback.format_exception(error)) if error else ""
            outcomes.append(Outcome(number, None if error else future.result(), error, trace))
        self._start_queued()
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
    """Names of the GPUs of this machine, in the form of CUDA_VISIBLE_DEVICES, found without importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
