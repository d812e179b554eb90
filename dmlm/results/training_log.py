"""Writing `train.jsonl`: what is read of it is in `folders`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dmlm import files


class Loggers(Protocol):
    """Whoever is told the same steps."""

    def start(self, resumed_step: int) -> None:
        """Begin at step 0, or go on after the step of a checkpoint."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""


class TrainingLog:
    """A line every ten steps and for the last one; lines after the step resumed from are cut first, at once."""

    EVERY = 10  # steps

    def __init__(self, path: Path, steps: int, loggers: Loggers) -> None:
        self._path, self._steps, self._loggers = path, steps, loggers

    def start(self, resumed_step: int) -> None:
        """Open the file and cut what comes after `resumed_step`: it will be written again."""
        kept = []
        if self._path.is_file():
            for line in self._path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resumed_step:
                        kept.append(line)
                except json.JSONDecodeError:
                    break  # torn by a kill: everything from here on is written again
            files.write_text(self._path, "".join(line + "\n" for line in kept))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        self._loggers.start(resumed_step)

    def write(self, step: int, loss: float, by_modality: Mapping[str, float], lr: float, elapsed_s: float) -> None:
        """The losses of a step: the weighted sum, and nats a token of each modality."""
        if step % self.EVERY and step != self._steps:
            return
        line = {
            "step": step,
            "loss": round(loss, 5),
            "loss_by_modality": {letter: round(nats, 5) for letter, nats in by_modality.items()},
            "lr": lr,
            "elapsed_s": round(elapsed_s, 2),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        parts = {f"train/loss_{letter}": nats for letter, nats in by_modality.items()}
        self._loggers.scalars(step, {"train/loss": loss, **parts, "train/lr": lr})

    def close(self) -> None:
        """Close the file."""
        self._file.close()
