"""Training objectives, one file each."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.model.layout import Layout
from dmlm.sequence.batches import Batch


class Objective(Protocol):
    """What a training minimises. The objective defines inputs and loss; the loop handles batches, steps and gradients.

    Shapes: T tokens of a packed batch, M parts of the loss.
    """

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of the loss that are logged, such as the modalities."""

    def inputs(self, batch: Batch, random: np.random.Generator) -> np.ndarray:
        """IDs (T,) that the model reads: those of the batch, or with some of them hidden."""

    def loss(
        self,
        model: PreTrainedModel,
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        layout: Layout,
        batch_size: int,
        recompute: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss () of some sequences, and (2, M): for each part, the sum of its nats and its token count.

        `tokens` are IDs, roles and inputs, (T,) each. `batch_size` is the number of sequences in the whole batch, which
        these sequences are a part of. `recompute` turns on gradient checkpointing.
        """


def means(parts: tuple[str, ...], nats: Iterable[float], tokens: Iterable[float]) -> dict[str, float]:
    """Nats per token of each part that has tokens."""
    return {part: total / count for part, total, count in zip(parts, nats, tokens, strict=True) if count}
