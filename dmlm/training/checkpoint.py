"""Checkpoints: the complete training state in one file, written atomically and sealed. The last two are kept."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmlm import files

KEEP_LAST = 2


@dataclass
class TrainState:
    """Everything that the next step depends on, except the data, which is a function of seed and step."""

    step: int
    elapsed_s: float  # training time so far, over all sessions
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]  # state of the fp16 loss scaler; empty in other precisions
    rng: torch.Tensor  # state of the CPU generator
    cuda_rng: list[torch.Tensor]  # state of the generator of each GPU


def save(state: TrainState, folder: Path) -> Path:
    """Write a checkpoint and its seal, then remove all but the newest two. Returns its path."""
    path = folder / f"step-{state.step:08d}.pt"
    with files.atomic(path) as temporary:
        torch.save(vars(state), temporary)
    files.seal(path)
    for old in _all(folder)[:-KEEP_LAST]:
        old.unlink(missing_ok=True)
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def newest(folder: Path) -> TrainState | None:
    """Load the newest undamaged checkpoint, or return None. Damaged ones are named on standard error and skipped."""
    for path in reversed(_all(folder)):
        if files.sealed(path):
            return TrainState(**torch.load(path, map_location="cpu", weights_only=True))
        print(f"Checkpoint {path} is damaged or incomplete; going back to the one before it.", file=sys.stderr)
    return None


def clear(folder: Path) -> None:
    """Remove the checkpoints of a finished training."""
    for path in _all(folder):
        path.unlink(missing_ok=True)
        path.with_suffix(".sha256").unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", path.name))
