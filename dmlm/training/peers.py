"""Data-parallel training: each process takes a share of every batch, and the gradients are summed.

`torchrun` starts the processes and sets RANK, WORLD_SIZE and the address. Without it, there is one process and every
method is trivial.
"""

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed


@dataclass(frozen=True)
class Peers:
    """The processes that train one model together, as seen from this one."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "Peers":
        """Connect to the other processes that torchrun started: by NCCL between GPUs, by Gloo between CPUs."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(distributed.destroy_process_group)  # else its threads can abort a process that ends
        return cls(distributed.get_rank(), size)

    @property
    def first(self) -> bool:
        """Whether this is the process of rank 0, which writes the files."""
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """Return this process's share of the items of a batch: every `size`-th."""
        return indices[self.rank :: self.size]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all processes get the same answer."""
        if self.size == 1:
            return flag
        flags = torch.tensor([float(flag)], device="cuda" if torch.cuda.is_available() else "cpu")
        distributed.all_reduce(flags)
        return flags.item() > 0

    def add_up(self, values: torch.Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)

    def add_up_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of the parameters over all processes, in one message and in place."""
        if self.size == 1:
            return
        trained = list(parameters)
        message = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
        distributed.all_reduce(message)
        for parameter, part in zip(trained, message.split([p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)
