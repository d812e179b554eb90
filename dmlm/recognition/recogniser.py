"""The recogniser: a trained model that transcribes new clips, from its folder alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from transformers import PreTrainedModel

from dmlm.corpus import media
from dmlm.corpus.check import SHORTEST_S
from dmlm.corpus.noise import mix
from dmlm.errors import UserError
from dmlm.modalities import FIELDS, INPUTS, SAMPLE_RATE_HZ
from dmlm.model import backbones
from dmlm.recognition.device import device
from dmlm.recognition.model_folder import EncoderDescription, ModelDescription, read_description
from dmlm.recognition.transcribe import Reading, transcribe
from dmlm.score.normalisers import NORMALISERS
from dmlm.sequence.template import Template, pack
from dmlm.snr import CLEAN_DB
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.vocabulary import TextVocabulary

CONTENTS: dict[str | None, tuple[Any, int, str]] = {  # by kind of file: dtype, dimensions, and both in words
    "audio": (np.floating, 1, "floats (samples,) at 16 kHz"),
    "video": (np.uint8, 3, "uint8 (T, H, W) at 25 Hz"),
    "image": (np.uint8, 3, "uint8 (H, W, 3)"),
    None: (str, 0, "a string"),
}


@dataclass(frozen=True)
class Recogniser:
    """A trained model and its encoders, ready for use.

    >>> recogniser = Recogniser.load(folder)  # doctest: +SKIP
    >>> recogniser.transcribe(audio="talk.wav", lips="mouth.mp4")  # doctest: +SKIP
    '3 x plus 2 equals 7'
    """

    description: ModelDescription
    encoders: dict[str, Encoder]  # by modality letter
    model: PreTrainedModel
    reading: Reading

    @classmethod
    def load(cls, folder: str | Path) -> "Recogniser":
        """Open the folder `model` of a trial, or a copy of it.

        Raises:
            UserError: it is not such a folder, or an encoder lacks a package or weights or has changed since training.
        """
        folder = Path(folder).expanduser().resolve()
        description = read_description(folder)
        encoders = {letter: _open_encoder(letter, encoder, folder) for letter, encoder in description.encoders.items()}
        reading = Reading(
            Template.parse(description.template),
            description.vocabulary,
            TextVocabulary.load_without_units(folder, description.text_size),
            {letter: e.rate_hz for letter, e in description.encoders.items() if e.vocab_size is not None},
            description.decode,
            device(),
        )
        try:
            model = backbones.load(folder)
        except (OSError, ValueError, SafetensorError) as error:
            why = str(error).splitlines()[0]
            raise UserError(f"The network of {folder} cannot be opened ({why}); copy the folder again.") from None
        return cls(description, encoders, model, reading)

    def transcribe(self, *, first_pass: str | None = None, **inputs: Any) -> str:
        """Return the transcript of one clip, normalised as for the scores of the model.

        Args:
            first_pass: transcript by another recogniser, for a reader that uses it to choose lines of a page.
            inputs: a file or its content, by name of the modality: `audio` float32 (samples,) at 16 kHz, `lips` uint8
                (T, H, W) at 25 Hz, `image` uint8 (H, W, 3), `ocr` a string.

        Raises:
            UserError: an input that the model needs is missing, or there is one that it does not use; an input is not
                what it should be; or the clip is too long for the model.
        """
        streams = self.tokens(first_pass=first_pass, **inputs)
        (written,) = transcribe(self.model, [streams], self._reading_of(streams))
        return NORMALISERS[self.description.normaliser](written.text)

    def _reading_of(self, streams: Mapping[str, np.ndarray]) -> Reading:
        """How this clip is read: its transcript may be as long as the model's context has room for."""
        reading, context = self.reading, int(self.description.trial["model"]["context"])
        prompt = pack(reading.template, streams, reading.vocabulary, reading.rates_hz, with_target=False)
        if len(prompt) >= context:
            raise UserError(
                f"The clip makes {len(prompt)} tokens; {self.description.label} reads at most {context}, its transcript"
                " included. Cut the clip."
            )
        room = min(reading.decoding.max_new_tokens, context - len(prompt))
        return replace(reading, decoding=replace(reading.decoding, max_new_tokens=room))

    def tokens(self, *, first_pass: str | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """Return the token IDs (T,) of one clip by modality letter; arguments and errors are those of `transcribe`."""
        needed = dict.fromkeys(encoder.media for encoder in self.encoders.values())
        for name in needed:
            if inputs.get(name) is None:
                raise UserError(f"{self.description.label} reads {' and '.join(needed)}; give {name}=...")
        if unused := sorted(set(inputs) - set(needed)):
            raise UserError(f"{self.description.label} reads {' and '.join(needed)}; leave {unused[0]} out.")
        if first_pass is not None and not any(isinstance(e, Reader) and e.first_pass for e in self.encoders.values()):
            raise UserError(f"{self.description.label} uses no first pass; leave first_pass out.")
        return {
            letter: self._encode(letter, inputs[encoder.media], first_pass) for letter, encoder in self.encoders.items()
        }

    def _encode(self, letter: str, source: Any, first_pass: str | None) -> np.ndarray:
        """Encode one modality, a file or its content, as token IDs (T,)."""
        encoder = self.encoders[letter]
        kind = FIELDS[encoder.media].file
        name = str(source) if isinstance(source, str | Path) else INPUTS[letter].name
        content = media.READERS[kind](Path(source).expanduser()) if kind and isinstance(source, str | Path) else source
        _check_content(content, kind, name)
        if encoder.media == "audio":
            content = mix(content, np.zeros(0, np.float32), [], CLEAN_DB, name).audio  # the loudness of training
        if isinstance(encoder, Reader):
            if encoder.first_pass is not None and first_pass is None:
                raise UserError(f"{encoder.recipe} chooses lines by a first transcript; give first_pass='...'")
            heard = [first_pass or ""] if encoder.first_pass is not None else None
            return self.reading.text.encode(encoder.read([content], heard)[0])
        assert isinstance(encoder, Tokenizer)
        return np.asarray(encoder.encode([content])[0])


def _check_content(content: Any, kind: str | None, name: str) -> None:
    """Refuse an array that is not what an encoder reads.

    Raises:
        UserError: another type, shape or length, or audio with NaN or infinite samples.
    """
    dtype, dimensions, description = CONTENTS[kind]
    if kind is None:
        fits = isinstance(content, str)
    else:
        fits = isinstance(content, np.ndarray) and np.issubdtype(content.dtype, dtype) and content.ndim == dimensions
        fits = fits and content.size > 0 and (kind != "image" or content.shape[2] == 3)
    if not fits:
        raise UserError(f"{name}: give a file, or {description}.")
    if kind == "audio" and not np.isfinite(content).all():
        raise UserError(f"{name} holds NaN or infinite samples; replace it.")
    if kind == "audio" and len(content) < SHORTEST_S * SAMPLE_RATE_HZ:
        raise UserError(f"{name} has {len(content)} samples; at least {SHORTEST_S} s of audio are needed.")


def _open_encoder(letter: str, description: EncoderDescription, folder: Path) -> Encoder:
    """Open the encoder of one modality.

    Raises:
        UserError: it cannot be opened on this machine, or is not the encoder that the model was trained with.
    """
    network, codebook = (folder / name if name else None for name in (description.network, description.codebook))
    for path in (network, codebook):
        if path is not None and not path.is_file():
            raise UserError(f"{path} is missing; copy the model's folder again.")
    encoder = EncoderSpec(description.recipe, description.settings, network, codebook).build()
    if isinstance(encoder, Reader) and encoder.first_pass is not None:
        # its fingerprint depends on the first-pass transcripts of the corpus, so it is not comparable for a new clip
        Encoder.require(encoder)
        return encoder
    encoder.require()
    if encoder.fingerprint != description.fingerprint:
        raise UserError(
            f"{folder}: tokenizer {description.recipe} of modality {letter} is not the one that the model was trained"
            " with (its recipe, weights or library changed); use the version of dmlm that trained it."
        )
    return encoder
