"""Next-token prediction over all modalities: the length-normalised, λ-weighted loss of arXiv 2406.06582.

L = mean over the batch of sum_m lambda_m * (1/N_m) * sum_{i in m} -log p(x_i | x_<i)
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.model.layout import Layout
from dmlm.model.loss import modality_loss
from dmlm.sequence.batches import Batch, mask_prompt
from dmlm.sequence.template import ROLES
from dmlm.training.settings import Lambdas


@dataclass(frozen=True)
class NextToken:
    """Predict every token from those before it."""

    lambdas: Lambdas
    pad_id: int  # replaces hidden tokens
    input_mask: float = 0.0  # fraction of the prompt tokens that are hidden from the model

    @property
    def parts(self) -> tuple[str, ...]:
        """The modalities."""
        return ROLES

    def inputs(self, batch: Batch, random: np.random.Generator) -> np.ndarray:
        """IDs (T,) of the batch, with some prompt tokens hidden. The targets do not change."""
        return mask_prompt(batch, self.input_mask, self.pad_id, random)

    def loss(
        self,
        model: PreTrainedModel,
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        layout: Layout,
        batch_size: int,
        recompute: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted loss (), and (2, M): for each modality, the sum of -log p in nats and its token count."""
        ids, roles, inputs = tokens
        lambdas = torch.tensor([getattr(self.lambdas, letter) for letter in ROLES], device=ids.device)
        return modality_loss(model, ids, roles, layout, lambdas, inputs, batch_size, recompute)
