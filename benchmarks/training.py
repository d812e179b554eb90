"""Useful tokens a second in training: this project against Hugging Face's Trainer with its own length grouping.

Same model, data, batch size, precision and optimiser. Padding is not counted as useful.

    python benchmarks/training.py                # small models, at the quickstart's batch size and a larger one
    python benchmarks/training.py "opt-125m 4"   # minutes on a CPU
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import FULL, VOCABULARY, alternate, device, items, model, record, row, synchronise
from transformers import Trainer, TrainerCallback, TrainingArguments

from dmlm.sequence.batches import stream
from dmlm.training.loop import train
from dmlm.training.settings import DEFAULT_EXECUTION, TrainSettings

SIZES = {  # vocabulary, timed steps on a CPU; on CUDA ten times as many
    "opt-tiny": (VOCABULARY, 16),
    "mamba-tiny": (VOCABULARY, 2),
    "opt-125m": (FULL, 2),
}
WARM = 2  # steps before the clock starts
IGNORED = -100  # label of what is not scored


class Clock(TrainerCallback):
    """Time between the end of the last warming step and the end of training."""

    def __init__(self, warm: int):
        self.warm = warm

    def on_step_end(self, args, state, control, **unused):
        if state.global_step == self.warm:
            synchronise()
            self.start = time.perf_counter()

    def on_train_end(self, args, state, control, **unused):
        synchronise()
        self.seconds = time.perf_counter() - self.start


class Counting:
    """Pads a batch to its longest sequence, as transformers' collators do, and counts real tokens."""

    def __init__(self, pad: int):
        self.pad, self.counts = pad, []

    def __call__(self, rows):
        longest = max(len(r["input_ids"]) for r in rows)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, r in enumerate(rows):
            ids[number, : len(r["input_ids"])] = torch.tensor(r["input_ids"])
            mask[number, : len(r["input_ids"])] = 1
        self.counts.append(int(mask.sum()))
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def theirs(net, sequences, vocabulary, batch_size, steps, warm=WARM, **saving) -> float:
    """Tokens a second of the Trainer."""
    clock, collate = Clock(warm), Counting(vocabulary.special("<pad>"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            max_steps=warm + steps,
            train_sampling_strategy="group_by_length",
            learning_rate=1e-3,
            bf16=torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **saving,
        )
        data = [{"input_ids": sequence.ids.tolist()} for sequence in sequences]
        Trainer(net, arguments, collate, data, callbacks=[clock]).train()
    return sum(collate.counts[warm : warm + steps]) / clock.seconds


def ours(net, sequences, vocabulary, batch_size, steps, warm=WARM, execution=DEFAULT_EXECUTION) -> float:
    """Tokens a second of `dmlm.training.loop`."""
    marks = []

    def on_step(step, loss):
        synchronise()
        marks.append(time.perf_counter())

    settings = TrainSettings(
        steps=warm + steps,
        batch_size=batch_size,
        dropout=0.0,
        precision="bf16" if torch.cuda.is_available() else "fp32",
    )
    with tempfile.TemporaryDirectory() as folder:
        pad = vocabulary.special("<pad>")
        train(net, [sequences], settings, 0, Path(folder), pad, device(), execution, on_step=on_step)
    lengths = np.array([len(sequence) for sequence in sequences])
    timed = itertools.islice(stream(lengths, batch_size, 0), warm, warm + steps)
    return sum(int(lengths[indices].sum()) for _, indices in timed) / (marks[-1] - marks[warm - 1])


def contestant(side: str, case: str):
    """A function that trains a few steps and returns useful tokens a second."""
    name, batch_size = case.split()
    vocabulary, steps = SIZES[name]
    steps *= 10 if torch.cuda.is_available() else 1
    sequences, net = items(vocabulary, 1024), model(name, vocabulary)
    return lambda: (ours if side == "ours" else theirs)(net, sequences, vocabulary, int(batch_size), steps)


def main() -> None:
    """Measure the cases named, or the small ones."""
    for case in sys.argv[1:] or ["opt-tiny 4", "opt-tiny 16", "mamba-tiny 4"]:
        name, batch_size = case.split()
        result = alternate(__file__, case)
        note = f"A+L -> T, batches of {batch_size}, vocabulary {SIZES[name][0].size:,}"
        record([row(f"training {name}, batches of {batch_size}, against Trainer", *result, "tokens/s", 2.0, note)])


if __name__ == "__main__":
    main()
