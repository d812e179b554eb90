"""Make `transformers`' Mamba usable without CUDA kernels: same class, same weights, same results, our scan inside."""

from typing import Any

import torch
from transformers.models.mamba import modeling_mamba

from dmlm.model.scan import selective_scan

reference_scan = modeling_mamba.mamba_selective_scan


def _scan(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Ours on a CPU; on CUDA what transformers chose: mamba-ssm's kernels where installed, else mambapy."""
    return (reference_scan if hidden_states.is_cuda else selective_scan)(hidden_states, *args, **kwargs)


def use_fast_scan() -> None:
    """Replace the one function through which every Mamba mixer of this process scans a whole sequence."""
    modeling_mamba.mamba_selective_scan = _scan
