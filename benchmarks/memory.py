"""Peak memory of one training step of OPT-125M at 2,048 tokens: this project against Hugging Face's Trainer.

Resident memory of the whole process on a CPU, allocated device memory on CUDA; weights, gradients and AdamW's state
count in both. The vocabulary is OPT's own with the audio and lip IDs of arXiv 2406.06582 added.

    python benchmarks/memory.py        # 2 sequences on a CPU, 16 on CUDA
"""

import resource
import sys

import numpy as np
import torch
import training
from harness import FULL, alternate, model, record, row

from dmlm.sequence.template import ROLES, Packed

LENGTH = 2048


def peak() -> float:
    """GiB used at most so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def contestant(side: str, case: str):
    """A function that trains a few steps and returns the peak of the process so far, in GiB."""
    name, batch = case.split()
    net = model(name, FULL, context=LENGTH)
    roles = np.full(LENGTH, ROLES.index("T"), np.int8)
    roles[0] = -1
    random = np.random.default_rng(0)
    sequences = [Packed(random.integers(0, FULL.text_size, LENGTH), roles) for _ in range(2 * int(batch))]

    def run() -> float:
        (training.ours if side == "ours" else training.theirs)(net, sequences, FULL, int(batch), 1, warm=1)
        return peak()

    return run


def main() -> None:
    """Measure the case named, or the default."""
    for case in sys.argv[1:] or [f"opt-125m {16 if torch.cuda.is_available() else 2}"]:
        name, batch = case.split()
        result = alternate(__file__, case, rounds=1)
        record([row(f"peak memory, {name} training step of {batch} x {LENGTH:,} tokens", *result, "GiB", 2.0)])


if __name__ == "__main__":
    main()
