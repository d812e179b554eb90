"""Attention by products on a CPU in bf16 against PyTorch's own, and when it is chosen."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from typer.testing import CliRunner

from dmlm.cli import main
from dmlm.model import precision
from dmlm.model.precision import LONGEST_BY_PRODUCTS, attend_by_products, products_are_faster
from dmlm.plan.grid import read_grid_file


def inputs(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def outcome(function, tensors):
    output = function(*tensors)
    output.sin().sum().backward()
    return [output.detach(), *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize("length", [1, 2, 37])
def test_attention_by_products_is_causal_attention(length):
    right = outcome(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), inputs(length, torch.float32)
    )
    for ours, theirs in zip(outcome(attend_by_products, inputs(length, torch.float32)), right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_in_bf16_it_is_as_exact_as_scores_that_are_rounded(scale):
    """Against the same in fp64; PyTorch's plain attention rounds its scores, too."""

    def math(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(q, k, v, is_causal=True)

    def scaled(function):
        return lambda q, k, v: function(scale * q, k, v)

    right = outcome(scaled(math), inputs(65, torch.float64))
    ours, theirs = (outcome(scaled(f), inputs(65, torch.bfloat16)) for f in (attend_by_products, math))
    for mine, stock, exact in zip(ours, theirs, right, strict=True):
        assert (mine - exact).norm() < 0.03 * exact.norm()
        assert (mine - exact).norm() < 4 * (stock - exact).norm() + 1e-3 * exact.norm()


def test_it_is_chosen_for_short_sequences_in_bf16_only():
    tokens = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert products_are_faster(tokens, LONGEST_BY_PRODUCTS)
    assert not products_are_faster(tokens, LONGEST_BY_PRODUCTS + 1)
    assert not products_are_faster(tokens.float(), 10)
    assert not products_are_faster(tokens.to("meta"), 10)


@pytest.mark.parametrize(("in_hardware", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_chosen_when_a_sweep_file_is_read_and_said(in_hardware, chosen, monkeypatch):
    monkeypatch.setattr(precision, "fast_bf16", lambda device: in_hardware)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changes = ["axes.train.precision=[auto, fp16]"]
    grid = read_grid_file("smoke", changes)
    assert [cell.train.precision for cell in grid.cells][:2] == [chosen, "fp16"]
    (note,) = grid.notes
    assert note.startswith(f"train.precision=auto: {chosen}, because the CPU of this machine")
    assert note in CliRunner().invoke(main.app, ["grid", "show", "smoke", *changes]).stdout
    assert not read_grid_file("smoke").notes


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the system does not list what its CPU can do")
def test_a_cpu_multiplies_bf16_in_hardware_if_the_system_says_so():
    can = set(Path("/proc/cpuinfo").read_text().split())
    assert precision.fast_bf16(torch.device("cpu")) == bool(can & {"avx512_bf16", "amx_tile"})
