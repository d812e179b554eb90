"""Batches of sequences of similar length, in an order that is a function of (seed, epoch) alone.

Shapes: B items, T tokens of all of them.
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

POOL = 50  # batches that are sorted by length together: 1 to 2 % of padding, and still a random order
MASK_RUN = 3  # tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Sequences one after another, without padding."""

    ids: np.ndarray  # (T,) int64
    roles: np.ndarray  # (T,) int8
    lengths: np.ndarray  # (B,) int64


def collate(items: Sequence[Packed]) -> Batch:
    """Join sequences end to end."""
    return Batch(
        np.concatenate([np.empty(0, np.int64), *(item.ids for item in items)]),
        np.concatenate([np.empty(0, np.int8), *(item.roles for item in items)]),
        np.array([len(item) for item in items], dtype=np.int64),
    )


def micro_batches(lengths: np.ndarray, most: int | None) -> list[slice]:
    """Runs of items with at most `most` tokens each; an item longer than that is alone.

    >>> micro_batches(np.array([5, 4, 9, 20, 3]), 10)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    cuts, tokens = [0], 0
    for index, length in enumerate(lengths):
        if most is not None and tokens + length > most and index > cuts[-1]:
            cuts.append(index)
            tokens = 0
        tokens += length
    return [slice(start, end) for start, end in pairwise([*cuts, len(lengths)]) if start < end]


def mask_prompt(batch: Batch, share: float, mask_id: int, rng: np.random.Generator) -> np.ndarray:
    """Input IDs (T,) with about `share` of the prompt's tokens hidden, in runs of three; the targets stay.

    SpecAugment's time masking (Park et al. 2019, arXiv 1904.08779) for discrete tokens: it keeps a small model from
    learning the training set's token sequences by heart. Tags and transcript are never hidden, and a run that reaches
    into the next sequence ends on its tags.
    """
    starts = rng.random(len(batch.ids)) < share / MASK_RUN
    hidden = starts.copy()
    for shift in range(1, MASK_RUN):
        hidden[shift:] |= starts[:-shift]
    prompt = (batch.roles >= 0) & (batch.roles != ROLES.index("T"))
    return np.where(hidden & prompt, mask_id, batch.ids)


def epoch_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Index batches of one epoch: shuffled, sorted by length within pools, batches shuffled again.

    Every item occurs once; the last incomplete batch is kept.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    pool = batch_size * POOL
    pools = [order[start : start + pool] for start in range(0, len(order), pool)]
    by_length = [chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in pools]
    batches = [c[start : start + batch_size] for c in by_length for start in range(0, len(c), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def stream(lengths: np.ndarray, batch_size: int, seed: int, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Endless (epoch, item indices), from batch number `start` on: the same batches as if never interrupted."""
    per_epoch = len(epoch_order(lengths, batch_size, seed, 0))
    epoch, skip = divmod(start, per_epoch)
    while True:
        for indices in epoch_order(lengths, batch_size, seed, epoch)[skip:]:
            yield epoch, indices
        epoch, skip = epoch + 1, 0


def ahead(batches: Iterator[T], count: int = 2) -> Generator[T, None, None]:
    """The same endless batches, the next `count` of them made in a thread while the last is trained on."""
    with ThreadPoolExecutor(1, "batches") as thread:
        waiting = deque(thread.submit(next, batches) for _ in range(count))
        try:
            while True:
                yield waiting.popleft().result()
                waiting.append(thread.submit(next, batches))
        finally:
            thread.shutdown(cancel_futures=True)


def check_context(items: Sequence[Packed], names: Sequence[str], context: int, template: str) -> None:
    """Refuse sequences that the backbone cannot hold, before any training.

    Raises:
        UserError: with the count, the longest and its id.
    """
    lengths = np.array([len(item) for item in items])
    too_long = np.flatnonzero(lengths > context)
    if len(too_long):
        worst = int(lengths.argmax())
        raise UserError(
            f"Template {template!r}: {len(too_long)} of {len(items)} sequences are longer than the backbone's context of "
            f"{context} tokens (the longest, {names[worst]!r}, has {lengths[worst]}); shorten the clips or raise model.context."
        )
