"""Length-normalised loss, weighted by modality (arXiv 2406.06582; the weights 0.3, 0.5, 0.5 from arXiv 2507.19037).

    L = mean over the batch of sum_m lambda_m * (1/N_m) * sum_{i in m} -log p(x_i | x_<i)

We did not have the published equation. This form follows its descriptions: a mean per sequence and modality, then a
mean over the batch. Tags, <bos> and padding are not scored; <eos> counts as transcript.

Shapes: B sequences, T tokens of a flat batch, S scored tokens, V vocabulary, D model width, M modalities.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from dmlm.model import backbones
from dmlm.model.layout import Layout

MAX_LOGITS = 1 << 24  # elements of a chunk of logits: 64 MiB in fp32


def role_weights(
    roles: torch.Tensor, layout: Layout, lambdas: torch.Tensor, batch_size: int | None = None
) -> torch.Tensor:
    """Return the weight of each token, (T,): lambda_m / (B * N_m), with N_m the tokens of modality m in its sequence.

    Args:
        roles: (T,) modality index of each token; negative for tokens that are not scored.
        layout: the sequences of the batch.
        lambdas: (M,) weight of each modality.
        batch_size: B, if these sequences are only a part of the batch.
    """
    modality = roles.clamp(min=0).long()
    group = layout.rows * len(lambdas) + modality  # (T,) one group for each sequence and modality
    is_scored = roles >= 0
    counts = torch.bincount(group[is_scored], minlength=layout.count * len(lambdas))
    return is_scored * lambdas[modality] / (counts[group].clamp(min=1) * (batch_size or layout.count))


class _WeightedSurprise(torch.autograd.Function):
    """sum_i w_i * -log softmax(h_i E^T)[x_i], in chunks: at most `MAX_LOGITS` logits exist at a time.

    The forward pass computes the gradients too, while it has the logits of a chunk, so that no logits are stored.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # (S, D)
        embeddings: torch.Tensor,  # (V, D)
        targets: torch.Tensor,  # (S,)
        weights: torch.Tensor,  # (S,)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_grad = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
        grad_embeddings = torch.zeros_like(embeddings, dtype=torch.float32)
        # weights are divided by the largest until the end: small ones would underflow in half precision
        largest = weights.max() if len(weights) else weights.sum()  # sum of an empty tensor: zero
        surprise = torch.empty(len(targets), device=hidden.device)
        cast = embeddings.to(hidden.dtype)
        chunk_size = max(1, MAX_LOGITS // len(embeddings))
        for start in range(0, len(targets), chunk_size):
            chunk = slice(start, start + chunk_size)
            target = targets[chunk].unsqueeze(1)
            log_p = (hidden[chunk] @ cast.t()).log_softmax(-1, dtype=torch.float32)
            surprise[chunk] = -log_p.gather(1, target).squeeze(1)
            if needs_grad:
                grad_logits = log_p.exp_()  # dL/dlogits: the probabilities, minus one at the target
                grad_logits.scatter_add_(1, target, grad_logits.new_full(target.shape, -1.0))
                grad_logits = grad_logits.mul_((weights[chunk] / largest).unsqueeze(1)).to(hidden.dtype)
                grad_hidden[chunk] = grad_logits @ cast
                grad_embeddings += grad_logits.t() @ hidden[chunk]
        ctx.save_for_backward(grad_hidden.mul_(largest), grad_embeddings.mul_(largest))
        ctx.mark_non_differentiable(surprise)
        return (weights * surprise).sum(), surprise

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        grad_hidden, grad_embeddings = ctx.saved_tensors
        return grad_hidden * grad, grad_embeddings * grad, None, None


def modality_loss(
    model: PreTrainedModel,
    ids: torch.Tensor,
    roles: torch.Tensor,
    layout: Layout,
    lambdas: torch.Tensor,
    inputs: torch.Tensor | None = None,
    batch_size: int | None = None,
    recompute: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of a flat batch, and (2, M): for each modality the sum of -log p (nats) and the number of tokens.

    Logits are computed only for tokens with a positive weight.

    Args:
        model: an OPT or a Mamba.
        ids: (T,) targets.
        roles: (T,) modality index of each token; negative for tokens that are not scored.
        layout: the sequences of the batch.
        lambdas: (M,) weight of each modality.
        inputs: (T,) IDs that the model reads, if they differ from `ids` (masked prompts).
        batch_size: number of sequences of the whole batch, if this is only a part of it.
        recompute: use gradient checkpointing, which saves memory and costs time.
    """
    weights = role_weights(roles, layout, lambdas, batch_size)
    hidden = backbones.family(model).hidden_states(model, ids if inputs is None else inputs, layout, recompute)
    scored = (weights > 0).nonzero().squeeze(1)  # (S,) never the first token of a sequence, which is <bos>
    embeddings = model.get_output_embeddings().weight
    loss, surprise = _WeightedSurprise.apply(hidden[scored - 1], embeddings, ids[scored], weights[scored])
    modality = roles[scored].long()
    sums, counts = torch.bincount(modality, surprise, len(lambdas)), torch.bincount(modality, None, len(lambdas))
    return loss, torch.stack([sums, counts])
