"""Peak memory of one training step of OPT-125M at 2,048 tokens: this project against Hugging Face's Trainer.

On a CPU this is the resident memory of the whole process, on CUDA the allocated device memory; both include weights,
gradients and AdamW's state. The vocabulary is OPT's own with the audio and lip IDs of arXiv 2406.06582 added. There are
two comparisons: both with their defaults, and both saving memory (ours by `execution.micro_tokens` and
`execution.recompute`, theirs by gradient accumulation over single sequences with gradient checkpointing).

    python benchmarks/memory.py        # 2 sequences on a CPU, 16 on CUDA
"""

import resource
import sys
from collections.abc import Callable

import numpy as np
import torch
import training
from harness import FULL, alternate, model, record, row

from dmlm.sequence.template import ROLES, Packed
from dmlm.training.settings import DEFAULT_EXECUTION, Execution

LENGTH = 2048


def peak() -> float:
    """Return the peak memory of this process so far, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def contestant(side: str, case: str) -> Callable[[], float]:
    """Return a function that trains a few steps and returns the peak memory of the process so far, in GiB."""
    name, batch, *saving = case.split()
    net = model(name, FULL, context=LENGTH)
    roles = np.full(LENGTH, ROLES.index("T"), np.int8)
    roles[0] = -1
    rng = np.random.default_rng(0)
    sequences = [Packed(rng.integers(0, FULL.text_size, LENGTH), roles) for _ in range(2 * int(batch))]

    def run() -> float:
        if side == "ours":
            execution = Execution(micro_tokens=LENGTH, recompute=True) if saving else DEFAULT_EXECUTION
            training.ours(net, sequences, FULL, int(batch), 1, warm=1, execution=execution)
        elif saving:
            options = {"gradient_accumulation_steps": int(batch), "gradient_checkpointing": True}
            training.theirs(net, sequences, FULL, 1, 1, warm=1, **options)
        else:
            training.theirs(net, sequences, FULL, int(batch), 1, warm=1)
        return peak()

    return run


def main() -> None:
    """Measure the cases given on the command line, or the default ones."""
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
