"""The speed of training OPT-125M as a share of the machine's peak speed of matrix products.

Operations of a step: 6 for each weight and token (2 forward, 4 backward), and 12 x layers x width x (mean number of
attended tokens) for each token (Kaplan et al. 2020, arXiv 2001.08361, table 1, causal attention counted as half).

    python benchmarks/peak.py
"""

import itertools
import sys

import numpy as np
import torch
import training
from harness import FULL, device, model, random_sequences, record, row, seconds

from dmlm import processes
from dmlm.model.backbones import parameter_count
from dmlm.sequence.batches import stream


def peak() -> float:
    """Return the highest speed of products of several sizes, in operations a second, at the precision of training."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    best = 0.0
    for size in (1024, 2048, 8192 if torch.cuda.is_available() else 3072):
        a, b = torch.randn(2, size, size, device=device(), dtype=dtype)
        best = max(best, *(2 * size**3 / seconds(lambda a=a, b=b: a @ b) for _ in range(5)))
    return best


def main() -> None:
    """Measure peak and training in turns; use the highest peak and the median of training."""
    name, batch_size, rounds = "opt-125m", int(sys.argv[1]) if sys.argv[1:] else 8, 5
    processes.keep_memory()
    net, sequences = model(name, FULL), random_sequences(FULL, 1024)
    lengths = np.array([len(sequence) for sequence in sequences])
    indices = np.concatenate([batch for _, batch in itertools.islice(stream(lengths, batch_size, 0), 20)])
    attended = (lengths[indices] ** 2).sum() / lengths[indices].sum() / 2
    config = net.config
    # position embeddings are looked up, not multiplied; token embeddings are multiplied once, as the output head
    weights = parameter_count(net) - net.model.decoder.embed_positions.weight.numel()
    operations_per_token = 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * attended
    results = [(peak(), training.ours(net, sequences, FULL, batch_size, 2)) for _ in range(rounds)]
    rate = float(np.median([tokens_per_s for _, tokens_per_s in results])) * operations_per_token
    best = max(operations_per_s for operations_per_s, _ in results)
    title = f"share of the matrix peak used by {name} training, batches of {batch_size}"
    note = f"ours: operations of training; theirs: peak of the product alone ({'bf16' if torch.cuda.is_available() else 'fp32'})"
    record([row(title, rate / 1e9, best / 1e9, "GFLOP/s", 0.4, note)])


if __name__ == "__main__":
    main()
