"""The families of backbones: one record each, so that no other file asks which family a model is of. No torch here.

`125m` and `130m` have the dimensions of facebook/opt-125m and state-spaces/mamba-130m; the smaller sizes are ours, and
the two families have equal parameter counts there, embeddings aside (within 5 %, tested).
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from dmlm.errors import UserError, did_you_mean


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


@dataclass(frozen=True)
class Family:
    """What is to be known of a family. Its module has the functions that `dmlm.model.opt` has."""

    model_type: str  # in config.json; also what the names of its sizes begin with
    label: str  # how it is called in tables
    module: str  # how its weights are built and read fast
    sizes: Mapping[str, Mapping[str, int]]  # dimensions by name
    needs_scan: bool = False
    relative_cost: int = 1  # of a training step on a CPU, for the order of work
    required: Mapping[str, Any] = field(default_factory=dict)  # values of config.json without which it is not read

    @property
    def code(self) -> ModuleType:
        """Its module; loads torch."""
        return importlib.import_module(self.module)


OPT = Family(
    model_type="opt",
    label="OPT",
    module="dmlm.model.opt",
    sizes={
        "opt-nano": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 256},
        "opt-tiny": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 512},
        "opt-small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "ffn_dim": 1536},
        "opt-125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072},
    },
)
MAMBA = Family(
    model_type="mamba",
    label="Mamba",
    module="dmlm.model.mamba",
    sizes={
        "mamba-nano": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8},
        "mamba-tiny": {"hidden_size": 172, "num_hidden_layers": 3, "state_size": 8},
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
    """The name, if known: one of our sizes, or by its slash a pretrained model (see `dmlm.model.pretrained`).

    Raises:
        UserError: naming the nearest known backbone.
    """
    if name not in SIZES and "/" not in name:
        raise UserError(f"There is no backbone {name!r}; {did_you_mean(name, SIZES)}.")
    return name
