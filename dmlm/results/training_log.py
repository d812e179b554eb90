"""Write the training log, `train.jsonl`; `TrialFolder.log` reads it."""

import json
from collections.abc import Mapping
from pathlib import Path

from dmlm import files
from dmlm.training.loggers import Loggers


class TrainingLog:
    """The log of one training: a line for every tenth step and for the last one."""

    EVERY = 10  # steps

    def __init__(self, path: Path, steps: int, loggers: Loggers) -> None:
        self._path, self._steps, self._loggers = path, steps, loggers

    def start(self, resumed_step: int) -> None:
        """Open the file, and remove lines after `resumed_step`: those steps are trained and logged again."""
        lines = []
        if self._path.is_file():
            for line in self._path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resumed_step:
                        lines.append(line)
                except json.JSONDecodeError:
                    break  # cut off by a kill: from here on everything is written again
            files.write_text(self._path, "".join(line + "\n" for line in lines))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        self._loggers.start(resumed_step)

    def write(self, step: int, loss: float, by_modality: Mapping[str, float], lr: float, elapsed_s: float) -> None:
        """Log a step if it is due: the weighted loss, and each modality's loss in nats per token."""
        if step % self.EVERY and step != self._steps:
            return
        record = {
            "step": step,
            "loss": round(loss, 5),
            "loss_by_modality": {letter: round(nats, 5) for letter, nats in by_modality.items()},
            "lr": lr,
            "elapsed_s": round(elapsed_s, 2),
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        parts = {f"train/loss_{letter}": nats for letter, nats in by_modality.items()}
        self._loggers.scalars(step, {"train/loss": loss, **parts, "train/lr": lr})

    def close(self) -> None:
        """Close the file."""
        self._file.close()
