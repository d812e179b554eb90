"""Add noise at an exact SNR, the variable that the experiments sweep.

The noise of an utterance depends only on (utterance id, its spans, noise files, kinds, seed). It is the same for every
model, every modality subset and every SNR, so curves are paired. The SNR is the power ratio inside the noisy span, and
it is measured again on the mixture. A power is about the mean, so a constant offset is neither speech nor noise.

The protocol is that of the 3-Equations authors (`audio_add_noise.py`): noise on the second half of each spoken sentence.
Differences: a noise clip shorter than the span is looped; the span ends where the sentence ends (theirs ends 0.15 s
earlier, to leave out the silence at the end of their clips); and a place where the noise is all but silent is not used.

Shapes: audio is float32 (samples,) at 16 kHz.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from dmlm.corpus.manifest import Utterance
from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.corpus.noise_clips import NoiseFile, stretch
from dmlm.corpus.noise_files import Noise, named
from dmlm.errors import UserError
from dmlm.seeding import generator
from dmlm.snr import CLEAN_DB, agrees, noisy

PROTOCOL = 2  # the number changes with whatever else changes a mixture
PEAK = 0.95  # largest absolute sample of a mixture
WEAKEST_DB = -40.0  # power of the noise in a span against that of its file; weaker noise is drawn again
TRIES = 100
Placement = Literal["second_half", "random_half", "whole"]
Words = Annotated[tuple[str, ...], BeforeValidator(lambda words: (words,) if isinstance(words, str) else words)]


class NoiseSettings(BaseModel):
    """Which noise is added, and where. `set` is `builtin`, a folder with one sub-folder per kind, or a name of `dmlm noise make`.

    `sources` says what a source (track, speaker, session) is, of which training, val and test share none: `file`: each
    file, known by its content; `folder`: the sub-folder of the kind; a regular expression that finds the source, its only
    group, in the file's path in the folder of the kind; or a text file with lines `RELATIVE_PATH SOURCE`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: str = "builtin"
    kinds: Words = Field(default=("noise", "music", "babble"), min_length=1)
    sources: str = "file"
    leave_out: Words = Field(default=(), description="files that are not used: paths relative to `set`")
    placement: Placement = "second_half"
    seed: int = 0

    @field_validator("kinds")
    @classmethod
    def _are_distinct_names(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if not kind or "/" in kind or kind.startswith("."):
                raise ValueError(f"{kind!r} is no name of a sub-folder")
        if len({*kinds}) < len(kinds):
            raise ValueError("a kind stands twice")
        return kinds


@dataclass(frozen=True)
class Mixed:
    """A mixture and the SNR measured on it."""

    audio: np.ndarray  # (samples,) float32, peak-normalised
    snr_db_measured: float  # inside the noisy spans; infinite for clean speech
    gain: float  # of the peak normalisation: `audio` is `gain * (speech + noise)`


def waveform(noise: Noise, spans: list[slice], samples: int, *key: object) -> tuple[np.ndarray, NoiseFile]:
    """Return noise float32 (samples,) for one utterance, zero before the first and after the last of its spans; and its file.

    A kind, a file and a place in it are drawn; short files are looped. If the noise of a span is weaker than its file by
    40 dB, all three are drawn again, up to 100 times.

    Args:
        noise: the files of a part
        spans: where noise goes
        samples: of the utterance
        key: of the random generator, such as the utterance's id

    Raises:
        UserError: no place was found, or a file cannot be read.
    """
    kinds = list(noise)
    random = generator(",".join(kinds), *key)
    tried: dict[str, None] = {}
    start, stop = min(span.start for span in spans), max(span.stop for span in spans)
    for _ in range(TRIES):
        files = noise[kinds[random.integers(len(kinds))]]
        file = files[random.integers(len(files))]
        found = np.zeros(samples, np.float32)
        found[start:stop] = stretch(file, (random.integers(file.samples) + start) % file.samples, stop - start)
        if all(_power(found[span]) >= file.power * 10 ** (WEAKEST_DB / 10) for span in spans):
            return found, file
        tried[str(file.path)] = None
    raise UserError(
        f"In {TRIES} places of noise for utterance {key[0]!r} a span was all but silent; add noise of these kinds, or list in"
        f" noise.leave_out what is mostly silent of {named([*tried])}"
    )


def noisy_spans(utterance: Utterance, samples: int, settings: NoiseSettings) -> list[slice]:
    """Return the sample ranges that get noise, one per spoken sentence (without `spans`, the clip is one sentence).

    Raises:
        UserError: no span lies inside the audio.
    """
    random = generator(utterance.id, settings.placement, settings.seed)
    ranges = []
    for start_s, end_s in utterance.spans or ((0.0, utterance.duration_s),):
        half_s = (end_s - start_s) / 2
        if settings.placement == "second_half":
            start_s = end_s - half_s
        elif settings.placement == "random_half":
            start_s += random.uniform(0, half_s)
            end_s = start_s + half_s
        start, end = (round(min(max(0.0, time_s * SAMPLE_RATE_HZ), samples)) for time_s in (start_s, end_s))
        if start < end:
            ranges.append(slice(start, end))
    if not ranges:
        raise UserError(
            f"Utterance {utterance.id!r} has no room for noise: its spans lie outside its audio; correct the manifest."
        )
    return ranges


def mix(speech: np.ndarray, noise: np.ndarray, spans: list[slice], snr_db: float, name: str) -> Mixed:
    """Add noise inside each span at one SNR, then normalise the peak of the mixture.

    Per span: gain = sqrt(P_speech / (P_noise * 10^(SNR/10))), both powers over the samples of that span and about their
    means; the mean of the noise is not added.

    Raises:
        UserError: the speech or the noise is silent in a span, or the measured SNR is off by more than 0.1 dB.
    """
    speech = speech.astype(np.float64)
    if not _power(speech):
        raise UserError(f"{name} is silent, so it cannot be recognised or mixed; replace the file.")
    mixture = speech.copy()
    if noisy(snr_db):
        for span in spans:
            speech_power, noise_power = _power(speech[span]), _power(noise[span])
            if speech_power == 0 or noise_power == 0:
                silent = "speech" if speech_power == 0 else "noise"
                times = f"from {span.start / SAMPLE_RATE_HZ:.2f} s to {span.stop / SAMPLE_RATE_HZ:.2f} s"
                raise UserError(
                    f"{name}: the {silent} is silent {times}, where noise goes, so no SNR is defined; replace the file."
                )
            added = noise[span] - np.mean(noise[span], dtype=np.float64)
            mixture[span] += added * math.sqrt(speech_power / (noise_power * 10 ** (snr_db / 10)))
    gain = PEAK / np.abs(mixture).max()
    audio = (gain * mixture).astype(np.float32)
    measured = measure_snr_db(audio / gain, speech, spans, snr_db)
    if not agrees(measured, snr_db):
        raise UserError(
            f"{name}: asked for {snr_db} dB, measured {measured:.2f} dB: more than 32-bit audio can hold; choose a level nearer 0 dB."
        )
    return Mixed(audio, measured, gain)


def measure_snr_db(mixture: np.ndarray, speech: np.ndarray, spans: list[slice], snr_db: float) -> float:
    """Measure the SNR of a mixture in dB: the span furthest from `snr_db`, or infinity where no noise was added."""
    if not noisy(snr_db):
        return CLEAN_DB
    measured = []
    for span in spans:
        noise_power = _power(mixture[span] - speech[span])
        measured.append(10 * math.log10(_power(speech[span]) / noise_power) if noise_power else CLEAN_DB)
    return max(measured, key=lambda value: abs(value - snr_db))


def _power(samples: np.ndarray) -> float:
    """Mean power about the mean; exactly zero for a constant."""
    return float(np.var(samples.astype(np.float64) - float(samples[0])))
