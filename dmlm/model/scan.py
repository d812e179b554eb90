"""Mamba's selective scan: what it means, and how a CPU does it fast.

    h_t = exp(dt_t A) * h_{t-1} + dt_t B_t u_t,    y_t = C_t . h_t            (Gu & Dao 2023, arXiv 2312.00752, eq. 2)

`reference` is that loop. Its autograd graph keeps every state, (L, B, N, D), and `transformers`' form of it is quadratic
in time when differentiated. `chunked` works through a few steps of the whole batch at once, so that all work on them
stays in the cache: the forward pass keeps one state a chunk, and the backward pass, with gradients written by hand,
computes the states within it again. Channels lie innermost, where a vector unit wants them.

Shapes: L time, B batch, D channels, N states; b items of a piece, l steps of a chunk.
"""

from collections.abc import Iterator

import torch

STEP = 1 << 16  # elements of a (b, N, D) state: 256 KiB
CHUNK = 1 << 18  # elements of a (l, b, N, D) tensor: 1 MiB


def reference(
    u: torch.Tensor,  # (L, B, D)
    dt: torch.Tensor,  # (L, B, D)
    A: torch.Tensor,  # (N, D), negative
    B: torch.Tensor,  # (L, B, N)
    C: torch.Tensor,  # (L, B, N)
    start: torch.Tensor | None = None,  # (B, N, D) state before the first step; zero if not given
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs y (L, B, D) and the last state (B, N, D), step by step: slow, and plainly right."""
    state = torch.zeros(u.shape[1], *A.shape, dtype=u.dtype, device=u.device) if start is None else start
    outputs = []
    for u_t, dt_t, B_t, C_t in zip(u, dt, B, C, strict=True):
        state = torch.exp(dt_t.unsqueeze(1) * A) * state + (dt_t * u_t).unsqueeze(1) * B_t.unsqueeze(-1)
        outputs.append((state * C_t.unsqueeze(-1)).sum(1))
    return torch.stack(outputs), state


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


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, dt, A, B, C, start):
        ctx.save_for_backward(u, dt, A, B, C)
        ctx.starts = []
        output, last = torch.empty_like(u), u.new_empty(u.shape[1], *A.shape)
        for piece, chunks in _pieces(u.shape[1], len(u), A.numel()):
            state = torch.zeros_like(last[piece]) if start is None else start[piece]
            for chunk in chunks:
                here = chunk, piece
                ctx.starts.append(state)
                _, states = _states(u[here], dt[here], A, B[here], state)
                output[here] = (C[here].unsqueeze(2) @ states).squeeze(2)
                state = states[-1].clone()
            last[piece] = state
        ctx.mark_non_differentiable(last)
        return output, last

    @staticmethod
    def backward(ctx, grad_output, _):
        u, dt, A, B, C = ctx.saved_tensors
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
        grad_u, grad_dt, grad_B, grad_C = grads
        return grad_u, grad_dt, grad_A, grad_B, grad_C, None


def chunked(
    u: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `reference` computes, in chunks of time. No gradient flows through the state before or the last one."""
    return _Scan.apply(u, dt, A, B.contiguous(), C.contiguous(), start)
