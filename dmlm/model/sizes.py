"""Backbones by name: the dimensions of each size. No torch here, so that a grid is checked without loading it.

`125m` and `130m` have the dimensions of facebook/opt-125m and state-spaces/mamba-130m; the smaller sizes are ours, and
the two families have equal parameter counts there, embeddings aside (within 5 %, tested).
"""

from dmlm.errors import UserError, did_you_mean

OPT: dict[str, dict[str, int]] = {
    "opt-nano": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 256},
    "opt-tiny": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 512},
    "opt-small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "ffn_dim": 1536},
    "opt-125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072},
}
MAMBA: dict[str, dict[str, int]] = {
    "mamba-nano": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8},
    "mamba-tiny": {"hidden_size": 172, "num_hidden_layers": 3, "state_size": 8},
    "mamba-small": {"hidden_size": 384, "num_hidden_layers": 11, "state_size": 16},
    "mamba-130m": {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16},
}
NAMES = (*OPT, *MAMBA)


def check_name(name: str) -> str:
    """The name, if known: one of our sizes, or by its slash a pretrained model (see `dmlm.model.pretrained`).

    Raises:
        UserError: naming the nearest known backbone.
    """
    if name not in NAMES and "/" not in name:
        raise UserError(f"There is no backbone {name!r}; {did_you_mean(name, NAMES)}.")
    return name
