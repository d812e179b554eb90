"""Scores of one model under one condition: decode every test item, count its errors, keep the evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.corpus.manifest import Utterance
from dmlm.run.decode import decode
from dmlm.run.settings import DecodeSettings
from dmlm.score.wer import count_errors
from dmlm.sequence.template import Template, pack
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary


@dataclass(frozen=True)
class Reading:
    """What stays the same over all conditions of a model."""

    template: Template
    vocabulary: Vocabulary
    text: TextVocabulary
    rates_hz: Mapping[str, float | None]
    decoding: DecodeSettings
    device: torch.device


def transcribe(model: PreTrainedModel, streams: Sequence[Mapping[str, np.ndarray]], reading: Reading) -> list[str]:
    """What the model writes for each item's token streams."""
    prompts = [
        pack(reading.template, item, reading.vocabulary, reading.rates_hz, with_target=False) for item in streams
    ]
    written = decode(model, prompts, reading.vocabulary, reading.decoding, reading.device)
    return [reading.text.decode(ids) for ids in written]


def score(
    utterances: Sequence[Utterance], hypotheses: Sequence[str], snr_db: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One record per utterance: texts, error counts, measured SNR."""
    records = []
    for utterance, hypothesis in zip(utterances, hypotheses, strict=True):
        counts = count_errors(utterance.text, hypothesis)
        level = snr_db.get(utterance.id, np.inf)
        records.append(
            {
                "id": utterance.id,
                "reference": utterance.text,
                "hypothesis": hypothesis,
                "substitutions": counts.substitutions,
                "deletions": counts.deletions,
                "insertions": counts.insertions,
                "reference_words": counts.reference_words,
                "snr_db_measured": round(level, 4) if np.isfinite(level) else None,
                "speaker": utterance.speaker,
            }
        )
    return records
