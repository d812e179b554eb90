"""Mamba's selective scan in PyTorch: a plain reference, and a faster form for CPUs.

    h_t = exp(dt_t A) * h_{t-1} + dt_t B_t u_t,    y_t = C_t . h_t            (Gu & Dao 2023, arXiv 2312.00752, eq. 2)

`reference` is that loop. Its autograd graph stores every state, (L, B, N, D), and the backward pass of the form in
`transformers` takes quadratic time. `chunked` processes a few time steps of a few sequences at once, so that their
tensors fit into the processor's cache. Its forward pass stores one state a chunk; its backward pass, written by hand,
computes the states within the chunk again. Channels are the innermost dimension, which suits vector instructions.

Shapes: L time, B batch, D channels, N states; b sequences of a group, l steps of a chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch

STATE_ELEMENTS = 1 << 16  # at most, of a (b, N, D) state: 256 KiB
CHUNK_ELEMENTS = 1 << 18  # at most, of an (l, b, N, D) tensor: 1 MiB


def reference(
    u: torch.Tensor,  # (L, B, D)
    dt: torch.Tensor,  # (L, B, D)
    A: torch.Tensor,  # (N, D), negative
    B: torch.Tensor,  # (L, B, N)
    C: torch.Tensor,  # (L, B, N)
    start: torch.Tensor | None = None,  # (B, N, D) state before the first step; None: zero
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs y (L, B, D) and the last state (B, N, D), computed step by step: slow, but obviously correct."""
    state = torch.zeros(u.shape[1], *A.shape, dtype=u.dtype, device=u.device) if start is None else start
    outputs = []
    for u_t, dt_t, B_t, C_t in zip(u, dt, B, C, strict=True):
        state = torch.exp(dt_t.unsqueeze(1) * A) * state + (dt_t * u_t).unsqueeze(1) * B_t.unsqueeze(-1)
        outputs.append((state * C_t.unsqueeze(-1)).sum(1))
    return torch.stack(outputs), state


def _groups(batch: int, length: int, state_size: int) -> Iterator[tuple[slice, list[slice]]]:
    """Split the batch into groups of sequences, and the time of each group into chunks."""
    group_size = max(1, STATE_ELEMENTS // state_size)
    for start in range(0, batch, group_size):
        group = slice(start, min(start + group_size, batch))
        steps = max(1, CHUNK_ELEMENTS // (state_size * (group.stop - start)))
        yield group, [slice(t, t + steps) for t in range(0, length, steps)]


def _states(
    u: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decay exp(dt A) and states h of a chunk, both (l, b, N, D).

    The arguments are u, dt (l, b, D), A (N, D), B (l, b, N), and the state before the chunk (b, N, D).
    """
    decay = (dt.unsqueeze(2) * A).exp_()
    states = (dt * u).unsqueeze(2) * B.unsqueeze(-1)
    for state, factor in zip(states, decay, strict=True):
        before = state.addcmul_(factor, before)
    return decay, states


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        start: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(u, dt, A, B, C)
        ctx.chunk_starts = []  # the state before each chunk, (b, N, D)
        output, last = torch.empty_like(u), u.new_empty(u.shape[1], *A.shape)
        for group, chunks in _groups(u.shape[1], len(u), A.numel()):
            state = torch.zeros_like(last[group]) if start is None else start[group]
            for chunk in chunks:
                part = chunk, group
                ctx.chunk_starts.append(state)
                _, states = _states(u[part], dt[part], A, B[part], state)
                output[part] = (C[part].unsqueeze(2) @ states).squeeze(2)
                state = states[-1].clone()
            last[group] = state
        ctx.mark_non_differentiable(last)
        return output, last

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        u, dt, A, B, C = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (u, dt, B, C)]
        grad_A = torch.zeros_like(A)
        chunk_starts = iter(ctx.chunk_starts)
        for group, chunks in _groups(u.shape[1], len(u), A.numel()):
            from_next = torch.zeros_like(
                A
            )  # gradient of a chunk's last state that comes from the next chunk, (b, N, D)
            # not strict: the iterator goes on with the chunks of the next group
            for chunk, before in reversed(list(zip(chunks, chunk_starts, strict=False))):
                part = chunk, group
                u_t, dt_t, B_t, C_t, g_t = (tensor[part] for tensor in (u, dt, B, C, grad_output))
                decay, states = _states(u_t, dt_t, A, B_t, before)
                grad_h = g_t.unsqueeze(2) * C_t.unsqueeze(-1)  # (l, b, N, D), complete after the loop
                grad_h[-1] += from_next
                for t in range(len(grad_h) - 2, -1, -1):
                    grad_h[t].addcmul_(decay[t + 1], grad_h[t + 1])
                grad_dtA = decay.mul_(grad_h)
                from_next = grad_dtA[0].clone()
                grad_dtA[1:] *= states[:-1]
                grad_dtA[0] *= before  # now dL/d(dt A)
                grad_x = (B_t.unsqueeze(2) @ grad_h).squeeze(2)  # with x = dt u
                grad_C = (states * g_t.unsqueeze(2)).sum(-1)
                grad_B = grad_h.mul_((dt_t * u_t).unsqueeze(2)).sum(-1)
                grad_A += (grad_dtA * dt_t.unsqueeze(2)).sum((0, 1))
                grad_dt = grad_x * u_t + grad_dtA.mul_(A).sum(2)
                for grad, values in zip(grads, (grad_x * dt_t, grad_dt, grad_B, grad_C), strict=True):
                    grad[part] = values
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
    """Compute `reference` in chunks of time. No gradient flows through the start state or the last state."""
    return _Scan.apply(u, dt, A, B.contiguous(), C.contiguous(), start)
