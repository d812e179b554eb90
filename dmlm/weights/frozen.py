"""Helpers for recipes whose encoder is a neural network: open it frozen, batch without padding, cut long clips.

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
from dmlm.weights.untrusted import check_finite, load_exactly


def open_model(
    recipe: str, model: str, card: published.Card | None, architecture: dict[str, Any] | None = None, kind: Any = None
) -> torch.nn.Module:
    """Open a frozen network of `transformers`: with the weights of a card or, without a card, untrained from seed 0.

    `kind` is the class that opens it, by default AutoModel.

    Raises:
        UserError: the weights are not on this machine, are not the files of the card, or do not fit the network.
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
    verbosity = logging.get_verbosity()
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
        logging.set_verbosity(verbosity)
    if unfilled := sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"]):
        raise UserError(f"{recipe}: {folder} has no fitting weights for {unfilled[0]}; it is another kind of model.")
    check_finite(network.state_dict(), f"{recipe}: {folder}")
    return freeze(network)


def untrained(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Build a frozen network with random weights from seed 0; the random state of the caller does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return freeze(build())


def with_weights(build: Callable[[], torch.nn.Module], tensors: dict[str, torch.Tensor], where: str) -> torch.nn.Module:
    """Build a frozen network with these weights.

    Raises:
        UserError: the weights do not fit; the message names `where` they come from.
    """
    network = build()
    load_exactly(network, tensors, where)
    return freeze(network)


def freeze(network: torch.nn.Module) -> torch.nn.Module:
    """Put a network into evaluation mode, turn off its gradients, and return it."""
    return network.eval().requires_grad_(False)


def on_device(device: str, network: torch.nn.Module) -> torch.nn.Module:
    """Move a network to `cpu` or `cuda` and return it.

    Raises:
        UserError: this machine has no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.token_device is cuda, but there is no CUDA device here; leave it at cpu.")
    return network.to(device)


def in_equal_batches(
    items: Sequence[np.ndarray], most: int, compute: Callable[[torch.Tensor], torch.Tensor], device: str
) -> list[np.ndarray]:
    """Run `compute`, (B, ...) -> (B, ...), over batches of items of equal shape; returns the result of each item.

    `most` limits the numbers (elements) in one batch; an item that has more is a batch of its own. On a CPU each item
    is a batch of its own, which costs little: the products of one clip or page fill a core.
    """
    results: list[Any] = [None] * len(items)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(items):
        by_shape.setdefault(item.shape, []).append(index)
    for shape, indices in by_shape.items():
        size = 1 if device == "cpu" else max(1, most // max(1, int(np.prod(shape))))
        for start in range(0, len(indices), size):
            batch_indices = indices[start : start + size]
            # TF32, the default of convolutions on a GPU, would give other IDs than a CPU
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                batch = torch.from_numpy(np.stack([items[i] for i in batch_indices])).to(device)
                for index, row in zip(batch_indices, compute(batch).cpu().numpy(), strict=True):
                    results[index] = row
    return results


def in_pieces(
    clips: Sequence[Sequence[np.ndarray]], most: int, compute: Callable[[torch.Tensor], torch.Tensor], device: str
) -> list[np.ndarray]:
    """Run `in_equal_batches` over the pieces of clips, and join the results of each clip."""
    results = iter(in_equal_batches([piece for clip in clips for piece in clip], most, compute, device))
    return [np.concatenate([next(results) for _ in clip]) for clip in clips]


def pieces(length: int, hop: int, overlap: int, most: int) -> list[tuple[int, int]]:
    """Return (start, end) of the pieces of a clip of `length` samples, each of at most `most` frames of `hop` samples.

    Each piece overlaps the next one by `overlap` samples, which is the receptive field of a frame less one hop. So all
    pieces together have as many frames as the uncut clip.

    >>> pieces(length=1000, hop=320, overlap=80, most=2)
    [(0, 720), (640, 1000)]
    """
    starts = range(0, max(1, length - overlap), most * hop)
    return [(start, min(length, start + most * hop + overlap)) for start in starts]
