"""Transformer against Mamba at equal parameters, over sequence length: training speed, decoding latency, memory.

Both by the code of this project. Training: one sequence forward and backward, tokens a second, in fp32, on a GPU in bf16. Decoding: milliseconds a
token after a prompt of that length, batch 1. Memory: the cache or state of one sequence. Writes docs/results/length.csv
and .png.

    python benchmarks/length.py          # tiny models, 256 to 8,192 tokens
    python benchmarks/length.py opt-125m mamba-130m
"""

import csv
import statistics
import sys
from typing import Any

import torch
from harness import ROOT, VOCABULARY, device, machine, model, seconds
from tqdm import tqdm
from transformers import PreTrainedModel

from dmlm import processes
from dmlm.model import backbones
from dmlm.model.layout import Layout
from dmlm.model.loss import modality_loss
from dmlm.sequence.template import ROLES

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
NEW_TOKENS = 16
ROUNDS = 5
FIGURE = ROOT / "docs" / "results" / "length"
COLUMNS = ("model", "parameters", "length", "train_tokens_per_s", "decode_ms_per_token", "cache_mib_per_row", "machine")


def measure(net: PreTrainedModel, length: int) -> tuple[float, float, float]:
    """Return tokens a second in training, milliseconds a token in decoding, and MiB of cache."""
    family, layout = backbones.family(net), Layout([length], device())
    ids = torch.randint(0, VOCABULARY.text_size, (length,), device=device())
    roles = torch.full_like(ids, ROLES.index("T"))
    roles[0] = -1
    lambdas = torch.ones(len(ROLES), device=device())

    def train() -> None:
        net.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
            loss = modality_loss(net, ids, roles, layout, lambdas)[0]
        loss.backward()

    def generate(cache: Any) -> None:
        for number in range(NEW_TOKENS):
            family.step(net, ids[number : number + 1], cache)

    training, decoding = [], []
    with torch.inference_mode(False):
        for number in range(ROUNDS + 1):
            train_s = seconds(train)
            cache = family.Cache(net, 1, length + NEW_TOKENS)
            family.extend(net, ids, layout, cache)
            decode_s = seconds(lambda cache=cache: generate(cache))
            if number:
                training.append(length / train_s)
                decoding.append(1000 * decode_s / NEW_TOKENS)
    tensors = [value for value in vars(cache).values() if isinstance(value, torch.Tensor)]
    size = sum(value.numel() * value.element_size() for value in tensors) / 2**20
    return statistics.median(training), statistics.median(decoding), size


def draw(rows: list[dict[str, object]]) -> None:
    """Draw three panels over length, with one line per model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = {
        "train_tokens_per_s": "training, tokens/s",
        "decode_ms_per_token": "decoding, ms/token",
        "cache_mib_per_row": "cache of one row, MiB",
    }
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for name in dict.fromkeys(row["model"] for row in rows):
            of_model = [row for row in rows if row["model"] == name]
            axis.plot([row["length"] for row in of_model], [row[column] for row in of_model], marker="o", label=name)
        axis.set(title=title, xlabel="tokens", xscale="log")
        axis.set(yscale="log") if column.startswith("cache") else axis.set_ylim(bottom=0)
        axis.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower left")
    figure.suptitle(machine(), fontsize=9)
    figure.savefig(FIGURE.with_suffix(".png"), dpi=150)


def main() -> None:
    """Measure, write the table, and draw the figure."""
    processes.keep_memory()
    names = sys.argv[1:] or ["opt-tiny", "mamba-tiny"]
    nets = {name: model(name, VOCABULARY, context=max(LENGTHS) + NEW_TOKENS).to(device()) for name in names}
    rows = []
    for length in tqdm(LENGTHS, unit="length"):
        for name, net in nets.items():
            count = backbones.parameter_count(net, embeddings=False)
            rows.append(dict(zip(COLUMNS, (name, count, length, *measure(net, length), machine()), strict=True)))
    with FIGURE.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    draw(rows)


if __name__ == "__main__":
    main()
