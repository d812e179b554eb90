"""Length-normalised loss, weighted by modality (arXiv 2406.06582; the weights 0.3, 0.5, 0.5 from arXiv 2507.19037).

Shapes: B items, N positions, V vocabulary, D model width, M modalities.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from dmlm.sequence.template import ROLES


def role_weights(roles: torch.Tensor, lambdas: torch.Tensor) -> torch.Tensor:
    """Weight of each token, (B, N): lambda_m / (B * N_m), with N_m the tokens of modality m in its own sequence.

    `roles` (B, N) holds the modality index of each token, negative where a token is not scored; `lambdas` is (M,).
    """
    one_hot = roles.unsqueeze(-1) == torch.arange(len(lambdas), device=roles.device)  # (B, N, M)
    counts = one_hot.sum(dim=1).clamp(min=1)  # (B, M)
    return (one_hot * (lambdas / counts).unsqueeze(1)).sum(dim=-1) / len(roles)


def modality_loss(
    model: PreTrainedModel,
    ids: torch.Tensor,
    roles: torch.Tensor,
    lambdas: torch.Tensor,
    inputs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """L = mean over the batch of sum_m lambda_m * (1/N_m) * sum_{i in m} -log p(x_i | x_<i), for right-padded (B, N).

    The published equation is not reachable; this is the form its descriptions give: means per sequence and modality,
    then over the batch. Tags, <bos> and padding are not scored; <eos> counts as transcript. Logits are computed only
    where a token carries weight. `inputs` are what the model reads where that differs from the targets `ids`.

    Returns the loss and, per modality letter, the unweighted mean of -log p (nats) over its tokens in the batch.
    """
    weights = role_weights(roles, lambdas)[:, 1:]  # (B, N-1): a position predicts the next token
    read = ids if inputs is None else inputs
    hidden = model.base_model(input_ids=read, use_cache=False).last_hidden_state[:, :-1]  # (B, N-1, D)
    scored = weights > 0
    logits = model.get_output_embeddings()(hidden[scored]).float()  # (tokens, V)
    surprise = nn.functional.cross_entropy(logits, ids[:, 1:][scored], reduction="none")  # (tokens,)
    seen = roles[:, 1:][scored]
    by_modality = {
        letter: surprise[seen == index].mean().item()
        for index, letter in enumerate(ROLES)
        if bool((seen == index).any())
    }
    return (weights[scored] * surprise).sum(), by_modality
