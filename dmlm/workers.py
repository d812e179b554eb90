"""Run a function over jobs in fresh processes, one process per job.

A fresh process per job is what makes synthesis reproducible (the synthesiser keeps state between sentences), and it
keeps any library's threads and memory out of the main process. Only names and plain data cross the border.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import TypeVar

from threadpoolctl import threadpool_limits

from dmlm.errors import UserError

J = TypeVar("J")
R = TypeVar("R")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
PRELOAD = ["numpy", "scipy.signal", "scipy.fft", "dmlm.tokens.shards", "dmlm.corpus.noise"]


def count() -> int:
    """Worker processes to use: `DMLM_WORKERS`, else the cores this process may run on."""
    if named := os.environ.get("DMLM_WORKERS"):
        if not named.isdigit() or int(named) < 1:
            raise UserError(f"DMLM_WORKERS is {named!r}; set it to a whole number of processes, 1 or more.")
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    """Ctrl-C is handled by the main process; libraries get one thread each, since every core has a worker.

    The environment binds libraries that are yet to be loaded, the limit those that the fork server has loaded.
    """
    global _parent
    _parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    threadpool_limits(1)
    keep_memory()


def keep_memory() -> None:
    """Let glibc keep what large tensors free: it would give it back to the system and fault it in again at every step."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not on macOS or musl
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


_parent: int | None = None  # set in a worker


def orphaned() -> bool:
    """Whether this is a worker whose main process is gone, so that nobody waits for its work."""
    return _parent is not None and os.getppid() != _parent


def run(function: Callable[[J], R], jobs: Iterable[J], workers: int | None = None) -> Iterator[R]:
    """Yield `function(job)` as each job ends, in any order.

    The first exception, or Ctrl-C, asks the others to end (SIGTERM) and is raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    pool = ProcessPoolExecutor(workers or count(), context, _begin, max_tasks_per_child=1)
    try:
        pending = {pool.submit(function, job) for job in jobs}
        while pending:
            ended, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
