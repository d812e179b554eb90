"""Engines by name."""

from dmlm.engines.base import Engine
from dmlm.engines.local import Local, gpus
from dmlm.errors import UserError


def open_engine(name: str, workers: int | None, address: str | None, gpu_share: float, data_parallel: int) -> Engine:
    """Open the engine of a name. `data_parallel` is the largest number of processes that share one training.

    Raises:
        UserError: the engine does not have an option, its package is missing, or its cluster cannot be reached.
    """
    if name == "ray":
        try:
            from dmlm.engines.ray import Ray
        except ModuleNotFoundError:
            raise UserError('The engine `ray` needs the package ray: pip install -e ".[ray]"') from None
        return Ray(address, workers, gpu_share, data_parallel)
    if address:
        raise UserError("--address is for --engine ray; leave it out, or choose that engine.")
    slots = gpus()
    if data_parallel > 1 and slots:
        return Local([",".join(slots)])
    if workers:
        slots = slots[:workers] if slots else [""] * workers
    return Local(slots)
