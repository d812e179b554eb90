"""Decoder-only backbones: always the OPT and Mamba classes of `transformers`, at the sizes of `dmlm.model.sizes`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched unless asked for

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel  # noqa: E402

from dmlm.model.sizes import MAMBA, OPT, check_name  # noqa: E402


@dataclass(frozen=True)
class BackboneSpec:
    """A named size and what the data asks of it."""

    name: str
    vocab_size: int
    context: int  # longest sequence; a Mamba has no limit of its own and is held to the same
    pad_id: int
    bos_id: int
    eos_id: int
    dropout: float = 0.1  # OPT only: Mamba has none


def build(spec: BackboneSpec, seed: int) -> PreTrainedModel:
    """A freshly initialised model; equal seeds give equal weights."""
    check_name(spec.name)
    shared: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "pad_token_id": spec.pad_id,
        "bos_token_id": spec.bos_id,
        "eos_token_id": spec.eos_id,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    if spec.name in OPT:
        size = OPT[spec.name]
        return OPTForCausalLM(
            OPTConfig(
                **shared,
                **size,
                word_embed_proj_dim=size["hidden_size"],
                max_position_embeddings=spec.context,
                dropout=spec.dropout,
                attn_implementation="sdpa",
            )
        )
    # without mambapy's parallel scan, Mamba off CUDA is a Python loop whose backward pass is quadratic in time
    return MambaForCausalLM(MambaConfig(**shared, **MAMBA[spec.name], use_mambapy=True))


def parameter_count(model: PreTrainedModel, embeddings: bool = True) -> int:
    """Number of parameters; tied ones count once. Without embeddings: neither token nor position tables."""
    names = ("embed_tokens", "embed_positions", "embeddings", "lm_head")
    return sum(p.numel() for n, p in model.named_parameters() if embeddings or not any(part in n for part in names))


def embed_codebooks(model: PreTrainedModel, centroids: Mapping[int, np.ndarray], seed: int) -> None:
    """Start the embeddings of learned codebooks from their centroids, so that similar clusters begin as similar inputs.

    `centroids` maps the first ID of a modality to its (K, D). They are centred, projected to the model's width by a
    fixed random matrix (Johnson-Lindenstrauss: distances survive) and scaled to the spread of the other embeddings.
    """
    table = model.get_input_embeddings().weight  # (V, width)
    for first, points in centroids.items():
        centred = torch.from_numpy(points - points.mean(axis=0))
        projection = torch.randn(points.shape[1], table.shape[1], generator=torch.Generator().manual_seed(seed))
        projected = centred @ projection
        with torch.no_grad():
            table[first : first + len(points)] = projected * (table.std() / projected.std())
