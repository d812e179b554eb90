"""The share of the machine's own peak of matrix products that training OPT-125M uses.

Operations of a step: 6 for each weight and token (2 forward, 4 backward), and 12 x layers x width x (mean reach of
attention) a token (Kaplan et al. 2020, arXiv 2001.08361, table 1, causal attention counted as half).

    python benchmarks/peak.py
"""

import itertools
import sys

import numpy as np
import torch
import training
from harness import FULL, device, items, model, record, row, seconds

from dmlm import processes
from dmlm.model.backbones import parameter_count
from dmlm.sequence.batches import stream


def peak() -> float:
    """Best of many products of several sizes, in operations a second, at the precision of training."""
    kind = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    best = 0.0
    for size in (1024, 2048, 8192 if torch.cuda.is_available() else 3072):
        a, b = torch.randn(2, size, size, device=device(), dtype=kind)
        best = max(best, *(2 * size**3 / seconds(lambda a=a, b=b: a @ b) for _ in range(5)))
    return best


def main() -> None:
    """Peak and training take turns; the highest peak of all rounds counts."""
    name, batch_size, rounds = "opt-125m", int(sys.argv[1]) if sys.argv[1:] else 8, 5
    processes.keep_memory()
    net, sequences = model(name, FULL), items(FULL, 1024)
    lengths = np.array([len(sequence) for sequence in sequences])
    taken = np.concatenate([i for _, i in itertools.islice(stream(lengths, batch_size, 0), 20)])
    reach = (lengths[taken] ** 2).sum() / lengths[taken].sum() / 2
    config = net.config
    # positions are looked up, not multiplied; the embedding is looked up once and multiplied once, as the head
    weights = parameter_count(net) - net.model.decoder.embed_positions.weight.numel()
    operations = 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * reach
    found = [(peak(), training.ours(net, sequences, FULL, batch_size, 2)) for _ in range(rounds)]
    rate = float(np.median([tokens for _, tokens in found])) * operations
    best = max(value for value, _ in found)
    title = f"share of the matrix peak used by {name} training, batches of {batch_size}"
    note = f"ours: operations of training; theirs: peak of the product alone ({'bf16' if torch.cuda.is_available() else 'fp32'})"
    record([row(title, rate / 1e9, best / 1e9, "GFLOP/s", 0.4, note)])


if __name__ == "__main__":
    main()
