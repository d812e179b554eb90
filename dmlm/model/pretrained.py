"""Pretrained backbones: a folder in the format of Hugging Face, or the id of a Hub model that was downloaded before.

This module downloads nothing. It imports torch only where it opens a model, so that a grid can be checked and
identified without loading torch.
"""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlm.errors import UserError
from dmlm.model.family import FAMILIES, SIZES, Family
from dmlm.weights import published

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_named(name: str) -> bool:
    """Return whether a backbone's name is a folder or a Hub id, and not one of our sizes.

    >>> is_named("facebook/opt-125m"), is_named("opt-tiny")
    (True, False)
    """
    return "/" in name


@cache
def folder(name: str) -> Path:
    """Return the folder of a pretrained model.

    Raises:
        UserError: there is no such folder, the model is not in the Hub's cache, or its family is not supported.
    """
    path = published.hub_folder(name)
    if path is None:
        raise UserError(
            f"Backbone {name!r} is not on this machine; download it once with `hf download {name}`, or give a folder."
        )
    config = path / "config.json"
    if not config.is_file():
        raise UserError(f"Backbone {name!r}: {path} has no config.json; give a folder that save_pretrained wrote.")
    values = json.loads(config.read_text("utf-8"))
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(f"Backbone {name!r} is of type {model_type!r}; this suite knows {' and '.join(FAMILIES)}.")
    for key, value in FAMILIES[model_type].required.items():
        if values.get(key, value) != value:
            raise UserError(
                f"Backbone {name!r} has {key} {values[key]!r}; this suite supports {model_type} with {value!r} only."
            )
    return path


def family_of(name: str) -> Family:
    """Return the family of a backbone: a pretrained model or one of our sizes."""
    if is_named(name):
        return FAMILIES[json.loads((folder(name) / "config.json").read_text("utf-8"))["model_type"]]
    return SIZES[name]


@cache
def digest(name: str) -> str:
    """Return the SHA-256 of configuration and weights; it is part of the identity of a training that starts from them.

    Raises:
        UserError: the folder has no weights; or as `folder`.
    """
    path = folder(name)
    files = published.model_files(path)
    if files is None:
        raise UserError(f"Backbone {name!r}: {path} holds no weights ({' or '.join(published.WEIGHT_FILES)}).")
    return published.digest(files)


def open_extended(name: str, text_size: int, vocab_size: int, specials: dict[str, int], seed: int) -> "PreTrainedModel":
    """Open a pretrained model and extend its vocabulary to `vocab_size`; text keeps its embeddings `[0, text_size)`.

    Every other embedding is drawn from a normal distribution with the mean and, dimension by dimension, the standard
    deviation of the text embeddings (as Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models",
    but with the diagonal of the covariance). Input and output embeddings stay tied.

    Args:
        name: a folder or a Hub id.
        text_size: number of text IDs, which come first.
        vocab_size: number of all IDs.
        specials: IDs of the special tokens by their keys in config.json.
        seed: of the new embeddings.

    Raises:
        UserError: the text vocabulary is larger than that of the model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder(name), local_files_only=True, dtype=torch.float32)
    pretrained = model.get_input_embeddings().weight.data[:text_size].clone()
    if len(pretrained) < text_size:
        raise UserError(
            f"Backbone {name!r} knows {len(pretrained)} text tokens, the text vocabulary has {text_size}; set text.tokenizer to the model's own."
        )
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    embeddings = model.get_input_embeddings().weight.data
    noise = torch.randn(vocab_size - text_size, embeddings.shape[1], generator=torch.Generator().manual_seed(seed))
    embeddings[:text_size] = pretrained
    embeddings[text_size:] = pretrained.mean(0) + pretrained.std(0) * noise
    for key, value in specials.items():
        setattr(model.config, key, value)
        setattr(model.generation_config, key, value)
    return model
