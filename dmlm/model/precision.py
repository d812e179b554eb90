"""Which precision of matrix products pays on a device, and attention that makes use of it on a CPU."""

import torch


def fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware: any GPU since Ampere, a CPU with AVX-512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def chosen() -> tuple[str, str]:
    """Return what `train.precision=auto` means on this machine, and a sentence that says why."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU of this machine"
    if fast_bf16(device):
        return "bf16", f"{name} multiplies bf16 in hardware"
    return "fp32", f"{name} does not multiply bf16 in hardware"


LONGEST_BY_PRODUCTS = 1024  # tokens: beyond that, all scores at once take more time to move than the products save


def products_are_faster(tokens: torch.Tensor, longest: int) -> bool:
    """Whether causal attention by two products is faster than PyTorch's: it is on a CPU, in bf16, at moderate lengths.

    PyTorch's blocks of queries and keys are too small for the bf16 units of a CPU; in its backward pass bf16 is slower
    than fp32.
    """
    return tokens.device.type == "cpu" and tokens.dtype == torch.bfloat16 and longest <= LONGEST_BY_PRODUCTS


def attend_by_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention, softmax(q k^T / sqrt(d)) v, with all scores in memory; all tensors are (B, H, N, d).

    In bf16 the scores are rounded before the softmax, as in the plain attention of transformers. Where they are large, that
    is less exact than PyTorch's blocks: the relative error of the output is 0.003 if the largest score is 6, and 0.016 if it is 93.
    """
    rows, heads, length, width = q.shape
    q, k, v = (tensor.reshape(rows * heads, length, width) for tensor in (q, k, v))
    later = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(later, q, k.transpose(1, 2), alpha=width**-0.5)  # (B H, N, N)
    return (scores.softmax(-1) @ v).view(rows, heads, length, width)
