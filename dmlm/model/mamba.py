"""Mamba (Gu & Dao 2023, arXiv 2312.00752) for flat batches, with a recurrent state for decoding.

It works on the weights of `MambaForCausalLM` of `transformers` and computes the same numbers (tested). The state of a
sequence never reaches the next sequence of the batch: each has its own column in the scan.

Shapes: T tokens, B sequences, L tokens of the longest, M width, D inner channels (2 M), N states, K convolution taps.
"""

from typing import Any, cast

import torch
from torch.nn.functional import embedding, linear, rms_norm, silu, softplus
from torch.utils.checkpoint import checkpoint
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba.modeling_mamba import MambaBlock, MambaMixer, MambaRMSNorm

from dmlm.model.family import BackboneSpec
from dmlm.model.layout import Layout
from dmlm.model.scan_choice import fastest_scan, selective_scan


def new_model(spec: BackboneSpec, config: dict[str, Any]) -> MambaForCausalLM:
    """Build a model with random weights; `config` holds its dimensions and special IDs."""
    return MambaForCausalLM(MambaConfig(**config))


def adapt(model: MambaForCausalLM, spec: BackboneSpec) -> None:
    """Do nothing: Mamba has neither dropout nor a maximum context."""


def start_positions(model: MambaForCausalLM) -> None:
    """Do nothing: Mamba has no position embeddings."""


class _Convolution(torch.autograd.Function):
    """Causal convolution of each channel, y_t = bias + sum_k w_k x_{t-K+1+k}, as K products over whole sequences."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # (L, B, D)
        weight: torch.Tensor,  # (K, D)
        bias: torch.Tensor,  # (D,)
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        y = torch.addcmul(bias, x, weight[-1])
        for lag in range(1, min(len(weight), len(x))):
            y[lag:].addcmul_(x[:-lag], weight[-1 - lag])
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = grad * weight[-1], torch.zeros_like(weight)
        grad_weight[-1] = (grad * x).sum((0, 1))
        for lag in range(1, min(len(weight), len(x))):
            grad_x[:-lag].addcmul_(grad[lag:], weight[-1 - lag])
            grad_weight[-1 - lag] = (grad[lag:] * x[:-lag]).sum((0, 1))
        return grad_x, grad_weight, grad.sum((0, 1))


def _taps(mixer: MambaMixer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (K, D) and bias (D,) of the convolution; zeros if it has no bias."""
    weight = mixer.conv1d.weight.squeeze(1).t()
    return weight, mixer.conv1d.bias if mixer.conv1d.bias is not None else torch.zeros_like(weight[0])


def _decay_rate(mixer: MambaMixer) -> torch.Tensor:
    """Return A (N, D), in fp32."""
    return -torch.exp(mixer.A_log.float()).t().contiguous()


