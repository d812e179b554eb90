"""Run a function over jobs in fresh processes, one process per job.

A fresh process per job is what makes synthesis reproducible (the synthesiser keeps state between sentences), and it
keeps any library's threads and memory out of the main process. Only names and plain data cross the border.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import TypeVar

from threadpoolctl import threadpool_limits

from dmlm.errors import UserError

J = TypeVar("J")
R = TypeVar("R")
LAST_WORDS_S = 15  # for a checkpoint, once the main process is gone
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
PRELOAD = ["numpy", "scipy.signal", "scipy.fft", "dmlm.tokens.shards", "dmlm.corpus.noise"]


def count() -> int:
    """Worker processes to use: `DMLM_WORKERS`, else the cores this process may run on."""
    if named := os.environ.get("DMLM_WORKERS"):
        if not named.isdigit() or int(named) < 1:
            raise UserError(f"DMLM_WORKERS is {named!r}; set it to a whole number of processes, 1 or more.")
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(gpus: str = "") -> None:
    """Ctrl-C and SIGUSR1 are handled by the main process; libraries get one thread each, since every core has a worker.

    The environment binds libraries that are yet to be loaded, the limit those that the fork server has loaded.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    threadpool_limits(1)
    keep_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process behind when the main one is gone: at once, or after a training has left its checkpoint."""
    while not orphaned():
        time.sleep(1)
    for _ in range(LAST_WORDS_S):
        if not in_training.is_set():
            break
        time.sleep(1)
    os._exit(1)


def keep_memory() -> None:
    """Let glibc keep what large tensors free: it would give it back to the system and fault it in again at every step."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not on macOS or musl
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


in_training = threading.Event()  # set while there is a checkpoint to be left


def orphaned() -> bool:
    """Whether this is a worker whose main process is gone, so that nobody waits for its work."""
    parent = multiprocessing.parent_process()  # not the fork server, which lives as long as any worker
    return parent is not None and not parent.is_alive()


def pool(count: int, gpus: str = "", tasks_per_process: int | None = None) -> ProcessPoolExecutor:
    """Processes that see only these GPUs (empty: as this process does) and have one thread each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return ProcessPoolExecutor(count, context, _begin, (gpus,), max_tasks_per_child=tasks_per_process)


def terminate(executor: ProcessPoolExecutor) -> None:
    """Ask the processes of a pool to end (SIGTERM): a training leaves a checkpoint first."""
    for process in list((executor._processes or {}).values()):
        process.terminate()


def run(function: Callable[[J], R], jobs: Iterable[J], workers: int | None = None) -> Iterator[R]:
    """Yield `function(job)` as each job ends, in any order; each in a fresh process.

    The first exception, or Ctrl-C, asks the others to end and is raised.
    """
    executor = pool(workers or count(), tasks_per_process=1)
    try:
        pending = {executor.submit(function, job) for job in jobs}
        while pending:
            ended, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()
    except BaseException:
        terminate(executor)
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
