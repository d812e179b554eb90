"""Building and loading decoder-only backbones, which are the OPT and Mamba classes of `transformers`."""

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
hf_logging.set_verbosity_error()  # otherwise it recommends CUDA kernels whenever a Mamba is built


def build(spec: BackboneSpec, seed: int) -> PreTrainedModel:
    """Build a model with random weights, or a pretrained one with its vocabulary extended.

    Equal seeds give equal weights.

    Raises:
        UserError: the name is unknown, or a pretrained OPT has a shorter context than `spec.context`.
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
    """Load a model that `save_pretrained` wrote."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def family(model: PreTrainedModel) -> ModuleType:
    """Return the module with the fast forward passes of this model: `dmlm.model.opt` or one with the same functions."""
    return FAMILIES[model.config.model_type].code


def parameter_count(model: PreTrainedModel, embeddings: bool = True) -> int:
    """Count the parameters; tied ones count once. `embeddings=False` leaves token and position embeddings out."""
    tables = ("embed_tokens", "embed_positions", "embeddings", "lm_head")
    return sum(p.numel() for n, p in model.named_parameters() if embeddings or not any(table in n for table in tables))


def start_at_centroids(model: PreTrainedModel, centroids: Mapping[int, np.ndarray], seed: int) -> None:
    """Initialise the embeddings of codebook IDs with their centroids, so that similar clusters get similar embeddings.

    A model trained from scratch on an hour of speech then finds the alignment of text to units in far fewer steps
    (docs/lab-notes.md). All embeddings stay trainable.

    Args:
        model: its input embeddings are overwritten in place.
        centroids: K centroids (K, D) of a modality, by the first ID of that modality. They are centred, projected to
            the model's width by a random matrix, which nearly preserves distances (Johnson-Lindenstrauss lemma), and
            scaled to the standard deviation of all embeddings.
        seed: of the random projection.
    """
    embeddings = model.get_input_embeddings().get_parameter("weight").data  # (V, width)
    std = float(embeddings.std())
    for first_id, points in centroids.items():
        projection = torch.randn(points.shape[1], embeddings.shape[1], generator=torch.Generator().manual_seed(seed))
        projected = torch.from_numpy(points - points.mean(axis=0)) @ projection
        embeddings[first_id : first_id + len(points)] = projected * (std / projected.std())


def start_at_sinusoids(model: PreTrainedModel) -> None:
    """Initialise position embeddings, if the family has them, with sinusoids as large as the token embeddings."""
    family(model).start_positions(model)
