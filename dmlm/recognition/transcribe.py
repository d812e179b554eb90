"""From token streams to transcripts."""

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
    """What transcribing takes besides the weights and the token streams; the same for all conditions of a model."""

    template: Template
    vocabulary: Vocabulary
    text: TextVocabulary
    rates_hz: Mapping[str, float | None]  # tokens a second by modality letter; None without a clock
    decoding: DecodeSettings
    device: torch.device


@dataclass(frozen=True)
class Transcript:
    """What a model wrote, as it wrote it, and whether it was cut or stopped; see `dmlm.recognition.decode.Decoded`."""

    text: str
    cut: bool
    looped: bool


def transcribe(
    model: PreTrainedModel, streams: Sequence[Mapping[str, np.ndarray]], reading: Reading
) -> list[Transcript]:
    """Return the transcripts of several utterances; `streams` holds the token streams of each by modality letter."""
    prompts = [
        pack(reading.template, utterance, reading.vocabulary, reading.rates_hz, with_target=False)
        for utterance in streams
    ]
    answers = decode(model, prompts, reading.vocabulary, reading.decoding, reading.device)
    return [Transcript(reading.text.decode(answer.ids), answer.cut, answer.looped) for answer in answers]
