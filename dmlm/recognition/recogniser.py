"""The recogniser: a trained model that transcribes new clips, from its folder alone."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from transformers import PreTrainedModel

from dmlm.corpus import media, voice_activity
from dmlm.corpus.check import SHORTEST_S
from dmlm.corpus.noise import mix
from dmlm.corpus.recordings import read_any_audio
from dmlm.errors import UserError
from dmlm.modalities import FIELDS, SAMPLE_RATE_HZ
from dmlm.model import backbones
from dmlm.recognition.device import device
from dmlm.recognition.model_folder import EncoderDescription, ModelDescription, read_description
from dmlm.recognition.recording import AROUND_S, ClipTranscript, Piece, Spans, pieces_of
from dmlm.recognition.transcribe import Reading, Transcript, transcribe
from dmlm.score.normalisers import NORMALISERS
from dmlm.sequence.template import Template, pack
from dmlm.snr import CLEAN_DB
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.vocabulary import TextVocabulary

LEEWAY = 1.25  # a clip that is so much longer than those of training is still read as one
APART_S = 1.0  # by which lips and audio of a recording may differ
CLOCKS = {name: row.input_rate_hz for name, row in FIELDS.items() if row.input_rate_hz}  # units a second, by input
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
        """Return the transcript of one clip, normalised as for the scores of the model: the text of what `read` returns."""
        return self.read(first_pass=first_pass, **inputs).text

    def read(self, *, first_pass: str | None = None, spans: Spans | None = None, **inputs: Any) -> ClipTranscript:
        """Transcribe one clip or a recording of any length.

        What is more than a quarter longer than the longest clip of training is cut into pieces that are not longer, at
        silences (see `dmlm.recognition.recording`); lips are cut at the same times, a page or a text is given to each.

        Args:
            first_pass: transcript by another recogniser, for a reader that uses it to choose lines of a page.
            spans: where speech is, in seconds; None: it is looked for, by voice activity, if the recording must be cut.
            inputs: a file or its content, by name of the modality: `audio` float32 (samples,) at 16 kHz, `lips` uint8
                (T, H, W) at 25 Hz, `image` uint8 (H, W, 3), `ocr` a string. Audio may be a file of any form that FFmpeg
                reads, also the sound track of a video.

        Raises:
            UserError: an input that the model needs is missing, or there is one that it does not use; an input is not
                what it should be; or the clip is too long for the model and has no audio to cut it by.
        """
        started = time.perf_counter()
        self._check_given(inputs, first_pass)
        contents = {name: open_input(name, source) for name, source in inputs.items() if source is not None}
        length_s = next((len(contents[k]) / rate_hz for k, rate_hz in CLOCKS.items() if k in contents), None)
        pieces = [Piece(0.0, length_s or 0.0)]
        if "audio" in contents and self.must_cut(contents["audio"]):
            _check_equal_lengths(contents)
            audio = contents["audio"]
            spans = voice_activity.speech_spans(audio) if spans is None else spans
            pieces = [
                replace(piece, speech=piece.speech and bool(np.ptp(piece.cut_from(audio, SAMPLE_RATE_HZ))))
                for piece in pieces_of(audio, spans, self.description.used_to_s, self.description.around_s or AROUND_S)
            ]
        streams = []
        for piece in (piece for piece in pieces if piece.speech):
            clocked = {name: rate_hz for name, rate_hz in CLOCKS.items() if len(pieces) > 1 and name in contents}
            parts = {name: piece.cut_from(contents[name], rate_hz) for name, rate_hz in clocked.items()}
            streams.append(self._encoded(contents | parts, first_pass))
        written = iter(self._written(streams))
        pieces = [replace(piece, transcript=next(written)) if piece.speech else piece for piece in pieces]
        return ClipTranscript(tuple(pieces), length_s, time.perf_counter() - started)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the inputs that it reads."""
        return tuple(dict.fromkeys(encoder.media for encoder in self.encoders.values()))

    def lacks(self, given: Collection[str]) -> list[str]:
        """Return the names of inputs that are needed and not given. One may lack that the model was trained without."""
        may_lack = {self.encoders[letter].media for letter in self.description.may_lack}
        if not set(given) & set(self.needs):
            may_lack = set()
        return [name for name in self.needs if name not in given and name not in may_lack]

    def must_cut(self, audio: np.ndarray) -> bool:
        """Whether a recording, float32 (samples,) at 16 kHz, is so long that it is read in pieces."""
        return len(audio) > LEEWAY * self.description.used_to_s * SAMPLE_RATE_HZ

    def tokens(self, *, first_pass: str | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """Return the token IDs (T,) of one clip, uncut, by modality letter; arguments and errors are those of `read`.

        A modality that the model was trained to do without is empty where it lacks.
        """
        self._check_given(inputs, first_pass)
        contents = {name: open_input(name, source) for name, source in inputs.items() if source is not None}
        return self._encoded(contents, first_pass)

    def _check_given(self, inputs: Mapping[str, Any], first_pass: str | None) -> None:
        label, needed = self.description.label, " and ".join(self.needs)
        if missing := self.lacks([name for name, source in inputs.items() if source is not None]):
            raise UserError(f"{label} reads {needed}; give {missing[0]}=...")
        if unused := sorted(set(inputs) - set(self.needs)):
            raise UserError(f"{label} reads {needed}; leave {unused[0]} out.")
        uses_first_pass = any(isinstance(e, Reader) and e.first_pass for e in self.encoders.values())
        if first_pass is not None and not uses_first_pass:
            raise UserError(f"{label} uses no first pass; leave first_pass out.")
        for encoder in self.encoders.values():
            if isinstance(encoder, Reader) and encoder.first_pass is not None and first_pass is None:
                raise UserError(f"{encoder.recipe} chooses lines by a first transcript; give first_pass='...'")

    def _encoded(self, contents: Mapping[str, Any], first_pass: str | None) -> dict[str, np.ndarray]:
        """Return the token IDs (T,) of opened and checked inputs, by modality letter."""
        streams = {}
        for letter, encoder in self.encoders.items():
            content = contents.get(encoder.media)
            if content is None:
                streams[letter] = np.zeros(0, np.int32)
                continue
            if encoder.media == "audio":
                content = mix(content, np.zeros(0, np.float32), [], CLEAN_DB, "audio").audio  # the loudness of training
            if isinstance(encoder, Reader):
                heard = [first_pass or ""] if encoder.first_pass is not None else None
                streams[letter] = self.reading.text.encode(encoder.read([content], heard)[0])
            else:
                assert isinstance(encoder, Tokenizer)
                streams[letter] = np.asarray(encoder.encode([content])[0])
        return streams

    def _written(self, streams: Sequence[Mapping[str, np.ndarray]]) -> list[Transcript]:
        """Return the normalised transcripts of token streams, each as long as the model's context has room for."""
        by_room: dict[int, list[int]] = {}
        for number, item in enumerate(streams):
            by_room.setdefault(self._room(item), []).append(number)
        written: dict[int, Transcript] = {}
        for room, numbers in by_room.items():
            reading = replace(self.reading, decoding=replace(self.reading.decoding, max_new_tokens=room))
            answers = transcribe(self.model, [streams[number] for number in numbers], reading)
            written |= dict(zip(numbers, answers, strict=True))
        normalise = NORMALISERS[self.description.normaliser]
        return [replace(written[number], text=normalise(written[number].text)) for number in range(len(streams))]

    def _room(self, streams: Mapping[str, np.ndarray]) -> int:
        """Return how many tokens may be written for a clip.

        Raises:
            UserError: there is room for none.
        """
        reading, context = self.reading, int(self.description.trial["model"]["context"])
        prompt = pack(reading.template, streams, reading.vocabulary, reading.rates_hz, with_target=False)
        if len(prompt) >= context:
            raise UserError(
                f"The clip makes {len(prompt)} tokens; {self.description.label} reads at most {context}, its transcript"
                " included. Cut the clip."
            )
        return min(reading.decoding.max_new_tokens, context - len(prompt))


def open_input(name: str, source: Any) -> Any:
    """Read an input, a file or its content, and check it.

    Raises:
        UserError: it cannot be read, or is not what encoders read.
    """
    kind = FIELDS[name].file if name in FIELDS else None
    if kind == "audio" and isinstance(source, str | Path):
        content = read_any_audio(Path(source).expanduser())
    elif kind and isinstance(source, str | Path):
        content = media.READERS[kind](Path(source).expanduser())
    else:
        content = source
    _check_content(content, kind, str(source) if isinstance(source, str | Path) else name)
    return content


def _check_equal_lengths(contents: Mapping[str, Any]) -> None:
    """Refuse lips that do not last as long as the audio of a recording that must be cut.

    Raises:
        UserError: they differ by more than `APART_S`.
    """
    lasts_s = {name: len(contents[name]) / rate_hz for name, rate_hz in CLOCKS.items() if name in contents}
    if max(lasts_s.values()) - min(lasts_s.values()) > APART_S:
        raise UserError(
            f"The audio lasts {lasts_s['audio']:.1f} s and the lips {lasts_s['lips']:.1f} s, so they cannot be cut at the same"
            " times; give lips of the whole recording."
        )


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
