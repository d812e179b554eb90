"""The scan against its reference, against transformers' own, and by finite differences."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from dmlm.model import scan, scan_choice, scan_native

SHAPES = [(17, 3, 10, 4), (1, 1, 4, 2), (33, 2, 7, 16)]  # L, B, D, N


def arguments(length, batch, channels, states, dtype=torch.float32):
    torch.manual_seed(0)
    u, dt = torch.randn(2, length, batch, channels, dtype=dtype)
    B, C = torch.randn(2, length, batch, states, dtype=dtype)
    return u, dt.abs(), -torch.rand(states, channels, dtype=dtype) * 2, B, C


def outcome(function, values):
    leaves = [value.clone().requires_grad_() for value in values]
    output, last = function(*leaves)
    output.sin().sum().backward()
    return [output.detach(), last.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_equal_the_reference_forward_and_backward(shape):
    values = arguments(*shape)
    for ours, plain in zip(outcome(scan.chunked, values), outcome(scan.reference, values), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_what_transformers_computes(shape):
    u, dt, A, B, C = arguments(*shape)
    theirs, last = mamba_selective_scan(
        *(x.permute(1, 2, 0) for x in (u, dt)), A.t(), *(x.permute(1, 2, 0) for x in (B, C)), return_last_state=True
    )
    output, state = scan.reference(u, dt, A, B, C)
    torch.testing.assert_close(output, theirs.permute(2, 0, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last.transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("step", "chunk"), [(24, 24), (24, 60), (1, 1), (10**6, 48)])
def test_any_pieces_and_chunks_give_the_same(monkeypatch, step, chunk):
    values = arguments(9, 5, 4, 3)
    expected_results = outcome(scan.chunked, values)
    monkeypatch.setattr(scan, "STATE_ELEMENTS", step)
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", chunk)
    for actual, expected in zip(outcome(scan.chunked, values), expected_results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_gradient_is_the_slope(monkeypatch):
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", 24)
    values = [value.requires_grad_() for value in arguments(7, 2, 3, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *a: scan.chunked(*a)[0], values)


def test_a_scan_continues_from_a_state():
    values = arguments(12, 2, 5, 3)
    whole, last = scan.chunked(*values)
    u, dt, A, B, C = values
    first, middle = scan.chunked(u[:5], dt[:5], A, B[:5], C[:5])
    second, end = scan.chunked(u[5:], dt[5:], A, B[5:], C[5:], middle)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(end, last)


def test_the_fastest_scan_that_is_right_is_chosen(monkeypatch, capsys):
    def broken(*values):
        raise RuntimeError("no such instruction")

    def wrong(u, dt, A, B, C, start=None):
        output, last = scan.chunked(u, dt, A, B, C, start)
        return output * 1.01, last

    def candidates(device_type):
        return iter([(f.__name__, lambda f=f: f) for f in (broken, wrong, scan.chunked, scan.reference)])

    scan_choice.fastest_scan.cache_clear()
    monkeypatch.setattr(scan_choice, "candidates", candidates)
    assert scan_choice.fastest_scan("cpu") == ("chunked", scan.chunked)
    lines = capsys.readouterr().err.splitlines()
    assert "'broken' fails here (no such instruction)" in lines[0]
    assert "'wrong' is off by 0.01" in lines[1]
    scan_choice.fastest_scan.cache_clear()


def test_the_choice_can_be_made_while_decoding():
    scan_choice.fastest_scan.cache_clear()
    with torch.inference_mode():
        assert scan_choice.fastest_scan("cpu")[0] == ("native" if scan_native.compiler() else "chunked")


@pytest.mark.skipif(not scan_native.compiler(), reason="there is no C compiler")
@pytest.mark.parametrize("shape", [*SHAPES, (16, 2, 64, 3), (50, 3, 33, 64)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_c_scan_equals_the_reference_forward_and_backward(shape, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    values = arguments(*shape)
    for ours, plain in zip(outcome(scan_native.selective_scan, values), outcome(scan.reference, values), strict=True):
        assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()
    u, dt, A, B, C = values
    state = torch.randn(shape[1], shape[3], shape[2])
    for ours, plain in zip(
        scan_native.selective_scan(u, dt, A, B, C, state), scan.reference(u, dt, A, B, C, state), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not scan_native.compiler(), reason="there is no C compiler")
def test_decays_of_any_size_are_right_in_c():
    """A step of size zero keeps the state, a huge one erases it, and those in between are exact up to rounding."""
    dt = torch.cat([torch.zeros(1), torch.logspace(-9, 9, 400)]).view(1, 1, -1)
    zero = torch.zeros_like(dt)
    A, B = -torch.ones(1, dt.shape[-1]), torch.zeros(1, 1, 1)
    state = scan_native.selective_scan(zero, dt, A, B, B, torch.ones(1, 1, dt.shape[-1]))[1].flatten()
    torch.testing.assert_close(state, torch.exp(-dt.flatten()), rtol=5e-7, atol=1e-37)


def test_a_compiler_that_fails_is_told_of_and_done_without(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    scan_native.library.cache_clear()
    scan_choice.fastest_scan.cache_clear()
    assert scan_choice.fastest_scan("cpu")[0] == "chunked"
    assert "the scan 'native' fails here (the compiler printed no message)" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.so"))
    scan_native.library.cache_clear()
    scan_choice.fastest_scan.cache_clear()


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
def test_the_triton_kernels_equal_the_reference():
    """In Triton's interpreter, which needs no GPU. A separate process, because it is switched on before the import."""
    program = """
import torch
from dmlm.model.scan_choice import deviation
from dmlm.model.scan import reference
from dmlm.model.scan_triton import selective_scan
assert deviation(selective_scan, torch.device("cpu")) < 1e-4
from tests.test_scan import arguments
u, dt, A, B, C = arguments(20, 2, 5, 3)
state = torch.randn(2, 3, 5)
for ours, right in zip(selective_scan(u, dt, A, B, C, state), reference(u, dt, A, B, C, state), strict=True):
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-4)
"""
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, cwd=root)


def test_the_scan_can_be_chosen_by_a_training_that_recomputes():
    """The choice takes gradients, which it must not do inside the checkpoint of a layer."""
    program = """
import torch
from small_models import tiny
from dmlm.model.layout import Layout
from dmlm.model.mamba import hidden_states
hidden_states(tiny("mamba-nano"), torch.arange(9), Layout([9]), recompute=True).sum().backward()
"""
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fails here" not in done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_triton_kernels_compile_for_a_gpu_that_is_not_here(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from dmlm.model import scan_triton

    tile = {"STEPS": scan_triton.STEPS, "CHANNELS": scan_triton.LANES // 16, "STATES": 16}
    for kernel in (scan_triton._forward, scan_triton._backward):
        kinds = {name: "i32" if name in ("L", "batch", "D", "N") else "*fp32" for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=kinds | dict.fromkeys(tile, "constexpr"), constexprs=tile)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": scan_triton.WARPS})
        assert compiled.asm["cubin"]
