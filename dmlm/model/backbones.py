"""Decoder-only backbones: always the OPT and Mamba classes of `transformers`, from scratch or pretrained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from dmlm.errors import UserError
from dmlm.model import mamba, opt, pretrained
from dmlm.model.sizes import MAMBA, OPT, check_name

hf_logging.disable_progress_bar()
hf_logging.set_verbosity_error()  # it advises installing CUDA kernels at every build


@dataclass(frozen=True)
class BackboneSpec:
    """A named size and what the data asks of it."""

    name: str
    text_size: int  # IDs below are text, and keep their embeddings where the backbone is pretrained
    vocab_size: int
    context: int  # longest sequence; a Mamba has no limit of its own and is held to the same
    pad_id: int
    bos_id: int
    eos_id: int
    dropout: float = 0.1  # OPT only: Mamba has none


def build(spec: BackboneSpec, seed: int) -> PreTrainedModel:
    """A model from scratch, or pretrained with its vocabulary extended; equal seeds give equal weights.

    Raises:
        UserError: an unknown name, or a pretrained OPT with a shorter context than asked for.
    """
    check_name(spec.name)
    specials = {"pad_token_id": spec.pad_id, "bos_token_id": spec.bos_id, "eos_token_id": spec.eos_id}
    torch.manual_seed(seed)
    if pretrained.is_named(spec.name):
        model = pretrained.open_extended(spec.name, spec.text_size, spec.vocab_size, specials, seed)
        if isinstance(model, OPTForCausalLM):
            if model.config.max_position_embeddings < spec.context:
                raise UserError(
                    f"Backbone {spec.name!r} has a context of {model.config.max_position_embeddings} tokens; lower model.context to it."
                )
            model.config.dropout = spec.dropout
            for layer in model.model.decoder.layers:
                layer.dropout = spec.dropout
        return model
    shared: dict[str, Any] = {**specials, "vocab_size": spec.vocab_size, "tie_word_embeddings": True}
    size: dict[str, Any] = (OPT | MAMBA)[spec.name]
    if spec.name in OPT:
        return OPTForCausalLM(
            OPTConfig(  # type: ignore[call-arg]  # attn_implementation is a keyword of its base class
                **shared,
                **size,
                word_embed_proj_dim=size["hidden_size"],
                max_position_embeddings=spec.context,
                dropout=spec.dropout,
                attn_implementation="sdpa",
            )
        )
    return MambaForCausalLM(MambaConfig(**shared, **size))


def load(folder: Path) -> PreTrainedModel:
    """A model that `save_pretrained` wrote."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def family(model: PreTrainedModel) -> ModuleType:
    """`dmlm.model.opt` or `dmlm.model.mamba`: how these weights are read fast. Both have the same functions."""
    return opt if isinstance(model, OPTForCausalLM) else mamba


def parameter_count(model: PreTrainedModel, embeddings: bool = True) -> int:
    """Number of parameters; tied ones count once. Without embeddings: neither token nor position tables."""
    names = ("embed_tokens", "embed_positions", "embeddings", "lm_head")
    return sum(p.numel() for n, p in model.named_parameters() if embeddings or not any(part in n for part in names))


def start_at_centroids(model: PreTrainedModel, centroids: Mapping[int, np.ndarray], seed: int) -> None:
    """Begin the embeddings of learned codebooks at their centroids, so that similar clusters start as similar inputs.

    A model trained from scratch on an hour of speech then finds the alignment of text to units in far fewer steps
    (docs/lab-notes.md). Everything stays trainable. `centroids` maps the first ID of a modality to its (K, D); they are
    centred, projected to the model's width by a random matrix (distances survive: Johnson-Lindenstrauss) and scaled to
    the spread of all embeddings.
    """
    table = model.get_input_embeddings().get_parameter("weight").data  # (V, width)
    spread = float(table.std())
    for first, points in centroids.items():
        projection = torch.randn(points.shape[1], table.shape[1], generator=torch.Generator().manual_seed(seed))
        projected = torch.from_numpy(points - points.mean(axis=0)) @ projection
        table[first : first + len(points)] = projected * (spread / projected.std())


def start_at_sinusoids(model: PreTrainedModel) -> None:
    """Begin OPT's position embeddings at sinusoids as large as its token embeddings: near positions start as near ones."""
    if isinstance(model, OPTForCausalLM):
        spread = float(model.get_input_embeddings().get_parameter("weight").data.std())
        positions = model.model.decoder.embed_positions.weight.data  # (context + 2, width)
        count, width = positions.shape
        angles = torch.arange(count)[:, None] * 1000.0 ** (-torch.arange(0, width, 2) / width)  # (count, width / 2)
        positions.copy_(math.sqrt(2) * spread * torch.cat([angles.sin(), angles.cos()], dim=1))
