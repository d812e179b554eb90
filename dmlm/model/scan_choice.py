"""Which scan runs: the fastest that this machine has and that proves right on it, on a small batch, before it is used.

A kernel that is missing is passed over; one that is there and fails, or computes something else than the reference, is
passed over with a line on standard error. What was chosen is kept with the result of a training.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator

import torch

from dmlm.model import scan, scan_native

Scan = Callable[..., tuple[torch.Tensor, torch.Tensor]]
TOLERANCE = 1e-3


def candidates(kind: str) -> Iterator[tuple[str, Callable[[], Scan]]]:
    """Names and how to load them, fastest first, for a kind of device (`cpu`, `cuda`)."""
    if kind == "cuda":
        if importlib.util.find_spec("mamba_ssm"):
            yield "mamba-ssm", _mamba_ssm
        if importlib.util.find_spec("triton"):
            yield "triton", _triton
    elif scan_native.compiler():
        yield "native", _native
    yield "chunked", lambda: scan.chunked
    yield "reference", lambda: scan.reference


@functools.cache
def chosen(kind: str) -> tuple[str, Scan]:
    """Name and function of the scan for a kind of device."""
    for name, load in candidates(kind):
        try:
            function = load()
            with torch.inference_mode(False), torch.enable_grad():  # whoever asks first, gradients are tried too
                wrong = deviation(function, torch.device(kind))
        except Exception as error:  # a kernel may fail in any way; the next one is tried, and the user is told
            print(f"Mamba: the scan {name!r} fails here ({error}); trying the next.", file=sys.stderr)
            continue
        if wrong <= TOLERANCE:
            return name, function
        print(f"Mamba: the scan {name!r} is off by {wrong:.2g} here; trying the next.", file=sys.stderr)
    raise RuntimeError(f"no scan computes what it should on {kind}: this PyTorch is broken")


def deviation(function: Scan, device: torch.device) -> float:
    """Largest difference from the reference, of outputs, last state and gradients, over the largest value of each."""
    generator = torch.Generator().manual_seed(0)
    length, batch, channels, states = 37, 3, 40, 8

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    u, dt, A = draw(length, batch, channels), draw(length, batch, channels).abs(), -draw(states, channels).abs()
    values = u, dt, A, draw(length, batch, states), draw(length, batch, states)
    weights = draw(length, batch, channels)

    def outcome(scan_function: Scan) -> list[torch.Tensor]:
        leaves = [value.clone().requires_grad_() for value in values]
        output, last = scan_function(*leaves)
        (output * weights).sum().backward()
        return [output.detach(), last.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    pairs = zip(outcome(function), outcome(scan.reference), strict=True)
    worst = [((ours - right).abs().max() / right.abs().max()).item() for ours, right in pairs]
    return max(worst) if all(w == w for w in worst) else float("inf")


def selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `dmlm.model.scan.reference` computes, by the scan chosen for the device of `u`."""
    return chosen(u.device.type)[1](u, dt, A, B, C, start)


def _triton() -> Scan:
    from dmlm.model import scan_triton

    return scan_triton.selective_scan


def _native() -> Scan:
    scan_native.library()
    return scan_native.selective_scan


def _mamba_ssm() -> Scan:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def run(u, dt, A, B, C, start=None):
        if start is not None:  # its kernel begins at zero
            return scan.chunked(u, dt, A, B, C, start)
        u, dt, B, C = (value.permute(1, 2, 0).contiguous() for value in (u, dt, B, C))
        output, last = selective_scan_fn(u, dt, A.t().contiguous(), B, C, return_last_state=True)
        return output.permute(2, 0, 1), last.transpose(1, 2)

    return run
