"""Decoder-only backbones: always the OPT and Mamba classes of `transformers`, from scratch or pretrained."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as hf_logging

from dmlm.model import pretrained
from dmlm.model.family import FAMILIES, SIZES, BackboneSpec, check_name

hf_logging.disable_progress_bar()
hf_logging.set_verbosity_error()  # it advises installing CUDA kernels at every build


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
        family(model).adapt(model, spec)
        return model
    shared: dict[str, Any] = {**specials, "vocab_size": spec.vocab_size, "tie_word_embeddings": True}
    size = SIZES[spec.name]
    return size.code.new_model(spec, {**shared, **size.sizes[spec.name]})


def load(folder: Path) -> PreTrainedModel:
    """A model that `save_pretrained` wrote."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def family(model: PreTrainedModel) -> ModuleType:
    """The module that reads these weights fast: `dmlm.model.opt` or one with the same functions."""
    return FAMILIES[model.config.model_type].code


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
    """Begin position embeddings, where the family has some, at sinusoids as large as the token embeddings."""
    family(model).start_positions(model)
