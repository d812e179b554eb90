"""From token streams to transcripts, by one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.recognition.decode import decode
from dmlm.recognition.settings import DecodeSettings
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
