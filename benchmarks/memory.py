"""Peak memory of one training step of OPT-125M at 2,048 tokens: this project against Hugging Face's Trainer.

Resident memory of the whole process on a CPU, allocated device memory on CUDA; weights, gradients and AdamW's state
count in both. The vocabulary is OPT's own with the audio and lip IDs of arXiv 2406.06582 added. Once as both come, and
once with both told to save memory: ours by `execution.micro_tokens` and `execution.recompute`, theirs by accumulating
single sequences with gradient checkpointing.

    python benchmarks/memory.py        # 2 sequences on a CPU, 16 on CUDA
"""

import resource
import sys

import numpy as np
import torch
import training
from harness import FULL, alternate, model, record, row

from dmlm.sequence.template import ROLES, Packed
from dmlm.training.settings import DEFAULT_EXECUTION, Execution

LENGTH = 2048


def peak() -> float:
    """GiB used at most so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def contestant(side: str, case: str):
    """A function that trains a few steps and returns the peak of the process so far, in GiB."""
    name, batch, *saving = case.split()
    net = model(name, FULL, context=LENGTH)
    roles = np.full(LENGTH, ROLES.index("T"), np.int8)
    roles[0] = -1
    random = np.random.default_rng(0)
    sequences = [Packed(random.integers(0, FULL.text_size, LENGTH), roles) for _ in range(2 * int(batch))]

    def run() -> float:
        if side == "ours":
            execution = Execution(micro_tokens=LENGTH, recompute=True) if saving else DEFAULT_EXECUTION
            training.ours(net, sequences, FULL, int(batch), 1, warm=1, execution=execution)
        elif saving:
            saved = {"gradient_accumulation_steps": int(batch), "gradient_checkpointing": True}
            training.theirs(net, sequences, FULL, 1, 1, warm=1, **saved)
        else:
            training.theirs(net, sequences, FULL, int(batch), 1, warm=1)
        return peak()

    return run


def main() -> None:
    """Measure the cases named, or the default."""
    batch = 16 if torch.cuda.is_available() else 2
    for case in sys.argv[1:] or [f"opt-125m {batch}", f"opt-125m {batch} saving"]:
        name, batch, *saving = case.split()
        result = alternate(__file__, case, rounds=1)
        label = f"peak memory, {name} training step of {batch} x {LENGTH:,} tokens" + (
            ", both saving" if saving else ""
        )
        record([row(label, *result, "GiB", 2.0)])


if __name__ == "__main__":
    main()
