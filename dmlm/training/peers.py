"""Data parallel training: processes that each take a part of every batch and add their gradients up.

Started by `torchrun`, which sets RANK, WORLD_SIZE and the address; without it there is one process and nothing to do.
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
    """This process among those that train one model."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "Peers":
        """Meet the others that torchrun started: NCCL between GPUs, Gloo between CPUs."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(distributed.destroy_process_group)  # its threads may abort a process that just ends
        return cls(distributed.get_rank(), size)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """The items of a batch that are this process's: every `size`-th."""
        return indices[self.rank :: self.size]

    def any(self, wish: bool) -> bool:
        """Whether any process wishes so: all of them hear the same answer."""
        if self.size == 1:
            return wish
        wishes = torch.tensor([float(wish)], device="cuda" if torch.cuda.is_available() else "cpu")
        distributed.all_reduce(wishes)
        return wishes.item() > 0

    def add_up(self, values: torch.Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)

    def add_up_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients over all processes, in one message."""
        if self.size == 1:
            return
        own = list(parameters)
        message = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in own])
        distributed.all_reduce(message)
        for parameter, part in zip(own, message.split([p.numel() for p in own]), strict=True):
            parameter.grad = part.view_as(parameter)
