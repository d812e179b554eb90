"""Typed records of what is stored of a training, an evaluation and an utterance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from dmlm.score.wer import ErrorCounts, pool


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """`result.json` of a trial, which is written last and marks the training as finished."""

    parameters: int
    steps: int
    train_s: float  # seconds, over all sessions
    parameters_without_embeddings: int | None = None
    tokens_per_s: float | None = None  # of the last session
    final_loss: float | None = None  # mean of the last five logged steps
    device: str | None = None
    torch: str | None = None
    precision: str | None = None
    execution: dict[str, Any] | None = None
    scan: str | None = None  # the implementation of Mamba's scan that ran
    model_elsewhere: bool = False  # trained on another machine, from which only the transcripts came

    @classmethod
    def of(cls, values: dict[str, Any] | None) -> Self | None:
        """Build the record from stored values; None if a required one is missing."""
        return _record(cls, values, ("parameters", "steps", "train_s"))


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(ErrorCounts):
    """`result.json` of an evaluation, which is written last: counts pooled over its utterances."""

    utterances: int
    decode_s: float

    @classmethod
    def of(cls, values: dict[str, Any] | None) -> Self | None:
        """Build the record from stored values; None if one is missing."""
        return _record(cls, values, [field.name for field in fields(cls)])

    @classmethod
    def of_utterances(cls, utterances: Sequence["UtteranceResult"], decode_s: float) -> Self:
        """Sum the counts of the utterances."""
        return cls(**asdict(pool(utterances)), utterances=len(utterances), decode_s=decode_s)

    def stored(self) -> dict[str, Any]:
        """Return the content of the file; the WER is included for people who read the file."""
        return {"wer": self.wer, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class UtteranceResult(ErrorCounts):
    """One line of `utterances.jsonl`: reference, hypothesis, and the edit operations between the two."""

    id: str
    reference: str
    hypothesis: str
    snr_db_measured: float | None  # None for clean speech
    speaker: str | None = None

    def stored(self) -> dict[str, Any]:
        """Return the content of the line, texts first."""
        texts = {"id": self.id, "reference": self.reference, "hypothesis": self.hypothesis}
        return {**texts, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One line of `train.jsonl`."""

    step: int
    loss: float  # the weighted sum that is minimised
    loss_by_modality: dict[str, float]  # in nats per token
    lr: float
    elapsed_s: float  # over all sessions


COUNTS = tuple(field.name for field in fields(ErrorCounts))


def _record(kind: Any, values: dict[str, Any] | None, required: Sequence[str]) -> Any:
    if values is None or any(values.get(name) is None for name in required):
        return None
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
