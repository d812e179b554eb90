"""Run a training in this process, as a trial does, with hooks for tests."""

from collections.abc import Callable
from pathlib import Path

import torch

from dmlm.results.training_log import TrainingLog
from dmlm.training.loggers import NO_LOGGERS, Loggers
from dmlm.training.loop import Session, TrainReport, train
from dmlm.training.objectives.next_token import NextToken
from dmlm.training.settings import DEFAULT_EXECUTION, Execution, TrainSettings


def train_here(
    model,
    draws,
    settings: TrainSettings,
    folder: Path,
    pad_id: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    execution: Execution = DEFAULT_EXECUTION,
    checkpoint_every_s: float = 60.0,
    loggers: Loggers = NO_LOGGERS,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> TrainReport:
    """Train with seed 0; log and checkpoints are in `folder`."""
    session = Session(
        name=folder.name,
        checkpoints=folder / "checkpoints",
        device=device,
        log=TrainingLog(folder / "train.jsonl", settings.steps, loggers),
        execution=execution,
        checkpoint_every_s=checkpoint_every_s,
        on_step=on_step,
    )
    return train(model, draws, settings, 0, NextToken(settings.lambdas, pad_id, settings.input_mask), session)
