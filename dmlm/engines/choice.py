"""Engines by name."""

from dmlm.engines.base import Engine
from dmlm.engines.local import Local, gpus
from dmlm.errors import UserError


def open_engine(name: str, workers_wanted: int | None, address: str | None, gpu_share: float, together: int) -> Engine:
    """The engine of that name. `together` is the largest number of processes that share one training.

    Raises:
        UserError: an option that the engine does not have, a missing package, or a cluster that cannot be reached.
    """
    if name == "ray":
        try:
            from dmlm.engines.ray import Ray
        except ModuleNotFoundError:
            raise UserError('The engine `ray` needs the package ray: pip install -e ".[ray]"') from None
        return Ray(address, workers_wanted, gpu_share, together)
    if address:
        raise UserError("--address is for --engine ray; leave it out, or choose that engine.")
    places = gpus()
    if together > 1 and places:
        return Local([",".join(places)])
    if workers_wanted:
        places = (places or [""])[:workers_wanted] if places else [""] * workers_wanted
    return Local(places)
