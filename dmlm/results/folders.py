"""The folder of a trial and those of its evaluations. Only this module knows the layout:

TRIAL/spec.json          every setting that decides the trained weights
TRIAL/train.jsonl        a line every ten steps
TRIAL/checkpoints/       only while the training is not finished
TRIAL/model/             the trained model, in Hugging Face's form
TRIAL/failures.jsonl     attempts that did not succeed, if any
TRIAL/result.json        written last: the training is finished
TRIAL/*.lease            which process works on it now
TRIAL/evals/NAME/        spec.json, utterances.jsonl and, written last, result.json
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmlm import files
from dmlm.errors import UserError
from dmlm.results.json_files import read_lines, read_object, read_object_if_written, write_object
from dmlm.results.records import COUNTS, EvaluationResult, TrainingStep, TrialResult, UtteranceResult

RESULT, SPEC = "result.json", "spec.json"


@dataclass(frozen=True)
class EvaluationFolder:
    """The folder of one evaluation: one model under one condition."""

    path: Path

    @property
    def has_result(self) -> bool:
        """Whether `result.json` exists; it is not read, which is enough for a progress bar."""
        return (self.path / RESULT).is_file()

    @property
    def done(self) -> bool:
        """Whether the evaluation is finished: it has a valid `result.json`, which is written last."""
        return EvaluationResult.of(read_object_if_written(self.path / RESULT)) is not None

    @property
    def condition(self) -> str | None:
        """Key of the condition under which the model was tested; None if nothing is finished, or it was not recorded."""
        spec = read_object_if_written(self.path / SPEC) or {}
        return spec.get("condition")

    @property
    def result(self) -> EvaluationResult:
        """Counts pooled over the utterances, as stored.

        Raises:
            UserError: `result.json` is missing or damaged.
        """
        result = EvaluationResult.of(read_object(self.path / RESULT))
        if result is None:
            raise UserError(f"{self.path / RESULT} is damaged; remove the folder and run the grid again.")
        return result

    def utterances(self) -> tuple[UtteranceResult, ...]:
        """Read all utterances of a finished evaluation; of an unfinished one those written so far.

        Raises:
            UserError: a partial line, a missing field, or totals that do not match `result.json`; names the file.
        """
        path, done = self.path / "utterances.jsonl", self.done
        utterances = []
        for number, record in enumerate(read_lines(path, done), start=1):
            try:
                utterances.append(UtteranceResult.of(record))
            except KeyError as error:
                raise UserError(
                    f"{path}, line {number}: {error} is missing; remove the folder and run the grid again."
                ) from None
        if done:
            self._check_totals(utterances)
        return tuple(utterances)

    def _check_totals(self, utterances: Sequence[UtteranceResult]) -> None:
        stored = self.result
        recounted = EvaluationResult.of_utterances(utterances, stored.decode_s, stored.normaliser)
        for name in ("utterances", *COUNTS, "characters", "cut_hypotheses", "looped_hypotheses"):
            if getattr(stored, name) != getattr(recounted, name):
                raise UserError(
                    f"{self.path / RESULT} says {name} = {getattr(stored, name)}, but utterances.jsonl beside it"
                    f" adds up to {getattr(recounted, name)}; remove the folder and run the grid again."
                )

    def write(
        self,
        spec: dict[str, Any],
        utterances: Sequence[UtteranceResult],
        decode_s: float,
        left_out: dict[str, int] | None = None,
    ) -> EvaluationResult:
        """Write the files of a finished evaluation, `result.json` last; return the result.

        Args:
            spec: what determines the result; `normaliser` in it is that of the counts.
            utterances: the records of all utterances.
            decode_s: seconds of decoding.
            left_out: how many utterances of the split were not used, by rule.
        """
        result = EvaluationResult.of_utterances(utterances, round(decode_s, 3), spec["normaliser"], left_out)
        lines = (json.dumps(utterance.stored(), ensure_ascii=False) + "\n" for utterance in utterances)
        write_object(self.path / SPEC, spec)
        files.write_text(self.path / "utterances.jsonl", "".join(lines))
        write_object(self.path / RESULT, result.stored())
        return result


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial: a model, trained or in training."""

    path: Path

    @property
    def result(self) -> TrialResult | None:
        """Facts of a finished training; None if `result.json` is missing or damaged."""
        return TrialResult.of(read_object_if_written(self.path / RESULT))

    def write_result(self, result: TrialResult) -> None:
        """Write `result.json`, which marks the training as finished."""
        write_object(self.path / RESULT, asdict(result))

    @property
    def spec(self) -> dict[str, Any]:
        """The settings that determine the weights."""
        return dict(read_object(self.path / SPEC))

    @property
    def spec_if_written(self) -> dict[str, Any]:
        """The same; empty if it is missing or damaged."""
        return read_object_if_written(self.path / SPEC) or {}

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Write `spec.json`."""
        write_object(self.path / SPEC, spec)

    @property
    def log_path(self) -> Path:
        """Path of the training log."""
        return self.path / "train.jsonl"

    def log(self) -> list[TrainingStep]:
        """Read the steps that the training logged so far."""
        lines = read_lines(self.log_path, self.result is not None)
        return [
            TrainingStep(
                step=int(line["step"]),
                loss=line["loss"],
                loss_by_modality=line.get("loss_by_modality", {}),
                lr=line.get("lr", float("nan")),
                elapsed_s=line.get("elapsed_s", 0.0),
            )
            for line in lines
        ]

    def steps_done(self) -> int:
        """Return the last step in the log; 0 if nothing can be read. Cheaper than `log`."""
        try:
            return int(json.loads(self.log_path.read_text().splitlines()[-1])["step"])
        except (OSError, IndexError, ValueError, KeyError):
            return 0

    @property
    def checkpoints(self) -> Path:
        """Folder of the training state."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.path / "model"

    @property
    def has_model(self) -> bool:
        """Whether the model is complete: its weight files are as long as their headers say, and it has a config."""
        from safetensors import SafetensorError, safe_open

        weights = list(self.model.glob("*.safetensors"))
        try:
            for path in weights:
                with safe_open(path, "np"):
                    pass
        except (SafetensorError, FileNotFoundError):
            return False
        config = read_object_if_written(self.model / "config.json") or {}
        return bool(weights) and config.get("model_type") is not None

    @property
    def training_lease(self) -> Path:
        """Path of the lease of the process that trains it."""
        return self.path / "train.lease"

    def evaluation_lease(self, name: str) -> Path:
        """Path of the lease of the process that runs an evaluation."""
        return self.path / f"{name}.lease"

    def leases(self) -> list[Path]:
        """List the lease files."""
        return list(self.path.glob("*.lease"))

    def evaluation(self, name: str) -> EvaluationFolder:
        """Return the folder of an evaluation."""
        return EvaluationFolder(self.path / "evals" / name)

    def evaluations(self) -> Iterator[EvaluationFolder]:
        """Iterate over the folders of evaluations that exist, finished or not."""
        return map(EvaluationFolder, sorted(self.path.glob("evals/*")))

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())


def trial_folder(runs: Path, name: str) -> TrialFolder:
    """Return the folder of a trial by its name."""
    return TrialFolder(runs / "trials" / name)


def trial_folders(runs: Path) -> Iterator[TrialFolder]:
    """Iterate over the folders of all trials that were started."""
    return map(TrialFolder, sorted(path for path in (runs / "trials").glob("*") if path.is_dir()))
