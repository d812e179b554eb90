"""A trained model that reads new clips: it needs its folder, and no grid, corpus or token cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from dmlm.corpus import media
from dmlm.corpus.noise import mix
from dmlm.errors import UserError
from dmlm.modalities import FIELDS, INPUTS
from dmlm.model import backbones
from dmlm.recognition.device import device
from dmlm.recognition.model_folder import EncoderDescription, ModelDescription, read_description
from dmlm.recognition.transcribe import Reading, transcribe
from dmlm.score.wer import normalise
from dmlm.sequence.template import Template
from dmlm.snr import CLEAN_DB
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.vocabulary import TextVocabulary


@dataclass(frozen=True)
class Recogniser:
    """A model and its encoders, opened once.

    >>> recogniser = Recogniser.load(folder)  # doctest: +SKIP
    >>> recogniser.transcribe(audio="talk.wav", lips="mouth.mp4")  # doctest: +SKIP
    '3 x plus 2 equals 7'
    """

    description: ModelDescription
    encoders: dict[str, Encoder]  # by letter
    model: PreTrainedModel
    reading: Reading

    @classmethod
    def load(cls, folder: str | Path) -> "Recogniser":
        """Open the folder `model` of a trial, wherever it was copied to.

        Raises:
            UserError: it is not such a folder, or an encoder lacks a package or weights, or has changed since.
        """
        folder = Path(folder).expanduser().resolve()
        description = read_description(folder)
        encoders = {letter: _opened(letter, encoder, folder) for letter, encoder in description.encoders.items()}
        reading = Reading(
            Template.parse(description.template),
            description.vocabulary,
            TextVocabulary.load_without_units(folder, description.text_size),
            {letter: e.rate_hz for letter, e in description.encoders.items() if e.vocab_size is not None},
            description.decode,
            device(),
        )
        return cls(description, encoders, backbones.load(folder), reading)

    def transcribe(self, *, first_pass: str | None = None, **given: Any) -> str:
        """The transcript of one clip.

        Args:
            first_pass: what another recogniser heard, for a reader that chooses lines of a page by it.
            given: by name of the modality (`audio`, `lips`, `image`, `ocr`): a file, or what is read of one: audio
                float32 (samples,) at 16 kHz, lips uint8 (T, H, W) at 25 Hz, image uint8 (H, W, 3), ocr a string.

        Raises:
            UserError: a modality that the model reads is missing, or one is given that it does not read.
        """
        streams = self.tokens(first_pass=first_pass, **given)
        return normalise(transcribe(self.model, [streams], self.reading)[0])

    def tokens(self, *, first_pass: str | None = None, **given: Any) -> dict[str, np.ndarray]:
        """Token IDs (T,) of each modality of one clip, by letter; arguments and errors as for `transcribe`."""
        needed = {encoder.media: letter for letter, encoder in self.encoders.items()}
        for name in needed:
            if given.get(name) is None:
                raise UserError(f"{self.description.label} reads {' and '.join(needed)}; give {name}=...")
        if more := sorted(set(given) - set(needed)):
            raise UserError(f"{self.description.label} reads {' and '.join(needed)}; leave {more[0]} out.")
        return {
            letter: self._encoded(letter, given[encoder.media], first_pass) for letter, encoder in self.encoders.items()
        }

    def _encoded(self, letter: str, given: Any, first_pass: str | None) -> np.ndarray:
        """Token IDs (T,) of one modality."""
        encoder = self.encoders[letter]
        kind = FIELDS[encoder.media].file
        name = str(given) if isinstance(given, str | Path) else INPUTS[letter].name
        item = media.READERS[kind](Path(given).expanduser()) if kind and isinstance(given, str | Path) else given
        if encoder.media == "audio":
            item = mix(item, np.zeros(0, np.float32), [], CLEAN_DB, name).audio  # as loud as in training
        if isinstance(encoder, Reader):
            if encoder.first_pass is not None and first_pass is None:
                raise UserError(f"{encoder.recipe} chooses lines by what was heard; give first_pass='...'")
            heard = [first_pass or ""] if encoder.first_pass is not None else None
            return self.reading.text.encode(encoder.read([item], heard)[0])
        assert isinstance(encoder, Tokenizer)
        return np.asarray(encoder.encode([item])[0])


def _opened(letter: str, description: EncoderDescription, folder: Path) -> Encoder:
    """The encoder of one modality.

    Raises:
        UserError: it cannot be opened here, or would give other tokens than those the model was trained on.
    """
    network, codebook = (folder / name if name else None for name in (description.network, description.codebook))
    encoder = EncoderSpec(description.recipe, description.settings, network, codebook).build()
    if isinstance(encoder, Reader) and encoder.first_pass is not None:
        Encoder.require(encoder)  # its fingerprint holds the transcripts of the corpus, which a new clip does not need
        return encoder
    encoder.require()
    if encoder.fingerprint != description.fingerprint:
        raise UserError(
            f"{folder}: tokenizer {description.recipe} of modality {letter} is not the one that the model was trained"
            " with (its recipe, weights or library changed); use the version of dmlm that trained it."
        )
    return encoder
