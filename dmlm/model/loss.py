"""Length-normalised loss, weighted by modality (arXiv 2406.06582; the weights 0.3, 0.5, 0.5 from arXiv 2507.19037).

    L = mean over the batch of sum_m lambda_m * (1/N_m) * sum_{i in m} -log p(x_i | x_<i)

The published equation is not reachable; this is the form its descriptions give: means per sequence and modality, then
over the batch. Tags, <bos> and padding are not scored; <eos> counts as transcript.

Shapes: B sequences, T tokens of a flat batch, S of them scored, V vocabulary, D model width, M modalities.
"""

import torch
from transformers import PreTrainedModel

from dmlm.model import backbones
from dmlm.model.layout import Layout

LOGITS = 1 << 24  # elements of a chunk of logits: 64 MiB in fp32


def role_weights(
    roles: torch.Tensor, layout: Layout, lambdas: torch.Tensor, batch_size: int | None = None
) -> torch.Tensor:
    """Weight of each token, (T,): lambda_m / (B * N_m), with N_m the tokens of modality m in its own sequence.

    `roles` (T,) holds the modality index of each token, negative where a token is not scored; `lambdas` is (M,).
    `batch_size` is B where these sequences are but a part of the batch.
    """
    role = roles.clamp(min=0).long()
    slot = layout.rows * len(lambdas) + role  # (T,) one counter for each sequence and modality
    scored = roles >= 0
    counts = torch.bincount(slot[scored], minlength=layout.count * len(lambdas))
    return scored * lambdas[role] / (counts[slot].clamp(min=1) * (batch_size or layout.count))


class _WeightedSurprise(torch.autograd.Function):
    """sum_i w_i * -log softmax(h_i E^T)[x_i], in chunks: no more than `LOGITS` logits exist at a time.

    Their gradient is known as soon as they are, so the forward pass takes it along and keeps the logits of none.
    """

    @staticmethod
    def forward(ctx, hidden, table, targets, weights):  # (S, D), (V, D), (S,), (S,)
        wanted = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
        grad_table = torch.zeros_like(table, dtype=torch.float32)
        # taken out of the weights until the end, or small ones would vanish in half precision; sum: of nothing, zero
        largest = weights.max() if len(weights) else weights.sum()
        surprise = torch.empty(len(targets), device=hidden.device)
        cast = table.to(hidden.dtype)
        for part in torch.arange(len(targets)).split(max(1, LOGITS // len(table))):
            here = slice(int(part[0]), int(part[-1]) + 1)
            logits, chosen = (hidden[here] @ cast.t()).float(), targets[here].unsqueeze(1)
            log_sum = logits.logsumexp(-1, keepdim=True)
            surprise[here] = (log_sum - logits.gather(1, chosen)).squeeze(1)
            if wanted:
                slope = logits.sub_(log_sum).exp_()  # the probabilities; minus one at the target it is dL/dlogits
                slope.scatter_add_(1, chosen, slope.new_full(chosen.shape, -1.0))
                slope = slope.mul_((weights[here] / largest).unsqueeze(1)).to(hidden.dtype)
                grad_hidden[here] = slope @ cast
                grad_table += slope.t() @ hidden[here]
        ctx.save_for_backward(grad_hidden.mul_(largest), grad_table.mul_(largest))
        ctx.mark_non_differentiable(surprise)
        return (weights * surprise).sum(), surprise

    @staticmethod
    def backward(ctx, grad, _):
        grad_hidden, grad_table = ctx.saved_tensors
        return grad_hidden * grad, grad_table * grad, None, None


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
    """The loss of a flat batch, `ids` and `roles` (T,); and (2, M): per modality the sum of -log p (nats), and its tokens.

    Logits are computed only where a token carries weight. `inputs` are what the model reads where that differs from the
    targets `ids`; `batch_size` is that of the batch of which this is a part; `recompute` is gradient checkpointing.
    """
    weights = role_weights(roles, layout, lambdas, batch_size)
    hidden = backbones.family(model).hidden_states(model, ids if inputs is None else inputs, layout, recompute)
    scored = (weights > 0).nonzero().squeeze(1)  # (S,); the first token of a sequence, <bos>, never is
    table = model.get_output_embeddings().weight
    loss, surprise = _WeightedSurprise.apply(hidden[scored - 1], table, ids[scored], weights[scored])
    seen = roles[scored].long()
    return loss, torch.stack([torch.bincount(seen, surprise, len(lambdas)), torch.bincount(seen, None, len(lambdas))])
