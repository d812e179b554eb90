"""Mamba's selective scan in C, for machines with a C compiler. It is compiled once, in a second, into `var/kernels`.

PyTorch writes each intermediate of the scan to memory and reads it again; C keeps them in registers. The sequences of a
batch are distributed over as many threads as PyTorch uses.

Shapes: L time, B batch, D channels, N states.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dmlm import files, paths

SOURCE = Path(__file__).with_suffix(".c")
STEPS, STATES = 16, 64  # as in the C source
ARCHITECTURE_FLAGS = {"AVX2": "-march=x86-64-v3", "AVX512": "-march=x86-64-v4"}  # by PyTorch's name of the capability


def compiler() -> str | None:
    """Return the path of the C compiler, the environment variable `CC` or else `cc`; None if there is none."""
    return shutil.which(os.environ.get("CC", "cc"))


@functools.cache
def library() -> ctypes.CDLL:
    """Load the compiled library; compile it first if necessary.

    Raises:
        RuntimeError: the compiler failed; with the last line of its output.
    """
    architecture = ARCHITECTURE_FLAGS.get(torch.backends.cpu.get_cpu_capability())
    flags = [
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fno-signed-zeros",
        "-ffinite-math-only",
        "-fopenmp-simd",
        "-shared",
        "-fPIC",
    ]
    command = [str(compiler()), *flags, *([architecture] if architecture else []), str(SOURCE)]
    key = hashlib.sha256(" ".join(command[1:-1]).encode() + SOURCE.read_bytes()).hexdigest()[:12]
    path = paths.home() / "kernels" / f"scan-{key}.so"
    if not path.is_file():
        with files.atomic(path) as temporary:
            result = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError((result.stderr.strip() or "the compiler printed no message").splitlines()[-1])
    return ctypes.CDLL(str(path))


def _for_each_sequence(function: Callable[..., None], tensors: list[torch.Tensor], sizes: tuple[int, ...]) -> None:
    """Call a function of the library for each sequence of the batch; `sizes` are L, B, D, N."""
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    numbers = [ctypes.c_int64(size) for size in sizes]
    batch, threads = sizes[1], min(sizes[1], torch.get_num_threads())
    if threads == 1:
        for b in range(batch):
            function(*pointers, *numbers, ctypes.c_int64(b))
        return
    with ThreadPoolExecutor(threads) as pool:  # threads run in parallel because ctypes releases the GIL
        list(pool.map(lambda b: function(*pointers, *numbers, ctypes.c_int64(b)), range(batch)))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        start: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (length, batch, channels), states = u.shape, len(A)
        y, last = torch.empty_like(u), torch.empty_like(start)
        run_starts = u.new_empty(-(-length // STEPS), batch, states, channels)
        sizes = length, batch, channels, states
        _for_each_sequence(library().scan_forward, [u, dt, A, B, C, start, y, run_starts, last], sizes)
        ctx.save_for_backward(u, dt, A, B, C, run_starts)
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        u, dt, A, B, C, run_starts = ctx.saved_tensors
        grad_u, grad_dt = torch.empty_like(u), torch.empty_like(u)
        grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(C)
        grad_A = u.new_empty(u.shape[1], *A.shape)
        arrays = [u, dt, A, B, C, run_starts, grad.contiguous(), grad_u, grad_dt, grad_A, grad_B, grad_C]
        _for_each_sequence(library().scan_backward, arrays, (*u.shape, len(A)))
        return grad_u, grad_dt, grad_A.sum(0), grad_B, grad_C, None


def selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `dmlm.model.scan.reference` in fp32.

    Raises:
        ValueError: the model has more states than the C source supports.
    """
    if len(A) > STATES:
        raise ValueError(f"the C scan supports at most {STATES} states, the model has {len(A)}")
    start = u.new_zeros(u.shape[1], *A.shape) if start is None else start.contiguous()
    return _Scan.apply(*(value.contiguous() for value in (u, dt, A, B, C)), start)
