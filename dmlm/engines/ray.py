"""Tasks on a Ray cluster: this machine's cores, or the machines of `--address`. All of them see one folder."""

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

PASSED_ON = ("HF_HOME", "HF_HUB_OFFLINE", "PYTHONPATH")  # variables that a worker needs as they are here
OWN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # as in `workers`
STORE_BYTES = 100 << 20  # Ray would take 30 % of the memory, for results that we do not send
AHEAD = 1  # tasks that wait inside Ray: an autoscaling cluster grows when it sees one
ANSWER_S = 5.0  # in which the head of a cluster takes a connection
LAST_WORDS_S = 60.0  # for checkpoints, which may go over a network
LOST = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,  # of the machine: Ray kills what it started last
)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait until a call into Ray is over: what a handler raises there is lost, or becomes another exception.

    And `ray.init` puts a handler of its own in place, which does not stay. A second signal does not wait.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)

    handlers = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


class Ray(Engine):
    """Ray core tasks: one core each, and a share of a GPU where the cluster has some. Ray's object store holds no result."""

    @_undisturbed()
    def __init__(self, address: str | None, count: int | None, gpu_share: float, together: int) -> None:
        if gpu_share > 1 and gpu_share % 1:
            raise UserError(f"--gpu-share {gpu_share:g} is more than one GPU, but not a whole number; round it.")
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        own: dict[str, Any] = {}
        if address == "local":
            cores = count * together if count else max(processes.count(), together)
            own = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        _connect(address, own)
        share = gpu_share if together == 1 else together  # processes of one training have a GPU each
        gpus = share if ray.cluster_resources().get("GPU") else 0
        self._needs = {"CPU": together, "GPU": gpus}
        self._remote: Any = ray.remote(num_cpus=together, num_gpus=gpus, max_retries=0)(_work)
        self._most = count or sys.maxsize
        self._tasks: dict[Any, int] = {}  # by what Ray calls it
        self._count = 0
        if not self._places():
            lack = f"no machine has what a trial takes, {together} CPU and {gpus:g} GPU"
            if address == "local":
                raise UserError(f"--engine ray: {lack}; set execution.data_parallel or --gpu-share to less.")
            print(f"--engine ray: {lack}; waiting until one joins the cluster.", file=sys.stderr)

    def _places(self) -> int:
        """How many tasks the machines are enough for."""
        here = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(min(node.get(name, 0) / n for name, n in self._needs.items() if n)) for node in here)

    @property
    @_undisturbed()
    def room(self) -> int:
        return min(self._places() + AHEAD, self._most) - len(self._tasks)

    @_undisturbed()
    def submit(self, function: Function, job: Any) -> int:
        self._count += 1
        self._tasks[self._remote.remote(function, job)] = self._count
        return self._count

    @_undisturbed()
    def ended(self, timeout_s: float) -> list[Outcome]:
        if not self._tasks:
            return []
        found, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        if not found:
            found, _ = ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
        return [_outcome(reference, self._tasks.pop(reference)) for reference in found]

    def stop(self) -> None:
        end = time.monotonic() + LAST_WORDS_S
        with _undisturbed():
            for reference in self._tasks:
                ray.cancel(reference)  # as Ctrl-C would: a training leaves a checkpoint
        while self._tasks and time.monotonic() < end:
            self.ended(0.5)  # a second signal ends this process
        with _undisturbed():
            self._tasks.clear()
            ray.shutdown()


def _connect(address: str, own: dict[str, Any]) -> None:
    """Join a cluster, or start one of this machine.

    Raises:
        UserError: there is none; said at once or after half a minute, where Ray would try for five.
    """
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables |= {"DMLM_HOME": str(paths.home()), **OWN}
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # of a `ray job`, which may set the same variables
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    if address not in ("local", "auto") and (not host or "/" in host or not port.isdigit()):
        raise UserError(f"--address {address!r} is not HOST:PORT; give that of a Ray cluster, or `auto`.")
    try:
        if host:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        if address != "local":
            os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # attempts, of half a minute each
        environment = {"env_vars": variables}
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"There is no Ray cluster to be had at {address}: {why}; docs/cluster.md has more.") from None


def _work(function: Function, job: Any) -> Any:
    """What runs in a worker of Ray, which shows a task all GPUs if it was promised none.

    A cluster that a script started in its background ignores SIGINT, by which Ray cancels a task.
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
            said = ". ".join(trace.split("\n")[0].split(". ")[:2])  # what follows are hints
            return Outcome(number, error=LostWorker(f"its worker or machine was lost: {said.rstrip('.')}"))
        return Outcome(number, error=RuntimeError(trace.rpartition("\n")[2]), trace=trace)  # one that cannot be rebuilt
