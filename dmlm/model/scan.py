"""Mamba's selective scan on a CPU: a few time steps at once, so that all work on them stays in the cache.

    h_t = exp(dt_t A) * h_{t-1} + dt_t B_t u_t,    y_t = C_t . h_t            (Gu & Dao 2023, arXiv 2312.00752, eq. 2)

The reference in `transformers` keeps the graph of a Python loop (backward quadratic in time), mambapy sweeps the whole
(B, L, D, N) tensor log2(L) times. Here no tensor of that size exists: the forward pass keeps the state at the start of
each chunk, and the backward pass, with gradients written by hand, computes the states within it again. Channels lie
innermost, where a vector unit wants them.

Shapes: B batch, D channels, L time, N states; b items of a piece, l steps of a chunk.
"""

from collections.abc import Iterator

import torch
from torch import nn

STEP = 1 << 16  # elements of a (b, N, D) state: 256 KiB
CHUNK = 1 << 18  # elements of a (l, b, N, D) tensor: 1 MiB


def _pieces(batch: int, length: int, state: int) -> Iterator[tuple[slice, list[slice]]]:
    """Runs of batch items, and the chunks of time in which each is worked through."""
    items = max(1, STEP // state)
    for start in range(0, batch, items):
        piece = slice(start, min(start + items, batch))
        steps = max(1, CHUNK // (state * (piece.stop - start)))
        yield piece, [slice(t, t + steps) for t in range(0, length, steps)]


def _states(
    u: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay exp(dt A) and states h, both (l, b, N, D), from u, dt (l, b, D), A (N, D), B (l, b, N), h before (b, N, D)."""
    decay = (dt.unsqueeze(2) * A).exp_()
    states = (dt * u).unsqueeze(2) * B.unsqueeze(-1)
    for now, factor in zip(states, decay, strict=True):
        before = now.addcmul_(factor, before)
    return decay, states


def _time_first(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """(B, X, L) to contiguous (L, B, X)."""
    return [tensor.permute(2, 0, 1).contiguous() for tensor in tensors]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, dt, A, B, C):  # u, dt (B, D, L); A (D, N); B, C (B, N, L)
        A = A.t().contiguous()
        u, dt, B, C = _time_first(u, dt, B, C)
        ctx.save_for_backward(u, dt, A, B, C)
        ctx.starts = []
        output, last = torch.empty_like(u), u.new_empty(u.shape[1], *A.shape)
        for piece, chunks in _pieces(u.shape[1], len(u), A.numel()):
            state = torch.zeros_like(last[piece])
            for chunk in chunks:
                here = chunk, piece
                ctx.starts.append(state)
                _, states = _states(u[here], dt[here], A, B[here], state)
                output[here] = (C[here].unsqueeze(2) @ states).squeeze(2)
                state = states[-1].clone()
            last[piece] = state
        last = last.transpose(1, 2)
        ctx.mark_non_differentiable(last)
        return output.permute(1, 2, 0), last

    @staticmethod
    def backward(ctx, grad_output, _):
        u, dt, A, B, C = ctx.saved_tensors
        (grad_output,) = _time_first(grad_output)
        grads = [torch.empty_like(tensor) for tensor in (u, dt, B, C)]
        grad_A = torch.zeros_like(A)
        starts = iter(ctx.starts)
        for piece, chunks in _pieces(u.shape[1], len(u), A.numel()):
            later = torch.zeros_like(A)  # what reaches the last state of a chunk from the one after, (b, N, D)
            for chunk, before in reversed(list(zip(chunks, starts, strict=False))):  # starts go on to the next piece
                here = chunk, piece
                u_t, dt_t, B_t, C_t, g_t = (tensor[here] for tensor in (u, dt, B, C, grad_output))
                decay, states = _states(u_t, dt_t, A, B_t, before)
                flow = g_t.unsqueeze(2) * C_t.unsqueeze(-1)  # becomes dL/dh, (l, b, N, D)
                flow[-1] += later
                for t in range(len(flow) - 2, -1, -1):
                    flow[t].addcmul_(decay[t + 1], flow[t + 1])
                through_decay = decay.mul_(flow)
                later = through_decay[0].clone()
                through_decay[1:] *= states[:-1]
                through_decay[0] *= before  # dL/d(dt A)
                grad_x = (B_t.unsqueeze(2) @ flow).squeeze(2)  # with x = dt u
                grad_C = (states * g_t.unsqueeze(2)).sum(-1)
                grad_B = flow.mul_((dt_t * u_t).unsqueeze(2)).sum(-1)
                grad_A += (through_decay * dt_t.unsqueeze(2)).sum((0, 1))
                grad_dt = grad_x * u_t + through_decay.mul_(A).sum(2)
                for whole, part in zip(grads, (grad_x * dt_t, grad_dt, grad_B, grad_C), strict=True):
                    whole[here] = part
        grad_u, grad_dt, grad_B, grad_C = (grad.permute(1, 2, 0) for grad in grads)
        return grad_u, grad_dt, grad_A.t(), grad_B, grad_C


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
