"""Typed records of what is stored of a training, an evaluation and an utterance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from dmlm.score.normalisers import FIRST
from dmlm.score.wer import CharacterCounts, ErrorCounts, pool, pool_characters


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
    """`result.json` of an evaluation, which is written last: counts pooled over its utterances.

    What earlier versions did not record is None.
    """

    utterances: int
    decode_s: float
    characters: CharacterCounts | None = None
    cut_hypotheses: int | None = None  # utterances whose hypothesis did not end within `decode.max_new_tokens`
    looped_hypotheses: int | None = None  # utterances whose hypothesis `decode.max_repeats` stopped
    normaliser: str = FIRST  # of references and hypotheses, with its version
    left_out: dict[str, int] | None = (
        None  # utterances of the split that were not used, by the rule of `corpus.leave_out`
    )

    @classmethod
    def of(cls, values: dict[str, Any] | None) -> Self | None:
        """Build the record from stored values; None if a required one is missing."""
        return _record(cls, values, (*COUNTS, "utterances", "decode_s"))

    @classmethod
    def of_utterances(
        cls,
        utterances: Sequence["UtteranceResult"],
        decode_s: float,
        normaliser: str,
        left_out: dict[str, int] | None = None,
    ) -> Self:
        """Sum the counts of the utterances; what one of them does not record is None."""
        characters = [utterance.characters for utterance in utterances if utterance.characters]
        return cls(
            **asdict(pool(utterances)),
            utterances=len(utterances),
            decode_s=decode_s,
            characters=pool_characters(characters) if len(characters) == len(utterances) else None,
            cut_hypotheses=_count([utterance.cut for utterance in utterances]),
            looped_hypotheses=_count([utterance.looped for utterance in utterances]),
            normaliser=normaliser,
            left_out=left_out,
        )

    @property
    def cer(self) -> float | None:
        """The character error rate, pooled over the utterances; None if it is not recorded."""
        return self.characters.cer if self.characters else None

    def stored(self) -> dict[str, Any]:
        """Return the content of the file; WER and CER are included for people who read the file."""
        return {"wer": self.wer, "cer": self.cer, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class UtteranceResult(ErrorCounts):
    """One line of `utterances.jsonl`: reference, hypothesis, and the edit operations between the two.

    Both texts are as they were given and written; the operations are those of the normalised texts. (Earlier versions
    stored normalised hypotheses.) What earlier versions did not record is None.
    """

    id: str
    reference: str
    hypothesis: str
    snr_db_measured: float | None  # None for clean speech
    speaker: str | None = None
    characters: CharacterCounts | None = None
    cut: bool | None = None  # the hypothesis did not end within `decode.max_new_tokens`
    looped: bool | None = None  # it was stopped by `decode.max_repeats`

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Build the record from a stored line.

        Raises:
            KeyError: a required value is missing.
        """
        required = (*COUNTS, "id", "reference", "hypothesis", "snr_db_measured")
        return cls(**{name: values[name] for name in required}, **_optional(cls, values, required))

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
    try:
        return kind(**{name: values[name] for name in required}, **_optional(kind, values, required))
    except KeyError:  # a count of characters is missing
        return None


def _optional(kind: Any, values: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    """Return the values of the other fields of `kind` that are stored."""
    found = {f.name: values[f.name] for f in fields(kind) if f.name in values and f.name not in required}
    if isinstance(characters := found.get("characters"), dict):
        found["characters"] = CharacterCounts(**{f.name: characters[f.name] for f in fields(CharacterCounts)})
    return found


def _count(flags: Sequence[bool | None]) -> int | None:
    return None if None in flags else sum(map(bool, flags))
