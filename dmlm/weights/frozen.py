"""What recipes whose encoder is a neural network share: opening it frozen, batches without padding, long clips in pieces.

The result of an item must not depend on its company. Padding would change what a network computes at the edges, so only
items of equal shape share a batch, and only on a GPU: libraries for a CPU multiply matrices of another height in another
order, and where two codes are nearly as near, the last bit decides between them. B items, T frames or samples.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from dmlm.errors import UserError
from dmlm.weights import published
from dmlm.weights.untrusted import finite, fit


def open_model(
    recipe: str, model: str, card: published.Card | None, architecture: dict[str, Any] | None = None, kind: Any = None
) -> torch.nn.Module:
    """A network of `transformers` (`kind`: AutoModel): that of a card, or untrained from seed 0 where there is none.

    Raises:
        UserError: not on this machine, other files than the card's, or weights that do not fit the network.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    kind = kind or AutoModel
    if card is None:
        name = model.removeprefix(published.RANDOM)
        try:
            config = AutoConfig.for_model(name, **(architecture or {}))
        except ValueError:
            raise UserError(f"{recipe}: transformers knows no architecture {name!r}.") from None
        try:
            return untrained(lambda: kind.from_config(config))
        except ValueError as error:
            raise UserError(f"{recipe}: there is no {name} of architecture={architecture} ({error}).") from None
    if architecture:
        raise UserError(f"{recipe}: architecture is for model={published.RANDOM}NAME; {model!r} has its own.")
    folder = published.verified_folder(card, recipe)
    said = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        network, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{recipe}: {folder} cannot be loaded ({str(error).splitlines()[0]}).") from None
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{recipe}: {folder} holds damaged weights ({error}); fetch them again.") from None
    finally:
        logging.set_verbosity(said)
    if lacking := sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"]):
        raise UserError(f"{recipe}: {folder} has no fitting weights for {lacking[0]}; it is another kind of model.")
    finite(network.state_dict(), f"{recipe}: {folder}")
    return frozen(network)


def untrained(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A frozen network with the weights that seed 0 gives it; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return frozen(build())


def loaded(build: Callable[[], torch.nn.Module], tensors: dict[str, torch.Tensor], where: str) -> torch.nn.Module:
    """A frozen network with these weights.

    Raises:
        UserError: they do not fit; `where` is named.
    """
    network = build()
    fit(network, tensors, where)
    return frozen(network)


def frozen(network: torch.nn.Module) -> torch.nn.Module:
    """The network in evaluation mode, its parameters without gradients."""
    return network.eval().requires_grad_(False)


def on(device: str, network: torch.nn.Module) -> torch.nn.Module:
    """The network on `cpu` or `cuda`.

    Raises:
        UserError: there is no CUDA here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.token_device is cuda, but there is no CUDA device here; leave it at cpu.")
    return network.to(device)


def in_equal_batches(
    items: Sequence[np.ndarray], most: int, compute: Callable[[torch.Tensor], torch.Tensor], device: str
) -> list[np.ndarray]:
    """`compute` (B, ...) -> (B, ...) over items of equal shape at a time, at most `most` numbers in one batch.

    On a CPU B is 1, which costs little: the products of one clip or page fill a core.
    """
    results: list[Any] = [None] * len(items)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        by_shape.setdefault(item.shape, []).append(number)
    for shape, numbers in by_shape.items():
        size = 1 if device == "cpu" else max(1, most // max(1, int(np.prod(shape))))
        for start in range(0, len(numbers), size):
            chosen = numbers[start : start + size]
            with torch.inference_mode():
                batch = torch.from_numpy(np.stack([items[n] for n in chosen])).to(device)
                for number, row in zip(chosen, compute(batch).cpu().numpy(), strict=True):
                    results[number] = row
    return results


def in_pieces(
    clips: Sequence[Sequence[np.ndarray]], most: int, compute: Callable[[torch.Tensor], torch.Tensor], device: str
) -> list[np.ndarray]:
    """`in_equal_batches` over clips that are given as their pieces; the results of each clip are joined."""
    found = iter(in_equal_batches([piece for clip in clips for piece in clip], most, compute, device))
    return [np.concatenate([next(found) for _ in clip]) for clip in clips]


def pieces(length: int, hop: int, overlap: int, most: int) -> list[tuple[int, int]]:
    """Borders (start, end) that cut `length` samples into pieces of at most `most` frames of `hop` samples.

    A piece reaches `overlap` samples into the next one (the receptive field less a hop), so that the frames of all
    pieces are as many as those of the whole.

    >>> pieces(length=1000, hop=320, overlap=80, most=2)
    [(0, 720), (640, 1000)]
    """
    starts = range(0, max(1, length - overlap), most * hop)
    return [(start, min(length, start + most * hop + overlap)) for start in starts]
