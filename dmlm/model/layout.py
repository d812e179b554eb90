"""Sequences of different lengths one after another, without padding; and side by side, for what mixes tokens.

Everything that treats tokens one by one (embeddings, projections, norms, the loss) works on the flat form and wastes
nothing on padding. Attention and the scan see the sequences side by side, padded on the right, where no real token
looks.

Shapes: B sequences, T tokens of all of them, N tokens of the longest, F features.
"""

from collections.abc import Sequence

import numpy as np
import torch


class _Move(torch.autograd.Function):
    """Rows of one form to the other; both directions are copies, so that no gradient is ever added up."""

    @staticmethod
    def forward(ctx, rows, spread, places, count):
        ctx.spread, ctx.places, ctx.count = spread, places, len(rows)
        return _moved(rows, spread, places, count)

    @staticmethod
    def backward(ctx, grad):
        return _moved(grad.contiguous(), not ctx.spread, ctx.places, ctx.count), None, None, None


def _moved(rows: torch.Tensor, spread: bool, places: torch.Tensor, count: int) -> torch.Tensor:
    if not spread:
        return rows.index_select(0, places)
    return rows.new_zeros(count, rows.shape[1]).index_copy_(0, places, rows)


class Layout:
    """Where the sequences of a flat batch lie."""

    def __init__(self, lengths: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> None:
        sizes = np.asarray(lengths, dtype=np.int64)
        self.count, self.longest = len(sizes), int(sizes.max())
        ends = np.cumsum(sizes)
        positions = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        rows = np.repeat(np.arange(self.count), sizes)
        self.lengths = torch.from_numpy(sizes).to(device)  # (B,)
        self.positions = torch.from_numpy(positions).to(device)  # (T,) of each token in its own sequence
        self.last = torch.from_numpy(ends - 1).to(device)  # (B,) last token of each sequence, in the flat form
        self.rows = torch.from_numpy(rows).to(device)  # (T,) number of the sequence
        self._places = torch.from_numpy(positions * self.count + rows).to(device)  # (T,) in the other form

    @property
    def tokens(self) -> int:
        return len(self.positions)

    def side_by_side(self, flat: torch.Tensor) -> torch.Tensor:
        """(T, F) to (N, B, F), zero where a sequence has ended."""
        if self.count == 1:
            return flat.unsqueeze(1)
        return _Move.apply(flat, True, self._places, self.longest * self.count).view(self.longest, self.count, -1)

    def flat(self, side_by_side: torch.Tensor) -> torch.Tensor:
        """(N, B, F) to (T, F)."""
        if self.count == 1:
            return side_by_side.squeeze(1)
        return _Move.apply(side_by_side.flatten(0, 1), False, self._places, self.tokens)

    def present(self) -> torch.Tensor:
        """(N, B) bool: true where there is a token."""
        return torch.arange(self.longest, device=self.lengths.device).unsqueeze(1) < self.lengths
