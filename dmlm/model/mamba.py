"""Mamba (Gu & Dao 2023, arXiv 2312.00752) over flat batches and recurrent states, on the weights of `transformers`' class.

The same numbers as `MambaForCausalLM` (tested). A sequence's state never reaches the next one of the batch: each has its
own column of the scan.

Shapes: T tokens, B sequences, L tokens of the longest, M width, D inner channels (2 M), N states, K taps of the convolution.
"""

from typing import Any, cast

import torch
from torch.nn.functional import embedding, linear, rms_norm, silu, softplus
from torch.utils.checkpoint import checkpoint
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba.modeling_mamba import MambaBlock, MambaMixer, MambaRMSNorm

from dmlm.model.family import BackboneSpec
from dmlm.model.layout import Layout
from dmlm.model.scan_choice import selective_scan


def new_model(spec: BackboneSpec, config: dict[str, Any]) -> MambaForCausalLM:
    """A model from scratch; `config` holds its dimensions and special IDs."""
    return MambaForCausalLM(MambaConfig(**config))


def adapt(model: MambaForCausalLM, spec: BackboneSpec) -> None:
    """Nothing to adapt: Mamba has neither dropout nor a longest context."""


def start_positions(model: MambaForCausalLM) -> None:
    """Nothing to begin: Mamba has no position embeddings."""


class _Convolution(torch.autograd.Function):
    """y_t = bias + sum_k w_k x_{t-K+1+k}, each channel for itself: K products over whole sequences, time outermost."""

    @staticmethod
    def forward(ctx, x, weight, bias):  # (L, B, D), (K, D), (D,)
        ctx.save_for_backward(x, weight)
        y = torch.addcmul(bias, x, weight[-1])
        for back in range(1, min(len(weight), len(x))):
            y[back:].addcmul_(x[:-back], weight[-1 - back])
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = grad * weight[-1], torch.zeros_like(weight)
        grad_weight[-1] = (grad * x).sum((0, 1))
        for back in range(1, min(len(weight), len(x))):
            grad_x[:-back].addcmul_(grad[back:], weight[-1 - back])
            grad_weight[-1 - back] = (grad[back:] * x[:-back]).sum((0, 1))
        return grad_x, grad_weight, grad.sum((0, 1))


def _taps(mixer: MambaMixer) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (K, D) and bias (D,) of the convolution."""
    weight = mixer.conv1d.weight.squeeze(1).t()
    return weight, mixer.conv1d.bias if mixer.conv1d.bias is not None else torch.zeros_like(weight[0])


def _decay_rate(mixer: MambaMixer) -> torch.Tensor:
    """A (N, D), in fp32."""
    return -torch.exp(mixer.A_log.float()).t().contiguous()


def _selected(mixer: MambaMixer, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What u (..., D) chooses: steps dt (..., D), and B, C (..., N), in fp32."""
    dt, B, C = mixer.x_proj(u).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], -1)
    return softplus(linear(dt, mixer.dt_proj.weight).float() + mixer.dt_proj.bias.float()), B.float(), C.float()


def _blocks(model: MambaForCausalLM) -> list[MambaBlock]:
    return cast("list[MambaBlock]", list(model.backbone.layers))


def _normed(norm: MambaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _block(block: MambaBlock, x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """One layer without a history, (T, M) to (T, M)."""
    mixer = block.mixer
    inner, gate = mixer.in_proj(_normed(block.norm, x)).chunk(2, -1)
    u = silu(_Convolution.apply(layout.side_by_side(inner), *_taps(mixer)))  # (L, B, D)
    dt, B, C = _selected(mixer, u)
    y, _ = selective_scan(u.float(), dt, _decay_rate(mixer), B, C)
    return x + mixer.out_proj((layout.flat(y + mixer.D * u) * silu(gate)).to(gate.dtype))


def hidden_states(model: MambaForCausalLM, ids: torch.Tensor, layout: Layout, recompute: bool = False) -> torch.Tensor:
    """What the head reads, (T, M), for flat `ids` (T,). `recompute` trades time for memory (gradient checkpointing)."""
    x = embedding(ids, model.backbone.embeddings.weight)
    for block in _blocks(model):
        x = checkpoint(_block, block, x, layout, use_reentrant=False) if recompute else _block(block, x, layout)
    return _normed(model.backbone.norm_f, x)


class Cache:
    """The recurrent state of rows, of a size that does not depend on their length: `room`, which OPT needs, is not used."""

    def __init__(self, model: MambaForCausalLM, rows: int, room: int = 0) -> None:
        config, table = model.config, model.backbone.embeddings.weight
        layers, width, taps = config.num_hidden_layers, config.intermediate_size, config.conv_kernel
        self.history = torch.zeros(layers, rows, taps - 1, width, dtype=table.dtype, device=table.device)
        self.state = torch.zeros(layers, rows, config.state_size, width, device=table.device)  # fp32
        self.rates = [_decay_rate(block.mixer) for block in _blocks(model)]
        self.taps = [_taps(block.mixer) for block in _blocks(model)]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        self.history, self.state = self.history.index_select(1, rows), self.state.index_select(1, rows)


@torch.inference_mode()
def extend(model: MambaForCausalLM, ids: torch.Tensor, layout: Layout, cache: Cache) -> torch.Tensor:
    """Read more tokens after what the cache holds; returns what the head reads after each row's last one, (B, M)."""
    x = embedding(ids, model.backbone.embeddings.weight)
    present = layout.present().unsqueeze(-1)
    rows = torch.arange(layout.count, device=ids.device).unsqueeze(1)
    for number, block in enumerate(_blocks(model)):
        mixer, history = block.mixer, cache.history[number]
        inner, gate = mixer.in_proj(_normed(block.norm, x)).chunk(2, -1)
        seen = torch.cat([history.transpose(0, 1), layout.side_by_side(inner)])  # (K - 1 + L, B, D)
        ends = layout.lengths.unsqueeze(1) + torch.arange(history.shape[1], device=ids.device)
        cache.history[number] = seen[ends, rows]
        u = silu(_Convolution.apply(seen, *_taps(mixer))[history.shape[1] :])
        dt, B, C = _selected(mixer, u)
        y, cache.state[number] = selective_scan(u.float(), dt * present, cache.rates[number], B, C, cache.state[number])
        x = x + mixer.out_proj((layout.flat(y + mixer.D * u) * silu(gate)).to(gate.dtype))
    return _normed(model.backbone.norm_f, x[layout.last])


@torch.inference_mode()
def step(model: MambaForCausalLM, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """One token (B,) more for each row; returns what the head reads, (B, M)."""
    x = embedding(ids, model.backbone.embeddings.weight)
    for number, block in enumerate(_blocks(model)):
        mixer = block.mixer
        inner, gate = mixer.in_proj(_normed(block.norm, x)).chunk(2, -1)
        seen = torch.cat([cache.history[number], inner.unsqueeze(1)], 1)  # (B, K, D)
        cache.history[number] = seen[:, 1:]
        weight, bias = cache.taps[number]
        u = silu((seen * weight).sum(1) + bias)
        dt, B, C = _selected(mixer, u)
        state = cache.state[number].mul_((dt.unsqueeze(1) * cache.rates[number]).exp_())
        state.addcmul_((dt * u).unsqueeze(1), B.unsqueeze(-1))
        y = torch.addcmul((C.unsqueeze(1) @ state).squeeze(1), mixer.D, u)
        x = x + mixer.out_proj((y * silu(gate)).to(gate.dtype))
    return _normed(model.backbone.norm_f, x)
