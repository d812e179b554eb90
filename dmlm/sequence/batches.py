"""Batches of sequences of similar length, in an order that depends on (seed, epoch) only.

Shapes: B sequences, T tokens of all sequences together.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from dmlm.errors import UserError
from dmlm.sequence.template import ROLES, Packed

POOL_BATCHES = 50  # batches whose sequences are sorted by length together: 1 to 2 % padding, and still a random order
MASK_RUN = 3  # tokens masked in a row

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Sequences concatenated into one flat array, without padding."""

    ids: np.ndarray  # (T,) int64
    roles: np.ndarray  # (T,) int8, as in `Packed`
    lengths: np.ndarray  # (B,) int64


def collate(sequences: Sequence[Packed]) -> Batch:
    """Concatenate sequences into a batch."""
    return Batch(
        np.concatenate([np.empty(0, np.int64), *(sequence.ids for sequence in sequences)]),
        np.concatenate([np.empty(0, np.int8), *(sequence.roles for sequence in sequences)]),
        np.array([len(sequence) for sequence in sequences], dtype=np.int64),
    )


def micro_batches(lengths: np.ndarray, max_tokens: int | None) -> list[slice]:
    """Split a batch into runs of at most `max_tokens` tokens each; a longer sequence is a run of its own.

    >>> micro_batches(np.array([5, 4, 9, 20, 3]), 10)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    cuts, tokens = [0], 0
    for index, length in enumerate(lengths):
        if max_tokens is not None and tokens + length > max_tokens and index > cuts[-1]:
            cuts.append(index)
            tokens = 0
        tokens += length
    return [slice(start, end) for start, end in pairwise([*cuts, len(lengths)]) if start < end]


def mask_prompt(batch: Batch, share: float, mask_id: int, rng: np.random.Generator) -> np.ndarray:
    """Return input IDs (T,) with about `share` of the prompt's tokens masked, in runs of three; targets are unchanged.

    This is SpecAugment's time masking (Park et al. 2019, arXiv 1904.08779) for discrete tokens. It keeps a small model
    from memorising the token sequences of the training set. Tags and transcript are never masked. A run that reaches
    the end of a sequence stops at the tags of the next one.
    """
    starts = rng.random(len(batch.ids)) < share / MASK_RUN
    masked = starts.copy()
    for shift in range(1, MASK_RUN):
        masked[shift:] |= starts[:-shift]
    in_prompt = (batch.roles >= 0) & (batch.roles != ROLES.index("T"))
    return np.where(masked & in_prompt, mask_id, batch.ids)


def epoch_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of one epoch as arrays of sequence indices.

    The sequences are shuffled, then sorted by length within pools, then the batches are shuffled. Every sequence occurs
    once; the last, incomplete batch is kept.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    pool_size = batch_size * POOL_BATCHES
    pools = [order[start : start + pool_size] for start in range(0, len(order), pool_size)]
    by_length = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = [pool[start : start + batch_size] for pool in by_length for start in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def stream(lengths: np.ndarray, batch_size: int, seed: int, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (epoch, sequence indices) without end, from batch number `start` on.

    A resumed run gets the same batches as one that was never interrupted.
    """
    per_epoch = len(epoch_order(lengths, batch_size, seed, 0))
    epoch, skip = divmod(start, per_epoch)
    while True:
        for indices in epoch_order(lengths, batch_size, seed, epoch)[skip:]:
            yield epoch, indices
        epoch, skip = epoch + 1, 0


def prefetch(batches: Iterator[T], count: int = 2) -> Generator[T, None, None]:
    """Yield the same endless batches; a thread prepares the next `count` while the current one is used."""
    with ThreadPoolExecutor(1, "batches") as thread:
        waiting = deque(thread.submit(next, batches) for _ in range(count))
        try:
            while True:
                yield waiting.popleft().result()
                waiting.append(thread.submit(next, batches))
        finally:
            thread.shutdown(cancel_futures=True)


def check_context(sequences: Sequence[Packed], names: Sequence[str], context: int, template: str) -> None:
    """Check that every sequence fits into the backbone's context; called before training.

    Raises:
        UserError: a sequence is too long. The sentence gives the number of such sequences, and the longest with its id.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    too_long = np.flatnonzero(lengths > context)
    if len(too_long):
        worst = int(lengths.argmax())
        raise UserError(
            f"Template {template!r}: {len(too_long)} of {len(sequences)} sequences are longer than the backbone's context of "
            f"{context} tokens (the longest, {names[worst]!r}, has {lengths[worst]}); shorten the clips or raise model.context."
        )
