"""Useful tokens a second in training: this project against Hugging Face's Trainer with its own length grouping.

Both use the same model, data, batch size, precision and optimiser. Useful tokens are all tokens but padding.

    python benchmarks/training.py                # small models, with the batch size of the quickstart and a larger one
    python benchmarks/training.py "opt-125m 4"   # minutes on a CPU
"""

import importlib.util
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.trainer
from harness import FULL, VOCABULARY, alternate, device, model, random_sequences, record, row, synchronise
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from dmlm.results.training_log import TrainingLog
from dmlm.sequence.batches import stream
from dmlm.sequence.template import Packed
from dmlm.tokens.vocabulary import Vocabulary
from dmlm.training.loggers import NO_LOGGERS
from dmlm.training.loop import Session, train
from dmlm.training.objectives.next_token import NextToken
from dmlm.training.settings import DEFAULT_EXECUTION, Execution, TrainSettings

SIZES = {  # vocabulary, and timed steps on a CPU; ten times as many on CUDA
    "opt-tiny": (VOCABULARY, 16),
    "mamba-tiny": (VOCABULARY, 8),
    "opt-mini": (VOCABULARY, 4),
    "mamba-mini": (VOCABULARY, 4),
    "opt-small": (VOCABULARY, 4),
    "opt-125m": (FULL, 2),
    "mamba-130m": (FULL, 2),
}
WARM = 2  # steps before the clock starts
if (datasets := importlib.util.find_spec("datasets")) and datasets.origin is None:
    # the folder of recipes, not the package: the Trainer would take it for the package
    transformers.trainer.is_datasets_available = lambda: False
IGNORED = -100  # label of tokens that are not scored


class Clock(TrainerCallback):
    """Measures the time from the end of the last warm-up step to the end of training."""

    def __init__(self, warm: int) -> None:
        self.warm = warm

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        if state.global_step == self.warm:
            synchronise()
            self.start = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        synchronise()
        self.seconds = time.perf_counter() - self.start


class CountingCollator:
    """Pads a batch to its longest sequence, as transformers' collators do, and counts its tokens without padding."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id
        self.counts: list[int] = []  # by batch

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(r["input_ids"]) for r in rows)
        ids = torch.full((len(rows), longest), self.pad_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, r in enumerate(rows):
            ids[number, : len(r["input_ids"])] = torch.tensor(r["input_ids"])
            mask[number, : len(r["input_ids"])] = 1
        self.counts.append(int(mask.sum()))
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def theirs(
    net: PreTrainedModel,
    sequences: Sequence[Packed],
    vocabulary: Vocabulary,
    batch_size: int,
    steps: int,
    warm: int = WARM,
    **options: Any,
) -> float:
    """Return tokens a second of the Trainer; `options` are further `TrainingArguments`."""
    clock, collate = Clock(warm), CountingCollator(vocabulary.special("<pad>"))
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
            **options,
        )
        data = [{"input_ids": sequence.ids.tolist()} for sequence in sequences]
        Trainer(net, arguments, collate, data, callbacks=[clock]).train()
    return sum(collate.counts[warm : warm + steps]) / clock.seconds


def steps_of(
    net: PreTrainedModel,
    sequences: Sequence[Packed],
    vocabulary: Vocabulary,
    batch_size: int,
    steps: int,
    warm: int = WARM,
    execution: Execution = DEFAULT_EXECUTION,
    precision: str = "",
    on_warm: Callable[[], object] = lambda: None,
) -> tuple[int, float]:
    """Train by `dmlm.training.loop`; return tokens and seconds of the steps after the first `warm`.

    `on_warm` is called after those. Without a `precision`, it is bf16 on CUDA and fp32 on a CPU.
    """
    step_ends = []

    def on_step(step: int, loss: float) -> None:
        synchronise()
        step_ends.append(time.perf_counter())
        if step == warm:
            on_warm()

    settings = TrainSettings(
        steps=warm + steps,
        batch_size=batch_size,
        dropout=0.0,
        precision=precision or ("bf16" if torch.cuda.is_available() else "fp32"),
    )
    objective = NextToken(settings.lambdas, vocabulary.special("<pad>"), settings.input_mask)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            name="benchmark",
            checkpoints=Path(folder) / "checkpoints",
            device=device(),
            log=TrainingLog(Path(folder) / "train.jsonl", settings.steps, NO_LOGGERS),
            execution=execution,
            on_step=on_step,
        )
        train(net, [sequences], settings, 0, objective, session)
    lengths = np.array([len(sequence) for sequence in sequences])
    timed = itertools.islice(stream(lengths, batch_size, 0), warm, warm + steps)
    return sum(int(lengths[indices].sum()) for _, indices in timed), step_ends[-1] - step_ends[warm - 1]


def ours(*arguments: Any, **options: Any) -> float:
    """Return tokens a second of `steps_of`."""
    tokens, seconds = steps_of(*arguments, **options)
    return tokens / seconds


def contestant(side: str, case: str) -> Callable[[], float]:
    """Return a function that trains a few steps and returns useful tokens a second."""
    name, batch_size = case.split()
    vocabulary, steps = SIZES[name]
    steps *= 10 if torch.cuda.is_available() else 1
    sequences, net = random_sequences(vocabulary, 1024), model(name, vocabulary)
    return lambda: (ours if side == "ours" else theirs)(net, sequences, vocabulary, int(batch_size), steps)


def main() -> None:
    """Measure the cases given on the command line, or those of small models."""
    for case in sys.argv[1:] or ["opt-tiny 4", "opt-tiny 16", "mamba-tiny 4"]:
        name, batch_size = case.split()
        result = alternate(__file__, case)
        note = f"A+L -> T, batches of {batch_size}, vocabulary {SIZES[name][0].size:,}"
        record([row(f"training {name}, batches of {batch_size}, against Trainer", *result, "tokens/s", None, note)])


if __name__ == "__main__":
    main()
