"""Is it right? Trainings: against a CPU, in parts, in half precision, interrupted, and on two GPUs."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.right import PAD, exact_products, toy_or_tiny
from gpu.steps import LeftOut, Row, Step, check, fact
from harness import ROOT, VOCABULARY, device, model, random_sequences
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from dmlm.errors import OutOfMemory
from dmlm.results.training_log import TrainingLog
from dmlm.sequence.template import ROLES, Packed
from dmlm.training.loggers import NO_LOGGERS
from dmlm.training.loop import Session, train
from dmlm.training.objectives.next_token import NextToken
from dmlm.training.settings import DEFAULT_EXECUTION, Execution, TrainSettings
from dmlm.training.stop_requests import Interrupted


def _train(
    net: PreTrainedModel,
    settings: TrainSettings,
    folder: Path,
    on_step: Callable[[int, float], None],
    execution: Execution = DEFAULT_EXECUTION,
    where: torch.device | None = None,
) -> None:
    session = Session(
        name=folder.name,
        checkpoints=folder / "checkpoints",
        device=where or device(),
        log=TrainingLog(folder / "train.jsonl", settings.steps, NO_LOGGERS),
        execution=execution,
        on_step=on_step,
    )
    train(net, [_learnable(64)], settings, 0, NextToken(settings.lambdas, PAD), session)


def _learnable(count: int) -> list[Packed]:
    """Return sequences whose text repeats the IDs of the audio: something that a small model learns soon."""
    sequences = []
    for sequence in random_sequences(VOCABULARY, count):
        ids, text = sequence.ids.copy(), np.flatnonzero(sequence.roles == ROLES.index("T"))[:-1]
        audio = ids[sequence.roles == ROLES.index("A")][: len(text)]
        ids[text[: len(audio)]] = audio - VOCABULARY.offset("A")
        sequences.append(replace(sequence, ids=ids))
    return sequences


def _losses(name: str, settings: TrainSettings, **more: Any) -> list[float]:
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        net = model(name, VOCABULARY, dropout=settings.dropout)
        _train(net, settings, Path(folder), lambda step, loss: losses.append(loss), **more)
    return losses


def training(toy: bool) -> Iterator[Row]:
    """A training on a GPU against one on a CPU; in halves, with recomputation, in bf16 and in fp16."""
    exact_products()
    steps = 3 if toy else 60
    settings = TrainSettings(steps=steps, batch_size=4, lr=1e-3, warmup_steps=2, dropout=0.0)
    for name in (toy_or_tiny("opt", toy), toy_or_tiny("mamba", toy)):
        right = _losses(name, settings, where=torch.device("cpu"))[:10]
        plain = _losses(name, settings)
        apart = max(abs(a / b - 1) for a, b in zip(plain, right, strict=False))
        yield check(f"{name}: loss of the first {len(right)} steps, against a CPU", apart, 1e-3)
        parts = _losses(name, settings, execution=Execution(micro_tokens=300, recompute=True))
        apart = max(abs(a / b - 1) for a, b in zip(parts[:10], plain[:10], strict=True))
        yield check(f"{name}: loss with micro-batches and recomputation", apart, 1e-3)
        for precision in ("bf16", *(() if toy else ("fp16",))):
            half = _losses(name, replace(settings, precision=precision))
            last, whole = np.mean(half[-10:]), np.mean(plain[-10:])
            yield check(f"{name}: mean of the last losses in {precision}, against fp32", abs(last / whole - 1), 0.05)


def out_of_memory(toy: bool) -> Iterator[Row]:
    """Memory that runs out is recognised, so that a sweep tries the step again in halves."""
    if toy:
        raise LeftOut("needs the memory of a GPU")
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        _losses("opt-125m", TrainSettings(steps=1, batch_size=64))
        yield check("a step that does not fit raises OutOfMemory", 1.0, 0.0)
    except OutOfMemory:
        yield check("a step that does not fit raises OutOfMemory", 0.0, 0.0)
    except torch.OutOfMemoryError:
        yield fact("a step that does not fit", "the model itself did not fit")


def resume(toy: bool) -> Iterator[Row]:
    """A training that is stopped and continued against one that is not, with dropout, in fp32 and in bf16.

    Exactly, by the back end of attention that adds up in a fixed order; the others do not even repeat themselves.
    """
    steps = 4 if toy else 40
    for name, precision in itertools.product((toy_or_tiny("opt", toy), toy_or_tiny("mamba", toy)), ("fp32", "bf16")):
        settings = TrainSettings(steps=steps, batch_size=4, warmup_steps=2, dropout=0.1, precision=precision)
        label = f"{name}, {precision}: losses of the same training twice"
        apart = max(abs(a - b) for a, b in zip(_losses(name, settings), _losses(name, settings), strict=True))
        yield fact(f"{label}, by the attention that PyTorch chooses", apart)
        with sdpa_kernel(SDPBackend.MATH):
            first, again = _losses(name, settings), _losses(name, settings)
        apart = max(abs(a - b) for a, b in zip(first, again, strict=True))
        yield check(label, apart, 0.0)
        halves: list[float] = []

        def stop(step: int, loss: float, halves: list[float] = halves) -> None:
            halves.append(loss)
            if len(halves) == steps // 2:
                os.kill(os.getpid(), 15)

        with tempfile.TemporaryDirectory() as folder, sdpa_kernel(SDPBackend.MATH):
            try:
                _train(model(name, VOCABULARY, dropout=settings.dropout), settings, Path(folder), stop)
            except Interrupted:
                _train(model(name, VOCABULARY, dropout=settings.dropout), settings, Path(folder), stop)
        apart = max(abs(a - b) for a, b in zip(first, halves, strict=True))
        yield check(f"{name}, {precision}: losses of a training that was continued", apart, 0.0)


def data_parallel(toy: bool) -> Iterator[Row]:
    """Two processes, each with a GPU of its own, against one."""
    if not toy and torch.cuda.device_count() < 2:
        raise LeftOut("there is one GPU")
    exact_products()
    settings = {"steps": 4 if toy else 20, "batch_size": 7, "warmup_steps": 2, "dropout": 0.0}
    name = toy_or_tiny("opt", toy)
    one = _losses(name, TrainSettings(**settings))
    program = (
        "import sys, json; from pathlib import Path; from gpu import training_steps;"
        f"losses = training_steps._losses({name!r}, training_steps.TrainSettings(**{settings!r}));"
        "from dmlm.training.peers import Peers\nif Peers.join().first: Path(sys.argv[1]).write_text(json.dumps(losses))"
    )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "program.py", Path(folder) / "losses.json"
        source.write_text(program)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
        subprocess.run([*launch, str(source), str(target)], check=True, env=os.environ | {"PYTHONPATH": path})
        two = json.loads(target.read_text())
    yield check("losses of two processes against one", max(abs(a / b - 1) for a, b in zip(two, one, strict=True)), 1e-3)


STEPS = [
    Step("training", "right", 90, training),
    Step("memory that runs out", "right", 40, out_of_memory),
    Step("resume", "right", 60, resume),
    Step("data parallel", "right", 60, data_parallel),
]
