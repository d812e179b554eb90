"""Run a function over jobs in fresh processes, one process per job.

A fresh process for each job makes synthesis reproducible, because the synthesiser keeps state between sentences. It
also keeps the threads and the memory of libraries out of the main process. Only names and plain data cross the border
between processes.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

from dmlm.errors import UserError

J = TypeVar("J")
R = TypeVar("R")
Map = Callable[[Callable[[Any], Any], list[Any]], Iterator[Any]]  # (function, jobs) -> results in any order
CHECKPOINT_WAIT_S = 15  # time that an orphaned training has to write a checkpoint
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
# modules that the fork server imports once for all workers
PRELOAD = ["numpy", "scipy.signal", "scipy.fft", "dmlm.tokens.shards", "dmlm.corpus.noise"]


def count() -> int:
    """Number of worker processes to use: `DMLM_WORKERS`, else the number of cores that this process may run on."""
    if setting := os.environ.get("DMLM_WORKERS"):
        if not setting.isdigit() or int(setting) < 1:
            raise UserError(f"DMLM_WORKERS is {setting!r}; set it to a whole number of processes, 1 or more.")
        return int(setting)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _initialise_worker(gpus: str, environment: dict[str, str]) -> None:
    """Prepare a worker: ignore Ctrl-C and SIGUSR1, which the main process handles, and use one thread per library.

    Every core has a worker, hence one thread. The environment variables apply to libraries that are loaded later;
    `threadpool_limits` applies to those that the fork server has loaded already.
    """
    from threadpoolctl import threadpool_limits  # here: a training that starts no workers runs without the package

    os.environ.clear()  # that of the fork server is as old as its first worker
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    threadpool_limits(1)
    keep_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker once the main process is gone; a training first has time to write its checkpoint."""
    while not orphaned():
        time.sleep(1)
    for _ in range(CHECKPOINT_WAIT_S):
        if not in_training.is_set():
            break
        time.sleep(1)
    os._exit(1)


def keep_memory() -> None:
    """Make glibc keep the memory of freed tensors: returning it to the system makes every step fault it in again."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not on macOS or musl
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


in_training = threading.Event()  # set while a training runs here, which would write a checkpoint before the end


def orphaned() -> bool:
    """Whether this is a worker whose main process is gone, so that its work is no longer needed."""
    parent = multiprocessing.parent_process()  # main process; the fork server would live as long as any worker
    return parent is not None and not parent.is_alive()


def pool(count: int, gpus: str = "", tasks_per_process: int | None = None) -> ProcessPoolExecutor:
    """Return a pool of single-threaded processes that see only these GPUs (empty: all that this process sees)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return ProcessPoolExecutor(
        count, context, _initialise_worker, (gpus, dict(os.environ)), max_tasks_per_child=tasks_per_process
    )


def terminate(executor: ProcessPoolExecutor) -> None:
    """Send SIGTERM to the processes of a pool; a training writes a checkpoint before it ends."""
    for process in list((executor._processes or {}).values()):
        process.terminate()


def run(
    function: Callable[[J], R], jobs: Iterable[J], workers: int | None = None, tasks_per_process: int | None = 1
) -> Iterator[R]:
    """Run each job in a fresh process and yield the values of `function(job)` as the jobs end, in any order.

    Jobs that do not disturb each other may share what a process has loaded: `tasks_per_process`, None for all.

    At the first exception, or at Ctrl-C, the other processes are asked to end and the exception is raised.
    """
    executor = pool(workers or count(), tasks_per_process=tasks_per_process)
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
