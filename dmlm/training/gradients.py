"""From a batch to the gradients of its loss: in micro-batches, in the chosen precision, summed over all processes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.errors import OutOfMemory
from dmlm.model.layout import Layout
from dmlm.sequence.batches import Batch, micro_batches
from dmlm.training.objectives import Objective, means
from dmlm.training.peers import Peers
from dmlm.training.settings import Execution


@dataclass(frozen=True)
class Losses:
    """The losses of one step, over all processes."""

    total: float
    by_part: dict[str, float]  # nats per token
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Computes the gradients of a model for one batch after the other."""

    model: PreTrainedModel
    objective: Objective
    precision: str  # fp32, bf16 or fp16
    execution: Execution
    device: torch.device
    peers: Peers

    def accumulate(self, batch: Batch, inputs: np.ndarray, batch_size: int, scaler: torch.amp.GradScaler) -> Losses:
        """Add the gradient of the loss over all `batch_size` sequences to the parameters.

        `batch` holds this process's share of the sequences; `inputs` (T,) are the IDs that the model reads.

        Raises:
            OutOfMemory: a micro-batch does not fit.
        """
        device, parts = self.device, self.objective.parts
        loss, sums = torch.zeros((), device=device), torch.zeros(2, len(parts), device=device)
        ends = np.cumsum(batch.lengths)
        for rows in micro_batches(batch.lengths, self.execution.micro_tokens):
            tokens = slice(int(ends[rows.start] - batch.lengths[rows.start]), int(ends[rows.stop - 1]))
            ids, roles, read = (
                torch.from_numpy(array[tokens]).to(device, non_blocking=True)
                for array in (batch.ids, batch.roles, inputs)
            )
            layout = Layout(batch.lengths[rows], device)
            with _out_of_memory_named(layout.tokens):
                with self._autocast():
                    share, by_part = self.objective.loss(
                        self.model, (ids, roles, read), layout, batch_size, self.execution.recompute
                    )
                scaler.scale(share).backward()
            loss += share.detach()
            sums += by_part
        self.peers.add_up_gradients(self.model.parameters())
        figures = torch.cat([loss.view(1), sums.flatten(), loss.new_tensor([len(batch.ids)])])
        self.peers.add_up(figures)
        total, *rest, token_count = figures.tolist()
        return Losses(total, means(parts, rest[: len(parts)], rest[len(parts) :]), int(token_count))

    def _autocast(self) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])


@contextmanager
def _out_of_memory_named(tokens: int) -> Iterator[None]:
    """Turn every kind of out-of-memory error into `OutOfMemory`."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise OutOfMemory(tokens) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the message of PyTorch on a CPU
            raise
        raise OutOfMemory(tokens) from None
