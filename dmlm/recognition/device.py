"""The choice of the device."""

import os

import torch


def device() -> torch.device:
    """Return this process's CUDA device if there is one, else the CPU; limit PyTorch to one thread.

    On a CPU each trial has one core, and one thread always adds numbers in the same order.
    """
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    cuda = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(cuda)
    return cuda
