"""The families of backbones and their sizes: one record a family. This file does not import torch.

No other file branches on the family of a model. `125m` and `130m` have the dimensions of facebook/opt-125m and
state-spaces/mamba-130m. The smaller sizes are our own; there both families have equal parameter counts without
embeddings (within 5 %, tested).
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from dmlm.errors import UserError, did_you_mean
from dmlm.model import cost
from dmlm.model.cost import Cost


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone by name, and what the data requires of it."""

    name: str
    text_size: int  # number of text IDs, which come first and keep their embeddings if the backbone is pretrained
    vocab_size: int
    context: int  # tokens of the longest sequence; applies to Mamba too, although Mamba itself has no limit
    pad_id: int
    bos_id: int
    eos_id: int
    dropout: float = 0.1  # OPT only: Mamba has none


@dataclass(frozen=True)
class Family:
    """A family of backbones."""

    model_type: str  # as in config.json; the names of the sizes start with it
    label: str  # its name in tables
    module: str  # dotted name of its module, which has the same functions as `dmlm.model.opt`
    sizes: Mapping[str, Mapping[str, int]]  # dimensions by name of the size
    cost: Callable[[Mapping[str, int], int, int], Cost]  # of dimensions, vocabulary and context
    needs_scan: bool = False
    relative_cost: int = 1  # of a training step on a CPU; used to order tasks
    required: Mapping[str, Any] = field(default_factory=dict)  # values that config.json of a pretrained model must have

    @property
    def code(self) -> ModuleType:
        """Import the module of this family, and torch with it."""
        return importlib.import_module(self.module)


OPT = Family(
    model_type="opt",
    label="OPT",
    module="dmlm.model.opt",
    cost=cost.opt,
    sizes={
        "opt-nano": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 256},
        "opt-tiny": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 512},
        "opt-mini": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "ffn_dim": 1024},
        "opt-small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "ffn_dim": 1536},
        "opt-125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072},
    },
)
MAMBA = Family(
    model_type="mamba",
    label="Mamba",
    module="dmlm.model.mamba",
    cost=cost.mamba,
    sizes={
        "mamba-nano": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8},
        "mamba-tiny": {"hidden_size": 172, "num_hidden_layers": 3, "state_size": 8},
        "mamba-mini": {"hidden_size": 256, "num_hidden_layers": 11, "state_size": 16},
        "mamba-small": {"hidden_size": 384, "num_hidden_layers": 11, "state_size": 16},
        "mamba-130m": {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16},
    },
    needs_scan=True,
    relative_cost=2,
    required={"hidden_act": "silu"},
)
FAMILIES = {family.model_type: family for family in (OPT, MAMBA)}
SIZES = {name: family for family in FAMILIES.values() for name in family.sizes}


def check_name(name: str) -> str:
    """Return `name` if it is one of our sizes, or contains a slash as pretrained models do (`dmlm.model.pretrained`).

    Raises:
        UserError: the name is unknown; the sentence suggests the nearest known one.
    """
    if name not in SIZES and "/" not in name:
        raise UserError(f"There is no backbone {name!r}; {did_you_mean(name, SIZES)}.")
    return name
