"""The choice of the scan: the fastest one on this machine that agrees with the reference on a small batch.

A kernel that is not installed is skipped. One that fails, or differs from the reference, is skipped with a line on
standard error. The name of the chosen scan is stored with the result of a training.
"""

import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator

import torch

from dmlm.model import scan, scan_native

Scan = Callable[..., tuple[torch.Tensor, torch.Tensor]]
TOLERANCE = 1e-3  # of `deviation`


def candidates(device_type: str) -> Iterator[tuple[str, Callable[[], Scan]]]:
    """Yield the name and a loader of each scan for a type of device (`cpu`, `cuda`), fastest first."""
    if device_type == "cuda":
        if importlib.util.find_spec("mamba_ssm"):
            yield "mamba-ssm", _mamba_ssm
        if importlib.util.find_spec("triton"):
            yield "triton", _triton
    elif scan_native.compiler():
        yield "native", _native
    yield "chunked", lambda: scan.chunked
    yield "reference", lambda: scan.reference


@functools.cache
def fastest_scan(device_type: str) -> tuple[str, Scan]:
    """Return name and function of the fastest correct scan for a type of device (`cpu`, `cuda`)."""
    for name, load in candidates(device_type):
        try:
            function = load()
            with torch.inference_mode(False), torch.enable_grad():  # gradients are tested even if decoding comes first
                error = deviation(function, torch.device(device_type))
        except Exception as failure:  # a kernel may fail in any way; the user is told and the next one is tried
            print(f"Mamba: the scan {name!r} fails here ({failure}); trying the next.", file=sys.stderr)
            continue
        if error <= TOLERANCE:
            return name, function
        print(f"Mamba: the scan {name!r} is off by {error:.2g} here; trying the next.", file=sys.stderr)
    raise RuntimeError(f"no scan computes what it should on {device_type}: this PyTorch is broken")


def deviation(
    function: Scan,
    device: torch.device,
    shape: tuple[int, int, int, int] = (37, 3, 40, 8),
    inputs: torch.dtype = torch.float32,
    state: bool = False,
) -> float:
    """Return the largest relative difference between a scan in fp32 and the reference on a random batch.

    Compared are outputs, last state and gradients, each relative to its largest value, or to 0.1 if that is larger;
    infinite if one is NaN.

    Args:
        function: the scan.
        device: where both compute.
        shape: L, B, D and N.
        inputs: the values are rounded to this precision first, as those of a model in bf16 are.
        state: start from a random state instead of zeros.
    """
    generator = torch.Generator().manual_seed(0)
    length, batch, channels, states = shape

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device).to(inputs).float()

    u, dt, A = draw(length, batch, channels), draw(length, batch, channels).abs(), -draw(states, channels).abs()
    arguments = u, dt, A, draw(length, batch, states), draw(length, batch, states)
    weights, start = draw(length, batch, channels), draw(batch, states, channels) if state else None

    def results(scan_function: Scan) -> list[torch.Tensor]:
        leaves = [argument.clone().requires_grad_() for argument in arguments]
        output, last = scan_function(*leaves, start)
        (output * weights).sum().backward()
        return [output.detach(), last.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    pairs = zip(results(function), results(scan.reference), strict=True)
    errors = [
        ((actual - expected).abs().max() / expected.abs().max().clamp_min(0.1)).item() for actual, expected in pairs
    ]
    return float("inf") if any(math.isnan(error) for error in errors) else max(errors)


def selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `dmlm.model.scan.reference` by the fastest correct scan for the device of `u`."""
    return fastest_scan(u.device.type)[1](u, dt, A, B, C, start)


def _triton() -> Scan:
    from dmlm.model import scan_triton

    return scan_triton.selective_scan


def _native() -> Scan:
    scan_native.library()
    return scan_native.selective_scan


def _mamba_ssm() -> Scan:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def run(
        u: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        start: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if start is not None:  # the kernel of mamba-ssm always starts with a state of zero
            return scan.chunked(u, dt, A, B, C, start)
        u, dt, B, C = (value.permute(1, 2, 0).contiguous() for value in (u, dt, B, C))
        output, last = selective_scan_fn(u, dt, A.t().contiguous(), B, C, return_last_state=True)
        return output.permute(2, 0, 1), last.transpose(1, 2)

    return run
