"""The training loop: AdamW, linear warm-up then cosine decay, gradient clipping, exact resume."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm import places, workers
from dmlm.errors import NotFinite, OutOfMemory
from dmlm.model.layout import Layout
from dmlm.model.loss import modality_loss
from dmlm.run import checkpoint
from dmlm.run.checkpoint import TrainState
from dmlm.run.loggers import SILENT, Loggers
from dmlm.run.peers import Peers
from dmlm.run.settings import PLAIN, Execution, TrainSettings
from dmlm.sequence.batches import Batch, ahead, collate, mask_prompt, micro_batches, stream
from dmlm.sequence.template import ROLES, Packed


@dataclass
class TrainReport:
    """What training cost and where it ended."""

    steps: int
    train_s: float  # over all sessions
    tokens: int  # in this session
    seconds_here: float = 0.0  # of this session


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM after a checkpoint was written."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A flag that the loop reads between steps, raised by SIGINT or SIGTERM, or when the parent process is gone.

    A second Ctrl-C acts at once.
    """
    asked = False
    previous = {}

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a worker leaves Ctrl-C to the main process
                previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: signals stay with whoever has them
        pass
    workers.in_training.set()
    try:
        yield lambda: asked or workers.orphaned()
    finally:
        workers.in_training.clear()
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
    folder: Path,
    pad_id: int,
    device: torch.device,
    execution: Execution = PLAIN,
    checkpoint_every_s: float = 60.0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    loggers: Loggers = SILENT,
) -> TrainReport:
    """Train in place, from the newest checkpoint in `folder/checkpoints` if there is one.

    `draws` are versions of the training set (same items, other noise); epoch e uses version e modulo their number.

    Raises:
        NotFinite: the loss became NaN or infinite; the last good checkpoint stays.
        OutOfMemory: a step, or as much of it as `execution` allows at once, does not fit.
        Interrupted: on request, after a checkpoint.
    """
    model.to(device).train()  # type: ignore[arg-type]  # transformers' wrapper of `to` loses self
    peers = Peers.join()
    optimizer = torch.optim.AdamW(
        _decay_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, settings.beta2), fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    torch.manual_seed(seed + peers.rank)
    report = TrainReport(0, 0.0, 0)
    if state := checkpoint.newest(folder / "checkpoints"):
        _restore(state, model, optimizer, scaler)
        report.steps, report.train_s = state.step, state.elapsed_s
    objective = _Objective(model, settings, execution, device, peers)
    batches = _batches(draws, settings, seed, report.steps, pad_id, peers)
    log = _LogFile(folder / "train.jsonl", report.steps, settings.steps, loggers) if peers.first else nullcontext()
    started = saved = time.monotonic()
    spent_before = report.train_s

    def snapshot() -> None:
        if peers.first:
            checkpoint.save(_state(report, model, optimizer, scaler), folder / "checkpoints")

    with stop_requests() as stop_asked, log, closing(ahead(batches)) as ready:
        for step, (items, batch, inputs) in zip(range(report.steps, settings.steps), ready, strict=False):
            optimizer.zero_grad(set_to_none=True)
            outcome = objective.gradients(batch, inputs, items, scaler)
            if not math.isfinite(outcome.loss):
                raise NotFinite(
                    f"{folder.name}: the loss became {outcome.loss} at step {step}; lower train.lr and run again."
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            report.steps, report.seconds_here = step + 1, time.monotonic() - started
            report.train_s = spent_before + report.seconds_here
            report.tokens += outcome.tokens
            if isinstance(log, _LogFile):
                log.write(step + 1, outcome, optimizer.param_groups[0]["lr"], report.train_s)
            on_step(step + 1, outcome.loss)
            if peers.any(stop_asked()) and report.steps < settings.steps:
                snapshot()
                raise Interrupted
            if time.monotonic() - saved > checkpoint_every_s:
                snapshot()
                saved = time.monotonic()
    return report


def _batches(
    draws: Sequence[Sequence[Packed]], settings: TrainSettings, seed: int, start: int, pad_id: int, peers: Peers
) -> Iterator[tuple[int, Batch, np.ndarray]]:
    """Endless, from step `start` on: the number of items, this process's share of them, and what the model reads."""
    lengths = np.array([len(item) for item in draws[0]])
    for step, (epoch, indices) in enumerate(stream(lengths, settings.batch_size, seed, start), start):
        version = draws[epoch % len(draws)]
        batch = collate([version[i] for i in peers.share(indices)])
        masks = np.random.default_rng([seed, step])
        yield len(indices), batch, mask_prompt(batch, settings.input_mask, pad_id, masks)


@dataclass(frozen=True)
class _Outcome:
    """What one step gave, over all processes."""

    loss: float
    by_modality: dict[str, float]  # nats a token
    tokens: int


@dataclass(frozen=True)
class _Objective:
    """From a batch to the gradients of its loss: in micro-batches, in the precision asked for, over all processes."""

    model: PreTrainedModel
    settings: TrainSettings
    execution: Execution
    device: torch.device
    peers: Peers

    def gradients(self, batch: Batch, inputs: np.ndarray, items: int, scaler: torch.amp.GradScaler) -> _Outcome:
        """Leave the gradient of the loss over `items` sequences, of which `batch` is this process's share."""
        lambdas = torch.tensor([getattr(self.settings.lambdas, letter) for letter in ROLES], device=self.device)
        loss, sums = torch.zeros((), device=self.device), torch.zeros(2, len(ROLES), device=self.device)
        ends = np.cumsum(batch.lengths)
        for part in micro_batches(batch.lengths, self.execution.micro_tokens):
            here = slice(int(ends[part.start] - batch.lengths[part.start]), int(ends[part.stop - 1]))
            ids, roles, read = (
                torch.from_numpy(a[here]).to(self.device, non_blocking=True) for a in (batch.ids, batch.roles, inputs)
            )
            layout = Layout(batch.lengths[part], self.device)
            with _memory_watched(layout.tokens):
                with self._autocast():
                    share, by_modality = modality_loss(
                        self.model, ids, roles, layout, lambdas, read, items, self.execution.recompute
                    )
                scaler.scale(share).backward()
            loss += share.detach()
            sums += by_modality
        self.peers.add_up_gradients(self.model.parameters())
        figures = torch.cat([loss.view(1), sums.flatten(), loss.new_tensor([len(batch.ids)])])
        self.peers.add_up(figures)
        total, *rest, tokens = figures.tolist()
        means = {
            letter: nats / count for letter, nats, count in zip(ROLES, rest, rest[len(ROLES) :], strict=False) if count
        }
        return _Outcome(total, means, int(tokens))

    def _autocast(self) -> AbstractContextManager:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(
            self.device.type, getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[self.settings.precision])
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


class _LogFile:
    """`train.jsonl`, a line every ten steps and for the last; lines after the step resumed from are cut first, at once.

    The loggers are told the same steps.
    """

    EVERY = 10

    def __init__(self, path: Path, from_step: int, steps: int, loggers: Loggers) -> None:
        self._steps, self._loggers, kept = steps, loggers, []
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= from_step:
                        kept.append(line)
                except json.JSONDecodeError:
                    break  # torn by a kill: everything from here on is written again
            places.write_text(path, "".join(line + "\n" for line in kept))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        loggers.start(from_step)

    def __enter__(self) -> "_LogFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, step: int, outcome: _Outcome, lr: float, elapsed_s: float) -> None:
        if step % self.EVERY == 0 or step == self._steps:
            line = {
                "step": step,
                "loss": round(outcome.loss, 5),
                "loss_by_modality": {letter: round(nats, 5) for letter, nats in outcome.by_modality.items()},
                "lr": lr,
                "elapsed_s": round(elapsed_s, 2),
            }
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            parts = {f"train/loss_{letter}": nats for letter, nats in outcome.by_modality.items()}
            self._loggers.scalars(step, {"train/loss": outcome.loss, **parts, "train/lr": lr})
