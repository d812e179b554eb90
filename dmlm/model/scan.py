"""Mamba's selective scan on a CPU: one fused step in time over all channels, gradients written by hand.

    h_t = exp(dt_t A) * h_{t-1} + dt_t B_t u_t,    y_t = C_t . h_t            (Gu & Dao 2023, arXiv 2312.00752, eq. 2)

The reference in `transformers` keeps the graph of a Python loop (backward quadratic in time), mambapy sweeps the whole
(B, L, D, N) tensor log2(L) times. This one works through the batch in pieces that stay in the cache. Small states are
kept for the backward pass, large ones are computed again.

Shapes: B batch, D channels, L time, N states, b items of a piece.
"""

import torch
from torch import nn

PIECE = 1 << 20  # elements of a (L, b, D, N) tensor: 4 MiB
KEEP = 1 << 23  # elements of a (B, L, D, N) tensor up to which states are kept: 32 MiB


def _states(u: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay exp(dt A) and states h, both (L, b, D, N), from u, dt (L, b, D), A (D, N), B (L, b, N)."""
    decay = (dt.unsqueeze(-1) * A).exp_()
    states = (dt * u).unsqueeze(-1) * B.unsqueeze(2)
    for now, factor, before in zip(states[1:], decay[1:], states[:-1], strict=True):
        now.addcmul_(factor, before)
    return decay, states


def _time_first(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """(B, X, L) to contiguous (L, B, X)."""
    return [tensor.permute(2, 0, 1).contiguous() for tensor in tensors]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, dt, A, B, C):  # u, dt (B, D, L); A (D, N); B, C (B, N, L)
        ctx.save_for_backward(u, dt, A, B, C)
        output, last = torch.empty_like(u), u.new_empty(*u.shape[:2], A.shape[1])
        ctx.kept = [] if any(ctx.needs_input_grad) and u.numel() * A.shape[1] <= KEEP else None
        for piece in _pieces(u, A):
            u_t, dt_t, B_t, C_t = _time_first(u[piece], dt[piece], B[piece], C[piece])
            decay, states = _states(u_t, dt_t, A, B_t)
            if ctx.kept is not None:
                ctx.kept.append((decay, states))
            output[piece] = (states @ C_t.unsqueeze(-1)).squeeze(-1).permute(1, 2, 0)
            last[piece] = states[-1]
        ctx.mark_non_differentiable(last)
        return output, last

    @staticmethod
    def backward(ctx, grad_output, _):
        u, dt, A, B, C = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (u, dt, B, C)]
        grad_A = torch.zeros_like(A)
        for piece in _pieces(u, A):
            u_t, dt_t, B_t, C_t, g_t = _time_first(u[piece], dt[piece], B[piece], C[piece], grad_output[piece])
            decay, states = ctx.kept.pop(0) if ctx.kept else _states(u_t, dt_t, A, B_t)
            flow = g_t.unsqueeze(-1) * C_t.unsqueeze(2)  # becomes dL/dh_t, (L, b, D, N)
            for t in range(len(flow) - 2, -1, -1):
                flow[t].addcmul_(decay[t + 1], flow[t + 1])
            grad_x = (flow @ B_t.unsqueeze(-1)).squeeze(-1)  # with x = dt u
            grad_B = ((dt_t * u_t).unsqueeze(2) @ flow).squeeze(2)
            grad_C = (g_t.unsqueeze(2) @ states).squeeze(2)
            through_decay = decay[1:].mul_(flow[1:]).mul_(states[:-1])  # dL/d(dt A)
            grad_dt = grad_x * u_t
            grad_dt[1:] += (through_decay * A).sum(-1)
            grad_A += (through_decay * dt_t[1:].unsqueeze(-1)).sum((0, 1))
            for whole, part in zip(grads, (grad_x * dt_t, grad_dt, grad_B, grad_C), strict=True):
                whole[piece] = part.permute(1, 2, 0)
        grad_u, grad_dt, grad_B, grad_C = grads
        return grad_u, grad_dt, grad_A, grad_B, grad_C


def _pieces(u: torch.Tensor, A: torch.Tensor) -> list[slice]:
    """Runs of batch items whose states fit the cache."""
    per_item = u.shape[2] * A.numel()
    size = max(1, PIECE // per_item)
    return [slice(start, start + size) for start in range(0, len(u), size)]


def selective_scan(
    hidden_states: torch.Tensor,  # (B, D, L)
    dt: torch.Tensor,  # (B, D, L)
    A: torch.Tensor,  # (D, N)
    B: torch.Tensor,  # (B, N, L)
    C: torch.Tensor,  # (B, N, L)
    D: torch.Tensor | None = None,  # (D,)
    z: torch.Tensor | None = None,  # (B, D, L)
    delta_bias: torch.Tensor | None = None,  # (D,)
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **unused: object,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What `transformers.models.mamba.modeling_mamba.mamba_selective_scan` computes, with its arguments."""
    if delta_bias is not None:
        dt = dt + delta_bias[:, None]
    if delta_softplus:
        dt = nn.functional.softplus(dt)
    output, last = _Scan.apply(hidden_states.float(), dt.float(), A, B.float(), C.float())
    if D is not None:
        output = output + hidden_states * D[:, None]
    if z is not None:
        output = output * nn.functional.silu(z)
    return (output, last) if return_last_state else output
