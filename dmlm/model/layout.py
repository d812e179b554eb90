"""Two forms of a batch of sequences: flat (concatenated, without padding) and padded (for what mixes tokens).

Everything that treats tokens one by one (embeddings, projections, norms, the loss) works on the flat form and wastes
nothing on padding. Attention and the scan work on the padded form. Padding is on the right, where no token attends.

Shapes: B sequences, T tokens of all sequences together, N tokens of the longest sequence, F features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class _Convert(torch.autograd.Function):
    """Copy rows between the two forms. The backward pass is the opposite copy, so no gradients are accumulated."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, to_padded: bool, indices: torch.Tensor, row_count: int) -> torch.Tensor:
        ctx.to_padded, ctx.indices, ctx.input_rows = to_padded, indices, len(rows)
        return _copy_rows(rows, to_padded, indices, row_count)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _copy_rows(grad.contiguous(), not ctx.to_padded, ctx.indices, ctx.input_rows), None, None, None


def _copy_rows(rows: torch.Tensor, to_padded: bool, indices: torch.Tensor, row_count: int) -> torch.Tensor:
    """Copy rows from one form to the other; `row_count` rows come out. `indices` (T,) are rows of the padded form."""
    if not to_padded:
        return rows.index_select(0, indices)
    return rows.new_zeros(row_count, rows.shape[1]).index_copy_(0, indices, rows)


class Layout:
    """The lengths and positions of the sequences of a batch, and the conversion between its two forms.

    Attributes:
        count: B, the number of sequences.
        longest: N, the tokens of the longest sequence.
        lengths: (B,) tokens of each sequence.
        positions: (T,) position of each token in its own sequence.
        rows: (T,) index of each token's sequence.
        last: (B,) index of the last token of each sequence in the flat form.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> None:
        sizes = np.asarray(lengths, dtype=np.int64)
        self.count, self.longest = len(sizes), int(sizes.max())
        ends = np.cumsum(sizes)
        positions = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        rows = np.repeat(np.arange(self.count), sizes)
        self.lengths = torch.from_numpy(sizes).to(device)
        self.positions = torch.from_numpy(positions).to(device)
        self.last = torch.from_numpy(ends - 1).to(device)
        self.rows = torch.from_numpy(rows).to(device)
        self._padded_indices = torch.from_numpy(positions * self.count + rows).to(device)  # (T,) in the padded form

    @property
    def tokens(self) -> int:
        """T, the tokens of all sequences together."""
        return len(self.positions)

    def pad(self, flat: torch.Tensor) -> torch.Tensor:
        """Convert (T, F) to (N, B, F); padding is zero."""
        if self.count == 1:
            return flat.unsqueeze(1)
        padded = _Convert.apply(flat, True, self._padded_indices, self.longest * self.count)
        return padded.view(self.longest, self.count, -1)

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """Convert (N, B, F) to (T, F)."""
        if self.count == 1:
            return padded.squeeze(1)
        return _Convert.apply(padded.flatten(0, 1), False, self._padded_indices, self.tokens)

    def token_mask(self) -> torch.Tensor:
        """Return (N, B) bool: true for tokens, false for padding."""
        return torch.arange(self.longest, device=self.lengths.device).unsqueeze(1) < self.lengths
