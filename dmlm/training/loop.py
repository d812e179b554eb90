"""The training loop: AdamW, linear warm-up then cosine decay, gradient clipping, exact resume."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm import processes
from dmlm.errors import NotFinite, OutOfMemory
from dmlm.model.layout import Layout
from dmlm.sequence.batches import Batch, ahead, collate, micro_batches, stream
from dmlm.sequence.template import Packed
from dmlm.training import checkpoint
from dmlm.training.checkpoint import TrainState
from dmlm.training.objectives import Objective, means
from dmlm.training.peers import Peers
from dmlm.training.settings import PLAIN, Execution, TrainSettings


class StepLog(Protocol):
    """Who is told of every step."""

    def start(self, resumed_step: int) -> None:
        """Begin at step 0, or go on after the step of a checkpoint."""

    def write(self, step: int, loss: float, by_modality: Mapping[str, float], lr: float, elapsed_s: float) -> None:
        """The losses of a step."""

    def close(self) -> None:
        """The training ends, finished or not."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where and how a training is carried out; the result stays the same but for rounding."""

    name: str  # of the trial, for messages
    checkpoints: Path
    device: torch.device
    log: StepLog
    execution: Execution = PLAIN
    checkpoint_every_s: float = 60.0
    on_step: Callable[[int, float], None] = lambda step, loss: None  # after each step


@dataclass
class TrainReport:
    """What training cost and where it ended."""

    steps: int
    train_s: float  # over all sessions
    tokens: int  # in this session
    session_s: float = 0.0  # of this session


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM after a checkpoint was written."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A flag that the loop reads between steps, raised by SIGINT or SIGTERM, or when the parent process is gone.

    A second Ctrl-C acts at once.
    """
    requested = False
    previous = {}

    def handle(number: int, frame: object) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a worker leaves Ctrl-C to the main process
                previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: signals stay with whoever has them
        pass
    processes.in_training.set()
    try:
        yield lambda: requested or processes.orphaned()
    finally:
        processes.in_training.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear from 0 over the warm-up, then a half cosine down to `lr * final_lr_ratio` at the last step."""
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
    """Train in place, from the newest checkpoint of the session if there is one.

    `draws` are versions of the training set (same items, other noise); epoch e uses version e modulo their number.

    Raises:
        NotFinite: the loss became NaN or infinite; the last good checkpoint stays.
        OutOfMemory: a step, or as much of it as `execution` allows at once, does not fit.
        Interrupted: on request, after a checkpoint.
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
    gradients = _Gradients(model, settings, objective, session, peers)
    batches = _batches(draws, settings, seed, report.steps, objective, peers)
    started = saved = time.monotonic()
    spent_before = report.train_s

    def snapshot() -> None:
        if peers.first:
            checkpoint.save(_state(report, model, optimizer, scaler), session.checkpoints)

    with stop_requests() as stop_requested, _opened(session.log, report.steps, peers), closing(ahead(batches)) as ready:
        for step, (batch_size, batch, inputs) in zip(range(report.steps, settings.steps), ready, strict=False):
            optimizer.zero_grad(set_to_none=True)
            losses = gradients.leave(batch, inputs, batch_size, scaler)
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
            report.train_s = spent_before + report.session_s
            report.tokens += losses.tokens
            if peers.first:
                lr = optimizer.param_groups[0]["lr"]
                session.log.write(step + 1, losses.total, losses.by_part, lr, report.train_s)
            session.on_step(step + 1, losses.total)
            if peers.any(stop_requested()) and report.steps < settings.steps:
                snapshot()
                raise Interrupted
            if time.monotonic() - saved > session.checkpoint_every_s:
                snapshot()
                saved = time.monotonic()
    return report


@contextmanager
def _opened(log: StepLog, resumed_step: int, peers: Peers) -> Iterator[None]:
    """Start the log and close it, in the process that writes."""
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
    """Endless, from step `start` on: size of the batch, this process's share of it, and what the model reads."""
    lengths = np.array([len(item) for item in draws[0]])
    for step, (epoch, indices) in enumerate(stream(lengths, settings.batch_size, seed, start), start):
        version = draws[epoch % len(draws)]
        batch = collate([version[i] for i in peers.share(indices)])
        yield len(indices), batch, objective.inputs(batch, np.random.default_rng([seed, step]))


@dataclass(frozen=True)
class _Losses:
    """What one step gave, over all processes."""

    total: float
    by_part: dict[str, float]  # nats a token
    tokens: int


@dataclass(frozen=True)
class _Gradients:
    """From a batch to the gradients of its loss: in micro-batches, in the precision asked for, over all processes."""

    model: PreTrainedModel
    settings: TrainSettings
    objective: Objective
    session: Session
    peers: Peers

    def leave(self, batch: Batch, inputs: np.ndarray, batch_size: int, scaler: torch.amp.GradScaler) -> _Losses:
        """Leave the gradient of the loss over `batch_size` sequences, of which `batch` is this process's share."""
        device, execution, parts = self.session.device, self.session.execution, self.objective.parts
        loss, sums = torch.zeros((), device=device), torch.zeros(2, len(parts), device=device)
        ends = np.cumsum(batch.lengths)
        for part in micro_batches(batch.lengths, execution.micro_tokens):
            here = slice(int(ends[part.start] - batch.lengths[part.start]), int(ends[part.stop - 1]))
            ids, roles, read = (
                torch.from_numpy(a[here]).to(device, non_blocking=True) for a in (batch.ids, batch.roles, inputs)
            )
            layout = Layout(batch.lengths[part], device)
            with _memory_watched(layout.tokens):
                with self._autocast():
                    share, by_part = self.objective.loss(
                        self.model, (ids, roles, read), layout, batch_size, execution.recompute
                    )
                scaler.scale(share).backward()
            loss += share.detach()
            sums += by_part
        self.peers.add_up_gradients(self.model.parameters())
        figures = torch.cat([loss.view(1), sums.flatten(), loss.new_tensor([len(batch.ids)])])
        self.peers.add_up(figures)
        total, *rest, tokens = figures.tolist()
        return _Losses(total, means(parts, rest[: len(parts)], rest[len(parts) :]), int(tokens))

    def _autocast(self) -> AbstractContextManager:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(
            self.session.device.type, getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[self.settings.precision])
        )


@contextmanager
def _memory_watched(tokens: int) -> Iterator[None]:
    """Give every sign of exhausted memory one name."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise OutOfMemory(tokens) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how PyTorch says it on a CPU
            raise
        raise OutOfMemory(tokens) from None


def _decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict]:
    """Matrices decay; vectors and parameters marked so (Mamba's A and D) do not."""
    exempt = [p for p in model.parameters() if p.ndim < 2 or getattr(p, "_no_weight_decay", False)]
    spared = {id(p) for p in exempt}
    decayed = [p for p in model.parameters() if id(p) not in spared]
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
