"""Mamba's selective scan as Triton kernels for NVIDIA GPUs. Imported only where Triton is installed.

A program has one sequence and a few channels. It walks through time in tiles; inside a tile all steps are combined at
once by a parallel scan, in registers, and from tile to tile it carries the state. The forward pass keeps the state
before every tile, from which the backward pass computes the tile again: no tensor of length x states x channels exists.

Shapes: L time, B batch, D channels, N states.
"""

import torch
import triton
import triton.language as tl

STEPS, CHANNELS = 16, 32  # of a tile


@triton.jit
def _combine(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def _forward(
    u, dt, A, B, C, start, y, kept, last, L, batch, D, N,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n, steps = tl.arange(0, STATES), tl.arange(0, STEPS)
    here = (n[:, None] < N) & (d[None, :] < D)  # (N, D)
    decay_rate = tl.load(A + n[:, None] * D + d[None, :], here, 0.0)
    state = tl.load(start + (b * N + n[:, None]) * D + d[None, :], here, 0.0)
    for tile in range(tl.cdiv(L, STEPS)):
        tl.store(kept + ((tile * batch + b) * N + n[:, None]) * D + d[None, :], state, here)
        row = (tile * STEPS + steps) * batch + b
        inside = tile * STEPS + steps < L
        wide, narrow = inside[:, None] & (d[None, :] < D), inside[:, None] & (n[None, :] < N)
        u_t = tl.load(u + row[:, None] * D + d[None, :], wide, 0.0)
        dt_t = tl.load(dt + row[:, None] * D + d[None, :], wide, 0.0)
        B_t = tl.load(B + row[:, None] * N + n[None, :], narrow, 0.0)
        C_t = tl.load(C + row[:, None] * N + n[None, :], narrow, 0.0)
        decay = tl.exp(dt_t[:, None, :] * decay_rate[None, :, :])  # (L, N, D)
        decays, states = tl.associative_scan((decay, (dt_t * u_t)[:, None, :] * B_t[:, :, None]), 0, _combine)
        states += decays * state[None, :, :]
        tl.store(y + row[:, None] * D + d[None, :], tl.sum(states * C_t[:, :, None], 1), wide)
        state = tl.sum(tl.where(steps[:, None, None] == STEPS - 1, states, 0.0), 0)
    tl.store(last + (b * N + n[:, None]) * D + d[None, :], state, here)


@triton.jit
def _backward(
    u, dt, A, B, C, kept, grad, grad_u, grad_dt, grad_A, grad_B, grad_C, L, batch, D, N,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    b, block = tl.program_id(0), tl.program_id(1)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n, steps = tl.arange(0, STATES), tl.arange(0, STEPS)
    here = (n[:, None] < N) & (d[None, :] < D)
    decay_rate = tl.load(A + n[:, None] * D + d[None, :], here, 0.0)
    later = tl.zeros((STATES, CHANNELS), tl.float32)  # dL/dh of the first step after the tile
    slope_A = tl.zeros((STATES, CHANNELS), tl.float32)
    tiles = tl.cdiv(L, STEPS)
    for back in range(tiles):
        tile = tiles - 1 - back
        t = tile * STEPS + steps
        row = t * batch + b
        wide, narrow = (t < L)[:, None] & (d[None, :] < D), (t < L)[:, None] & (n[None, :] < N)
        u_t = tl.load(u + row[:, None] * D + d[None, :], wide, 0.0)
        dt_t = tl.load(dt + row[:, None] * D + d[None, :], wide, 0.0)
        g_t = tl.load(grad + row[:, None] * D + d[None, :], wide, 0.0)
        B_t = tl.load(B + row[:, None] * N + n[None, :], narrow, 0.0)
        C_t = tl.load(C + row[:, None] * N + n[None, :], narrow, 0.0)
        after = (t + 1 < L)[:, None] & (d[None, :] < D)
        dt_after = tl.load(dt + (row + batch)[:, None] * D + d[None, :], after, 0.0)
        before = tl.load(kept + ((tile * batch + b) * N + n[:, None]) * D + d[None, :], here, 0.0)

        added = (dt_t * u_t)[:, None, :] * B_t[:, :, None]  # (L, N, D)
        decay = tl.exp(dt_t[:, None, :] * decay_rate[None, :, :])
        decays, states = tl.associative_scan((decay, added), 0, _combine)
        states += decays * before[None, :, :]
        decay_after = tl.exp(dt_after[:, None, :] * decay_rate[None, :, :])
        slope = g_t[:, None, :] * C_t[:, :, None]
        reaches, flow = tl.associative_scan((decay_after, slope), 0, _combine, reverse=True)
        flow += reaches * later[None, :, :]  # dL/dh
        later = tl.sum(tl.where(steps[:, None, None] == 0, flow, 0.0), 0)

        through_decay = flow * (states - added)  # dL/d(dt A): decay * h_before = h - added
        slope_x = tl.sum(flow * B_t[:, :, None], 1)
        slope_dt = slope_x * u_t + tl.sum(through_decay * decay_rate[None, :, :], 1)
        tl.store(grad_u + row[:, None] * D + d[None, :], slope_x * dt_t, wide)
        tl.store(grad_dt + row[:, None] * D + d[None, :], slope_dt, wide)
        slope_A += tl.sum(through_decay * dt_t[:, None, :], 0)
        part = block * L * batch + row
        tl.store(grad_B + part[:, None] * N + n[None, :], tl.sum(flow * (dt_t * u_t)[:, None, :], 2), narrow)
        tl.store(grad_C + part[:, None] * N + n[None, :], tl.sum(states * g_t[:, None, :], 2), narrow)
    tl.store(grad_A + (b * N + n[:, None]) * D + d[None, :], slope_A, here)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, dt, A, B, C, start):
        (length, batch, channels), states = u.shape, len(A)
        grid = batch, triton.cdiv(channels, CHANNELS)
        tile = {"STEPS": STEPS, "CHANNELS": CHANNELS, "STATES": triton.next_power_of_2(states)}
        y, last = torch.empty_like(u), torch.empty_like(start)
        kept = u.new_empty(triton.cdiv(length, STEPS), batch, states, channels)
        _forward[grid](u, dt, A, B, C, start, y, kept, last, length, batch, channels, states, **tile)
        ctx.save_for_backward(u, dt, A, B, C, kept)
        ctx.launch = grid, tile
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx, grad, _):
        u, dt, A, B, C, kept = ctx.saved_tensors
        grid, tile = ctx.launch
        grad_u, grad_dt = torch.empty_like(u), torch.empty_like(u)
        grad_A = u.new_empty(grid[0], *A.shape)
        grad_B, grad_C = u.new_empty(grid[1], *B.shape), u.new_empty(grid[1], *C.shape)  # summed below, in one order
        sizes = *u.shape, len(A)
        _backward[grid](
            u, dt, A, B, C, kept, grad.contiguous(), grad_u, grad_dt, grad_A, grad_B, grad_C, *sizes, **tile
        )
        return grad_u, grad_dt, grad_A.sum(0), grad_B.sum(0), grad_C.sum(0), None


def selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `dmlm.model.scan.reference` computes, in fp32."""
    start = u.new_zeros(u.shape[1], *A.shape) if start is None else start.contiguous()
    return _Scan.apply(*(value.contiguous() for value in (u, dt, A, B, C)), start)
