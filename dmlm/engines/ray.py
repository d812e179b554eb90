"""The engine that runs tasks on a Ray cluster: this machine, or the machines of `--address`, which share one folder."""

import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions

from dmlm import paths, processes
from dmlm.engines.base import Engine, Function, LostWorker, Outcome
from dmlm.errors import UserError

PASSED_ON = ("HF_HOME", "HF_HUB_OFFLINE", "PYTHONPATH")  # environment variables that workers get from this process
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # as in `processes`
STORE_BYTES = 100 << 20  # size of Ray's object store, which we hardly use; its default is 30 % of the memory
QUEUED_IN_RAY = 1  # tasks beyond the capacity that are given to Ray: an autoscaling cluster grows when it sees one
CONNECT_S = 5.0  # timeout of a connection to the head of a cluster
CHECKPOINT_WAIT_S = 60.0  # time that trainings have to write checkpoints, perhaps over a network
LOST = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,  # the machine ran out of memory, and Ray killed the task that it started last
)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Handle signals only after a call into Ray: an exception of a handler would be lost or changed inside it.

    Also restores the handlers that `ray.init` replaces. A second signal ends the process at once.
    """
    received: list[int] = []

    def record(number: int, frame: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)

    handlers = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signal_number in received:
            signal.raise_signal(signal_number)


class Ray(Engine):
    """Runs tasks as Ray core tasks: one core each and, if the cluster has GPUs, a share of a GPU."""

    @_signals_deferred()
    def __init__(self, address: str | None, workers: int | None, gpu_share: float, data_parallel: int) -> None:
        if gpu_share > 1 and gpu_share % 1:
            raise UserError(f"--gpu-share {gpu_share:g} is more than one GPU, but not a whole number; round it.")
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {}
        if address == "local":
            cores = workers * data_parallel if workers else max(processes.count(), data_parallel)
            options = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        _connect(address, options)
        share = gpu_share if data_parallel == 1 else data_parallel  # processes of one training have a GPU each
        gpus = share if ray.cluster_resources().get("GPU") else 0
        self._needs = {"CPU": data_parallel, "GPU": gpus}
        self._remote: Any = ray.remote(num_cpus=data_parallel, num_gpus=gpus, max_retries=0)(_work)
        self._most = workers or sys.maxsize
        self._tasks: dict[Any, int] = {}  # number of each running task, by Ray's reference to it
        self._submitted = 0
        if not self._capacity():
            lack = f"no machine has what a trial takes, {data_parallel} CPU and {gpus:g} GPU"
            if address == "local":
                raise UserError(f"--engine ray: {lack}; set execution.data_parallel or --gpu-share to less.")
            print(f"--engine ray: {lack}; waiting until one joins the cluster.", file=sys.stderr)

    def _capacity(self) -> int:
        """Number of tasks that the machines of the cluster can run at a time."""
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(min(node.get(name, 0) / n for name, n in self._needs.items() if n)) for node in resources)

    @property
    @_signals_deferred()
    def free_slots(self) -> int:
        return min(self._capacity() + QUEUED_IN_RAY, self._most) - len(self._tasks)

    @_signals_deferred()
    def submit(self, function: Function, job: Any) -> int:
        self._submitted += 1
        self._tasks[self._remote.remote(function, job)] = self._submitted
        return self._submitted

    @_signals_deferred()
    def ended(self, timeout_s: float) -> list[Outcome]:
        if not self._tasks:
            return []
        done, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        if not done:
            done, _ = ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
        return [_outcome(reference, self._tasks.pop(reference)) for reference in done]

    def stop(self) -> None:
        deadline = time.monotonic() + CHECKPOINT_WAIT_S
        with _signals_deferred():
            for reference in self._tasks:
                ray.cancel(reference)  # by SIGINT: a training writes a checkpoint
        while self._tasks and time.monotonic() < deadline:
            self.ended(0.5)  # a second signal ends this process
        with _signals_deferred():
            self._tasks.clear()
            ray.shutdown()


def _connect(address: str, options: dict[str, Any]) -> None:
    """Connect to a cluster, or start one on this machine.

    Raises:
        UserError: no cluster answers, at once or within half a minute; Ray itself would try for five.
    """
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables |= {"DMLM_HOME": str(paths.home()), **ONE_THREAD}
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # inside a `ray job`, which may set the same variables
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    if address not in ("local", "auto") and (not host or "/" in host or not port.isdigit()):
        raise UserError(f"--address {address!r} is not HOST:PORT; give that of a Ray cluster, or `auto`.")
    try:
        if host:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        if address != "local":
            os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # number of attempts, half a minute each
        environment = {"env_vars": variables}
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"There is no Ray cluster to be had at {address}: {why}; docs/cluster.md has more.") from None


def _work(function: Function, job: Any) -> Any:
    """Run a task in a worker of Ray.

    Ray lets a task that asked for no GPU see all of them, so they are hidden here. Ray cancels a task by SIGINT, which
    is ignored on a cluster that a script started in the background, so the handler is set here.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    processes.keep_memory()
    return function(job)


def _outcome(reference: Any, number: int) -> Outcome:
    try:
        return Outcome(number, ray.get(reference))
    except exceptions.TaskCancelledError:
        return Outcome(number, error=KeyboardInterrupt())
    except exceptions.RayError as error:
        trace = re.sub(r"\x1b\[\d*m", "", str(error)).strip()
        if isinstance(error, exceptions.RayTaskError):
            return Outcome(number, error=error.cause, trace=trace)
        if isinstance(error, LOST):
            reason = ". ".join(trace.split("\n")[0].split(". ")[:2])  # what follows are hints
            return Outcome(number, error=LostWorker(f"its worker or machine was lost: {reason.rstrip('.')}"))
        # an exception that cannot be unpickled
        return Outcome(number, error=RuntimeError(trace.rpartition("\n")[2]), trace=trace)