def _scan_parameters(mixer: MambaMixer, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the input-dependent step sizes dt (..., D), and B, C (..., N), of u (..., D), in fp32."""
    dt, B, C = mixer.x_proj(u).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], -1)
    return softplus(linear(dt, mixer.dt_proj.weight).float() + mixer.dt_proj.bias.float()), B.float(), C.float()


def _blocks(model: MambaForCausalLM) -> list[MambaBlock]:
    return cast("list[MambaBlock]", list(model.backbone.layers))


def _normalise(norm: MambaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _block(block: MambaBlock, x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Apply one layer to sequences from their start, (T, M) to (T, M)."""
    mixer = block.mixer
    inner, gate = mixer.in_proj(_normalise(block.norm, x)).chunk(2, -1)
    u = silu(_Convolution.apply(layout.pad(inner), *_taps(mixer)))  # (L, B, D)
    dt, B, C = _scan_parameters(mixer, u)
    y, _ = selective_scan(u.float(), dt, _decay_rate(mixer), B, C)
    return x + mixer.out_proj((layout.unpad(y + mixer.D * u) * silu(gate)).to(gate.dtype))


def hidden_states(model: MambaForCausalLM, ids: torch.Tensor, layout: Layout, recompute: bool = False) -> torch.Tensor:
    """Return the final hidden states (T, M) of flat `ids` (T,); `recompute` saves memory by gradient checkpointing."""
    fastest_scan(ids.device.type)  # chosen before a checkpoint begins, inside which its test of gradients would fail
    x = embedding(ids, model.backbone.embeddings.weight)
    for block in _blocks(model):
        x = checkpoint(_block, block, x, layout, use_reentrant=False) if recompute else _block(block, x, layout)
    return _normalise(model.backbone.norm_f, x)


class Cache:
    """The recurrent state of a batch of `rows` sequences.

    Its size does not depend on their length: `capacity`, which OPT needs, is ignored.
    """

    def __init__(self, model: MambaForCausalLM, rows: int, capacity: int = 0) -> None:
        config, weight = model.config, model.backbone.embeddings.weight
        layers, width, taps = config.num_hidden_layers, config.intermediate_size, config.conv_kernel
        # inputs of the convolution before the next token, (layers, B, K - 1, D)
        self.history = torch.zeros(layers, rows, taps - 1, width, dtype=weight.dtype, device=weight.device)
        self.state = torch.zeros(layers, rows, config.state_size, width, device=weight.device)  # fp32
        self.rates = [_decay_rate(block.mixer) for block in _blocks(model)]
        self.taps = [_taps(block.mixer) for block in _blocks(model)]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be repeated."""
        self.history, self.state = self.history.index_select(1, rows), self.state.index_select(1, rows)


@torch.inference_mode()
def extend(model: MambaForCausalLM, ids: torch.Tensor, layout: Layout, cache: Cache) -> torch.Tensor:
    """Append flat `ids` (T,) to the rows of the cache; return the last hidden state of each row, (B, M)."""
    x = embedding(ids, model.backbone.embeddings.weight)
    token_mask = layout.token_mask().unsqueeze(-1)
    rows = torch.arange(layout.count, device=ids.device).unsqueeze(1)
    for number, block in enumerate(_blocks(model)):
        mixer, history = block.mixer, cache.history[number]
        inner, gate = mixer.in_proj(_normalise(block.norm, x)).chunk(2, -1)
        window = torch.cat([history.transpose(0, 1), layout.pad(inner)])  # (K - 1 + L, B, D)
        last = layout.lengths.unsqueeze(1) + torch.arange(history.shape[1], device=ids.device)
        cache.history[number] = window[last, rows]
        u = silu(_Convolution.apply(window, *_taps(mixer))[history.shape[1] :])
        dt, B, C = _scan_parameters(mixer, u)
        dt = dt * token_mask  # a step of size zero leaves the state as it is: padding has no effect
        y, cache.state[number] = selective_scan(u.float(), dt, cache.rates[number], B, C, cache.state[number])
        x = x + mixer.out_proj((layout.unpad(y + mixer.D * u) * silu(gate)).to(gate.dtype))
    return _normalise(model.backbone.norm_f, x[layout.last])


@torch.inference_mode()
def step(model: MambaForCausalLM, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Append one token (B,) to each row; return its final hidden state, (B, M)."""
    x = embedding(ids, model.backbone.embeddings.weight)
    for number, block in enumerate(_blocks(model)):
        mixer = block.mixer
        inner, gate = mixer.in_proj(_normalise(block.norm, x)).chunk(2, -1)
        window = torch.cat([cache.history[number], inner.unsqueeze(1)], 1)  # (B, K, D)
        cache.history[number] = window[:, 1:]
        weight, bias = cache.taps[number]
        u = silu((window * weight).sum(1) + bias)
        dt, B, C = _scan_parameters(mixer, u)
        state = cache.state[number].mul_((dt.unsqueeze(1) * cache.rates[number]).exp_())
        state.addcmul_((dt * u).unsqueeze(1), B.unsqueeze(-1))
        y = torch.addcmul((C.unsqueeze(1) @ state).squeeze(1), mixer.D, u)
        x = x + mixer.out_proj((y * silu(gate)).to(gate.dtype))
    return _normalise(model.backbone.norm_f, x)
