"""Make `transformers`' Mamba usable without CUDA kernels: same class, same weights, same results, our scan inside."""

import importlib.util

import torch
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

from dmlm.model.scan import selective_scan

_reference_scan = modeling_mamba.mamba_selective_scan


def _scan(hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
    """Ours on a CPU; on CUDA whatever transformers chose (mamba-ssm's kernels where installed, else mambapy)."""
    chosen = _reference_scan if hidden_states.is_cuda else selective_scan
    return chosen(hidden_states, *args, **kwargs)  # type: ignore[operator]


def build(config: MambaConfig) -> MambaForCausalLM:
    """A Mamba whose full-sequence scan is fast on the machine at hand; equal to the reference (tested)."""
    use_fast_scan()
    return MambaForCausalLM(config)


def use_fast_scan() -> None:
    """Replace the one function through which the reference mixer scans a whole sequence."""
    modeling_mamba.mamba_selective_scan = _scan


HAS_CUDA_KERNELS = importlib.util.find_spec("mamba_ssm") is not None
