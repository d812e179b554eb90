"""Tasks on a Ray cluster: this machine's cores, or the machines of `--address`. All of them see one folder."""

import logging
import os
from typing import Any

from dmlm import places
from dmlm.errors import UserError
from dmlm.sweep.engines import Engine, Function, LostWorker, Outcome

try:
    import ray
    from ray import exceptions
except ImportError:
    raise UserError('The engine `ray` needs the package ray: pip install -e ".[ray]"') from None

PASSED_ON = ("DMLM_HOME", "HF_HOME", "HF_HUB_OFFLINE", "PYTHONPATH")  # variables that a worker needs as they are here

AHEAD = 1  # tasks that wait inside Ray: an autoscaling cluster grows when it sees one


class Ray(Engine):
    """Ray core tasks: one core each, and a share of a GPU where the cluster has some. Ray's object store holds no result."""

    def __init__(self, address: str | None, count: int | None, gpu_share: float, together: int) -> None:
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        variables |= {"DMLM_HOME": str(places.home()), "OMP_NUM_THREADS": "1"}
        own: dict[str, Any] = {} if address else {"num_cpus": count, "include_dashboard": False}
        try:
            ray.init(
                address, runtime_env={"env_vars": variables}, log_to_driver=False, logging_level=logging.ERROR, **own
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"There is no Ray cluster to be had at {address or 'this machine'}: {error}") from None
        gpus = ray.cluster_resources().get("GPU", 0)
        self._options: dict[str, Any] = {
            "num_cpus": together,
            "num_gpus": gpu_share * together if gpus else 0,
            "max_retries": 0,
        }
        self._tasks: dict[Any, int] = {}  # by what Ray calls it
        self._count = 0

    @property
    def room(self) -> int:
        whole = ray.cluster_resources()
        rooms = [whole.get("CPU", 0) / self._options["num_cpus"]]
        if self._options["num_gpus"]:
            rooms.append(whole.get("GPU", 0) / self._options["num_gpus"])
        return int(min(rooms)) + AHEAD - len(self._tasks)

    def submit(self, function: Function, job: Any) -> int:
        self._count += 1
        remote: Any = ray.remote(**self._options)(function)
        self._tasks[remote.remote(job)] = self._count
        return self._count

    def ended(self, timeout_s: float) -> list[Outcome]:
        if not self._tasks:
            return []
        found, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        if not found:
            found, _ = ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
        return [self._outcome(reference, self._tasks.pop(reference)) for reference in found]

    def _outcome(self, reference: Any, number: int) -> Outcome:
        try:
            return Outcome(number, ray.get(reference))
        except exceptions.RayTaskError as error:
            return Outcome(number, error=error.cause, trace=str(error))
        except exceptions.TaskCancelledError:
            return Outcome(number, error=KeyboardInterrupt())
        except exceptions.OutOfMemoryError as error:
            return Outcome(number, error=LostWorker(f"its machine ran out of memory: {error}"))
        except exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            return Outcome(number, error=LostWorker(f"its worker or machine was lost: {first}"))

    def stop(self) -> None:
        for reference in self._tasks:
            ray.cancel(reference)
        if self._tasks:
            ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=15)
        self._tasks.clear()
        ray.shutdown()
