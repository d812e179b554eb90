"""The training loop: AdamW, linear warm-up then cosine decay, gradient clipping, exact resume."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.errors import NotFinite
from dmlm.sequence.batches import Batch, collate, prefetch, stream
from dmlm.sequence.template import Packed
from dmlm.training import checkpoint
from dmlm.training.checkpoint import TrainState
from dmlm.training.gradients import Gradients
from dmlm.training.objectives import Objective
from dmlm.training.peers import Peers
from dmlm.training.settings import DEFAULT_EXECUTION, Execution, TrainSettings
from dmlm.training.stop_requests import Interrupted, stop_requests


class StepLog(Protocol):
    """What the losses of every step are written to."""

    def start(self, resumed_step: int) -> None:
        """Begin at step 0, or continue after the step of a checkpoint."""

    def write(self, step: int, loss: float, by_modality: Mapping[str, float], lr: float, elapsed_s: float) -> None:
        """Write the losses of a step."""

    def close(self) -> None:
        """Close the log when the training ends, finished or not."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where and how a training runs. Nothing here changes the result, except for rounding."""

    name: str  # name of the trial, for messages
    checkpoints: Path  # folder
    device: torch.device
    log: StepLog
    execution: Execution = DEFAULT_EXECUTION
    checkpoint_every_s: float = 60.0
    on_step: Callable[[int, float], None] = lambda step, loss: None  # called after each step


@dataclass
class TrainReport:
    """How far a training got, and its cost."""

    steps: int
    train_s: float  # training time of all sessions
    tokens: int  # tokens trained on in this session
    session_s: float = 0.0  # training time of this session


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Learning rate of a step: linear warm-up from 0, then a half cosine down to `lr * final_lr_ratio`."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.lr * (settings.final_lr_ratio + (1 - settings.final_lr_ratio) * cosine)


def train(
    model: PreTrainedModel,
    draws: Sequence[Sequence[Packed]],
    settings: TrainSettings,
    seed: int,
    objective: Objective,
    session: Session,
) -> TrainReport:
    """Train a model in place, from the newest checkpoint in `session.checkpoints` if there is one.

    `draws` are versions of the training set: the same items with other noise. Epoch e uses version e modulo their
    number.

    Raises:
        NotFinite: the loss became NaN or infinite; the last good checkpoint stays.
        OutOfMemory: a step, or a micro-batch of it (`execution.micro_tokens`), does not fit into memory.
        Interrupted: by SIGINT or SIGTERM, or because the main process is gone; a checkpoint was written.
    """
    model.to(session.device).train()  # type: ignore[arg-type]  # transformers' wrapper of `to` loses self
    peers = Peers.join()
    optimizer = torch.optim.AdamW(
        _decay_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, settings.beta2), fused=True
    )
    scaler = torch.amp.GradScaler(session.device.type, enabled=settings.precision == "fp16")
    torch.manual_seed(seed + peers.rank)
    report = TrainReport(0, 0.0, 0)
    if state := checkpoint.newest(session.checkpoints):
        _restore(state, model, optimizer, scaler)
        report.steps, report.train_s = state.step, state.elapsed_s
    gradients = Gradients(
        model=model,
        objective=objective,
        precision=settings.precision,
        execution=session.execution,
        device=session.device,
        peers=peers,
    )
    batches = _batches(draws, settings, seed, report.steps, objective, peers)
    started = last_saved = time.monotonic()
    earlier_sessions_s = report.train_s

    def save_checkpoint() -> None:
        if peers.first:
            checkpoint.save(_state(report, model, optimizer, scaler), session.checkpoints)

    with (
        stop_requests() as stop_requested,
        _open_log(session.log, report.steps, peers),
        closing(prefetch(batches)) as ready,
    ):
        for step, (batch_size, batch, inputs) in zip(range(report.steps, settings.steps), ready, strict=False):
            optimizer.zero_grad(set_to_none=True)
            losses = gradients.accumulate(batch, inputs, batch_size, scaler)
            if not math.isfinite(losses.total):
                raise NotFinite(
                    f"{session.name}: the loss became {losses.total} at step {step}; lower train.lr and run again."
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            report.steps, report.session_s = step + 1, time.monotonic() - started
            report.train_s = earlier_sessions_s + report.session_s
            report.tokens += losses.tokens
            if peers.first:
                lr = optimizer.param_groups[0]["lr"]
                session.log.write(step + 1, losses.total, losses.by_part, lr, report.train_s)
            session.on_step(step + 1, losses.total)
            if peers.any(stop_requested()) and report.steps < settings.steps:
                save_checkpoint()
                raise Interrupted
            if time.monotonic() - last_saved > session.checkpoint_every_s:
                save_checkpoint()
                last_saved = time.monotonic()
    return report


@contextmanager
def _open_log(log: StepLog, resumed_step: int, peers: Peers) -> Iterator[None]:
    """Start the log, and close it at the end. Only the first process writes it."""
    if not peers.first:
        yield
        return
    log.start(resumed_step)
    try:
        yield
    finally:
        log.close()


def _batches(
    draws: Sequence[Sequence[Packed]],
    settings: TrainSettings,
    seed: int,
    start: int,
    objective: Objective,
    peers: Peers,
) -> Iterator[tuple[int, Batch, np.ndarray]]:
    """Yield batches without end, from step `start` on.

    Each is (size of the whole batch, this process's share of it, IDs (T,) that the model reads for that share).
    """
    lengths = np.array([len(item) for item in draws[0]])
    for step, (epoch, indices) in enumerate(stream(lengths, settings.batch_size, seed, start), start):
        version = draws[epoch % len(draws)]
        batch = collate([version[i] for i in peers.share(indices)])
        yield len(indices), batch, objective.inputs(batch, np.random.default_rng([seed, step]))


def _decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict]:
    """Parameter groups of AdamW: no weight decay for vectors, nor for Mamba's A and D, which carry a mark."""
    exempt = [p for p in model.parameters() if p.ndim < 2 or getattr(p, "_no_weight_decay", False)]
    exempt_ids = {id(p) for p in exempt}
    decayed = [p for p in model.parameters() if id(p) not in exempt_ids]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


def _state(
    report: TrainReport, model: PreTrainedModel, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> TrainState:
    return TrainState(
        report.steps,
        report.train_s,
        model.state_dict(),
        optimizer.state_dict(),
        scaler.state_dict(),
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def _restore(
    state: TrainState, model: PreTrainedModel, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    model.load_state_dict(state.model)
    optimizer.load_state_dict(state.optimizer)
    scaler.load_state_dict(state.scaler)
    torch.set_rng_state(state.rng)
    if state.cuda_rng and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state.cuda_rng)
