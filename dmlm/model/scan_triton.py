"""Mamba's selective scan as Triton kernels for NVIDIA GPUs. Imported only where Triton is installed.

A program processes one sequence and a few channels. It goes through time in tiles, which are as large as the registers of a
program on Hopper hold: twice the channels would spill in the backward pass (ptxas -v). Inside a tile a parallel scan in
registers combines all steps at once; the state is carried from tile to tile. The forward pass stores the state before
each tile, and the backward pass computes the tile again from it: no tensor of length x states x channels exists.

Shapes: L time, B batch, D channels, N states; lower case in the names of masks: those of a tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl

STEPS, LANES, WARPS = 16, 256, 4  # of a tile: time steps; channels x states; warps of a program
MOST_CHANNELS = 32

# parameters of kernels are annotated with `tl.tensor`, because Triton resolves annotations and rejects `typing.Any`


@triton.jit
def _combine(
    decay_1: tl.tensor, state_1: tl.tensor, decay_2: tl.tensor, state_2: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def _forward(
    u: tl.tensor, dt: tl.tensor, A: tl.tensor, B: tl.tensor, C: tl.tensor, start: tl.tensor,
    y: tl.tensor, tile_starts: tl.tensor, last: tl.tensor, L: tl.tensor, batch: tl.tensor, D: tl.tensor, N: tl.tensor,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
) -> None:  # fmt: skip
    b = tl.program_id(0)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n, steps = tl.arange(0, STATES), tl.arange(0, STEPS)
    mask_nd = (n[:, None] < N) & (d[None, :] < D)
    decay_rate = tl.load(A + n[:, None] * D + d[None, :], mask_nd, 0.0)
    state = tl.load(start + (b * N + n[:, None]) * D + d[None, :], mask_nd, 0.0)
    for tile in range(tl.cdiv(L, STEPS)):
        tl.store(tile_starts + ((tile * batch + b) * N + n[:, None]) * D + d[None, :], state, mask_nd)
        row = (tile * STEPS + steps) * batch + b
        in_time = tile * STEPS + steps < L
        mask_ld, mask_ln = in_time[:, None] & (d[None, :] < D), in_time[:, None] & (n[None, :] < N)
        u_t = tl.load(u + row[:, None] * D + d[None, :], mask_ld, 0.0)
        dt_t = tl.load(dt + row[:, None] * D + d[None, :], mask_ld, 0.0)
        B_t = tl.load(B + row[:, None] * N + n[None, :], mask_ln, 0.0)
        C_t = tl.load(C + row[:, None] * N + n[None, :], mask_ln, 0.0)
        decay = tl.exp(dt_t[:, None, :] * decay_rate[None, :, :])  # (L, N, D)
        decays, states = tl.associative_scan((decay, (dt_t * u_t)[:, None, :] * B_t[:, :, None]), 0, _combine)
        states += decays * state[None, :, :]
        tl.store(y + row[:, None] * D + d[None, :], tl.sum(states * C_t[:, :, None], 1), mask_ld)
        state = tl.sum(tl.where(steps[:, None, None] == STEPS - 1, states, 0.0), 0)
    tl.store(last + (b * N + n[:, None]) * D + d[None, :], state, mask_nd)


@triton.jit
def _backward(
    u: tl.tensor, dt: tl.tensor, A: tl.tensor, B: tl.tensor, C: tl.tensor, tile_starts: tl.tensor, grad: tl.tensor,
    grad_u: tl.tensor, grad_dt: tl.tensor, grad_A: tl.tensor, grad_B: tl.tensor, grad_C: tl.tensor,
    L: tl.tensor, batch: tl.tensor, D: tl.tensor, N: tl.tensor,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
) -> None:  # fmt: skip
    b, block = tl.program_id(0), tl.program_id(1)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n, steps = tl.arange(0, STATES), tl.arange(0, STEPS)
    mask_nd = (n[:, None] < N) & (d[None, :] < D)
    decay_rate = tl.load(A + n[:, None] * D + d[None, :], mask_nd, 0.0)
    from_later = tl.zeros((STATES, CHANNELS), tl.float32)  # dL/dh of the first step after the tile
    grad_A_sum = tl.zeros((STATES, CHANNELS), tl.float32)
    tiles = tl.cdiv(L, STEPS)
    for index in range(tiles):
        tile = tiles - 1 - index
        t = tile * STEPS + steps
        row = t * batch + b
        mask_ld, mask_ln = (t < L)[:, None] & (d[None, :] < D), (t < L)[:, None] & (n[None, :] < N)
        u_t = tl.load(u + row[:, None] * D + d[None, :], mask_ld, 0.0)
        dt_t = tl.load(dt + row[:, None] * D + d[None, :], mask_ld, 0.0)
        g_t = tl.load(grad + row[:, None] * D + d[None, :], mask_ld, 0.0)
        B_t = tl.load(B + row[:, None] * N + n[None, :], mask_ln, 0.0)
        C_t = tl.load(C + row[:, None] * N + n[None, :], mask_ln, 0.0)
        after = (t + 1 < L)[:, None] & (d[None, :] < D)
        dt_after = tl.load(dt + (row + batch)[:, None] * D + d[None, :], after, 0.0)
        before = tl.load(tile_starts + ((tile * batch + b) * N + n[:, None]) * D + d[None, :], mask_nd, 0.0)

        added = (dt_t * u_t)[:, None, :] * B_t[:, :, None]  # (L, N, D)
        decay = tl.exp(dt_t[:, None, :] * decay_rate[None, :, :])
        decays, states = tl.associative_scan((decay, added), 0, _combine)
        states += decays * before[None, :, :]
        decay_after = tl.exp(dt_after[:, None, :] * decay_rate[None, :, :])
        grad_direct = g_t[:, None, :] * C_t[:, :, None]
        decays_after, grad_h = tl.associative_scan((decay_after, grad_direct), 0, _combine, reverse=True)
        grad_h += decays_after * from_later[None, :, :]  # dL/dh
        from_later = tl.sum(tl.where(steps[:, None, None] == 0, grad_h, 0.0), 0)

        grad_dtA = grad_h * (states - added)  # dL/d(dt A): decay * h_before = h - added
        grad_x_t = tl.sum(grad_h * B_t[:, :, None], 1)
        grad_dt_t = grad_x_t * u_t + tl.sum(grad_dtA * decay_rate[None, :, :], 1)
        tl.store(grad_u + row[:, None] * D + d[None, :], grad_x_t * dt_t, mask_ld)
        tl.store(grad_dt + row[:, None] * D + d[None, :], grad_dt_t, mask_ld)
        grad_A_sum += tl.sum(grad_dtA * dt_t[:, None, :], 0)
        part = block * L * batch + row
        tl.store(grad_B + part[:, None] * N + n[None, :], tl.sum(grad_h * (dt_t * u_t)[:, None, :], 2), mask_ln)
        tl.store(grad_C + part[:, None] * N + n[None, :], tl.sum(states * g_t[:, None, :], 2), mask_ln)
    tl.store(grad_A + (b * N + n[:, None]) * D + d[None, :], grad_A_sum, mask_nd)


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
        padded_states = triton.next_power_of_2(states)
        tile_channels = max(1, min(MOST_CHANNELS, LANES // padded_states))
        grid = batch, triton.cdiv(channels, tile_channels)
        tile = {"STEPS": STEPS, "CHANNELS": tile_channels, "STATES": padded_states, "num_warps": WARPS}
        y, last = torch.empty_like(u), torch.empty_like(start)
        tile_starts = u.new_empty(triton.cdiv(length, STEPS), batch, states, channels)
        _forward[grid](u, dt, A, B, C, start, y, tile_starts, last, length, batch, channels, states, **tile)
        ctx.save_for_backward(u, dt, A, B, C, tile_starts)
        ctx.launch = grid, tile
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        u, dt, A, B, C, tile_starts = ctx.saved_tensors
        grid, tile = ctx.launch
        grad_u, grad_dt = torch.empty_like(u), torch.empty_like(u)
        grad_A = u.new_empty(grid[0], *A.shape)
        grad_B, grad_C = (
            u.new_empty(grid[1], *B.shape),
            u.new_empty(grid[1], *C.shape),
        )  # summed over blocks below, always in the same order
        sizes = *u.shape, len(A)
        _backward[grid](
            u, dt, A, B, C, tile_starts, grad.contiguous(), grad_u, grad_dt, grad_A, grad_B, grad_C, *sizes, **tile
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
    """Compute `dmlm.model.scan.reference` in fp32."""
    start = u.new_zeros(u.shape[1], *A.shape) if start is None else start.contiguous()
    return _Scan.apply(*(value.contiguous() for value in (u, dt, A, B, C)), start)
