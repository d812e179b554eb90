"""Where a model runs."""

import os

import torch


def device() -> torch.device:
    """CUDA where there is one, else one thread of the CPU: a trial has a core, and sums in one order."""
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(own)
    return own
