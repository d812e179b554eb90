"""From token streams to transcripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.recognition.decode import Decoded, decode
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
    tokens: tuple[str, ...] = ()  # the text of each token; the last is <eos> unless it was cut or stopped
    log_probabilities: tuple[float, ...] = ()  # of each of them, natural, among all text tokens and <eos>


def transcribe(
    model: PreTrainedModel, streams: Sequence[Mapping[str, np.ndarray]], reading: Reading
) -> list[Transcript]:
    """Return the transcripts of several utterances; `streams` holds the token streams of each by modality letter."""
    prompts = [
        pack(reading.template, utterance, reading.vocabulary, reading.rates_hz, with_target=False)
        for utterance in streams
    ]
    answers = decode(model, prompts, reading.vocabulary, reading.decoding, reading.device)
    return [_transcript(answer, reading.text) for answer in answers]


def _transcript(answer: Decoded, text: TextVocabulary) -> Transcript:
    tokens = (*map(text.piece, answer.ids), *["<eos>"] * (len(answer.log_probabilities) - len(answer.ids)))
    return Transcript(
        text.decode(answer.ids), answer.cut, answer.looped, tokens, tuple(answer.log_probabilities.tolist())
    )
