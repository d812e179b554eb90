"""What a training minimises, one file an objective."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.model.layout import Layout
from dmlm.sequence.batches import Batch


class Objective(Protocol):
    """The part of a training that knows what is predicted from what; the loop knows batches, steps and gradients.

    Shapes: T tokens of a flat batch, M parts of the loss.
    """

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that are logged, such as the modalities."""

    def inputs(self, batch: Batch, random: np.random.Generator) -> np.ndarray:
        """What the model reads, IDs (T,): those of the batch, or some of them hidden."""

    def loss(
        self,
        model: PreTrainedModel,
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        layout: Layout,
        batch_size: int,
        recompute: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of some sequences, and (2, M): for each part its summed nats and its tokens.

        `tokens` are IDs, roles and inputs, (T,) each; `batch_size` counts the sequences of the whole batch, of which
        these may be a part; `recompute` is gradient checkpointing.
        """


def means(parts: tuple[str, ...], nats: Iterable[float], tokens: Iterable[float]) -> dict[str, float]:
    """Nats a token of each part that has any."""
    return {part: total / count for part, total, count in zip(parts, nats, tokens, strict=True) if count}
