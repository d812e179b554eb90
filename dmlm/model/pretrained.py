"""Pretrained backbones: a folder in Hugging Face's form, or the Hub id of one that this machine has already.

Nothing is downloaded here. No torch at the top: a grid is checked, and its identity known, without loading it.
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
    """Whether a backbone's name is a folder or a Hub id, as against one of our sizes.

    >>> is_named("facebook/opt-125m"), is_named("opt-tiny")
    (True, False)
    """
    return "/" in name


@cache
def folder(name: str) -> Path:
    """Where the files of a pretrained model are.

    Raises:
        UserError: no such folder, not in the Hub's cache, or not a family that is known here.
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
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"Backbone {name!r} is of type {kind!r}; this suite knows {' and '.join(FAMILIES)}.")
    for key, value in FAMILIES[kind].required.items():
        if values.get(key, value) != value:
            raise UserError(f"Backbone {name!r} has {key} {values[key]!r}; {kind} is read here with {value!r} only.")
    return path


def family_of(name: str) -> Family:
    """The family of a pretrained model or of one of our sizes."""
    if is_named(name):
        return FAMILIES[json.loads((folder(name) / "config.json").read_text("utf-8"))["model_type"]]
    return SIZES[name]


@cache
def digest(name: str) -> str:
    """SHA-256 over the configuration and the weights: what a training that starts from them is known by."""
    path = folder(name)
    files = published.model_files(path)
    if files is None:
        raise UserError(f"Backbone {name!r}: {path} holds no weights ({' or '.join(published.WEIGHT_FILES)}).")
    return published.digest(files)


def open_extended(name: str, text_size: int, vocab_size: int, specials: dict[str, int], seed: int) -> "PreTrainedModel":
    """The model with its vocabulary extended to `vocab_size`; text keeps the rows `[0, text_size)` that it learned.

    Every other row is drawn from a normal distribution with the mean and, dimension by dimension, the standard
    deviation of the text rows: new tokens start inside the cloud of known ones (as Hewitt 2021, "Initializing New Word
    Embeddings for Pretrained Language Models", but with the diagonal of the covariance). Input and output embeddings
    stay tied.

    Raises:
        UserError: the text vocabulary is larger than the model's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder(name), local_files_only=True, dtype=torch.float32)
    known = model.get_input_embeddings().weight.data[:text_size].clone()
    if len(known) < text_size:
        raise UserError(
            f"Backbone {name!r} knows {len(known)} text tokens, the text vocabulary has {text_size}; set text.tokenizer to the model's own."
        )
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    table = model.get_input_embeddings().weight.data
    fresh = torch.randn(vocab_size - text_size, table.shape[1], generator=torch.Generator().manual_seed(seed))
    table[:text_size] = known
    table[text_size:] = known.mean(0) + known.std(0) * fresh
    for key, value in specials.items():
        setattr(model.config, key, value)
        setattr(model.generation_config, key, value)
    return model
