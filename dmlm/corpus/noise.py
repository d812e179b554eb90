"""Add noise at an exact SNR, the variable that the experiments sweep.

The noise waveform of an utterance depends only on (utterance id, noise set, kind, seed). It is the same for every
model, every modality subset and every SNR, so curves are paired. The SNR is the power ratio inside the noisy span, and
it is measured again on the mixture. The protocol is that of the 3-Equations authors (`audio_add_noise.py`): noise on
the second half of each spoken sentence. Two differences: a noise clip shorter than the span is looped, and the span
ends where the sentence ends (theirs ends 0.15 s earlier, to leave out the silence at the end of their clips).

Shapes: audio is float32 (samples,) at 16 kHz.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dmlm.corpus.manifest import Utterance
from dmlm.corpus.media import SAMPLE_RATE_HZ, read_audio
from dmlm.errors import UserError
from dmlm.seeding import generator
from dmlm.snr import CLEAN_DB, agrees, noisy

PEAK = 0.95  # largest absolute sample of a mixture
Placement = Literal["second_half", "random_half", "whole"]


class NoiseSettings(BaseModel):
    """Which noise is added, and where. `set` is `builtin` or a folder with one sub-folder per kind, such as MUSAN."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: str = "builtin"
    kinds: Annotated[tuple[str, ...], BeforeValidator(lambda kinds: (kinds,) if isinstance(kinds, str) else kinds)] = (
        Field(default=("noise", "music", "babble"), min_length=1)
    )
    placement: Placement = "second_half"
    seed: int = 0


@dataclass(frozen=True)
class Mixed:
    """A mixture and the SNR measured on it."""

    audio: np.ndarray  # (samples,) float32, peak-normalised
    snr_db_measured: float  # inside the noisy spans; infinite for clean speech


@lru_cache(maxsize=64)
def _noise_clip(path: Path) -> np.ndarray:
    clip = read_audio(path)
    if not np.any(clip):
        raise UserError(f"Noise file {path} is silent, so no SNR can be set with it; remove the file.")
    return clip


@dataclass(frozen=True)
class NoiseBank:
    """Noise files by kind, in two parts, so that training and evaluation never share a file."""

    folder: Path
    digest: str  # of the names and sizes of the files
    files: dict[str, dict[str, tuple[Path, ...]]]  # part ("train" or "test") -> kind -> files

    @classmethod
    def open(cls, folder: Path, kinds: tuple[str, ...]) -> "NoiseBank":
        """Open `folder/{train,test}/KIND/*`, or `folder/KIND/**` (MUSAN), where every fifth file is used for evaluation.

        Raises:
            UserError: a kind has too few audio files.
        """
        files: dict[str, dict[str, tuple[Path, ...]]] = {"train": {}, "test": {}}
        digest = hashlib.sha256()
        for kind in kinds:
            if (folder / "train").is_dir():
                parts = {part: _audio_files(folder / part / kind) for part in files}
            else:
                clips = _audio_files(folder / kind)
                parts = {"test": clips[::5], "train": [path for i, path in enumerate(clips) if i % 5]}
            for part, paths in parts.items():
                if not paths:
                    raise UserError(
                        f"Noise folder {folder} has no {part} file of kind {kind!r}; add files or drop the kind from noise.kinds."
                    )
                files[part][kind] = tuple(paths)
                for path in paths:
                    digest.update(f"{part}/{kind}/{path.relative_to(folder)}:{path.stat().st_size}\n".encode())
        return cls(folder, digest.hexdigest(), files)

    def waveform(self, utterance_id: str, part: str, samples: int, kinds: tuple[str, ...], *key: object) -> np.ndarray:
        """Return noise float32 (samples,) for one utterance; `key` is added to its random key. Short clips are looped."""
        random = generator(utterance_id, self.folder.name, part, ",".join(kinds), *key)
        paths = self.files[part][kinds[random.integers(len(kinds))]]
        path = paths[random.integers(len(paths))]
        clip = _noise_clip(path)
        noise = np.take(clip, np.arange(samples) + random.integers(len(clip)), mode="wrap")
        if not np.any(noise):
            raise UserError(f"Noise file {path} is silent where utterance {utterance_id!r} uses it; remove the file.")
        return noise


def _audio_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".wav", ".flac", ".ogg", ".mp3"})


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
        start, end = round(start_s * SAMPLE_RATE_HZ), min(round(end_s * SAMPLE_RATE_HZ), samples)
        if start < end:
            ranges.append(slice(start, end))
    if not ranges:
        raise UserError(
            f"Utterance {utterance.id!r} has no room for noise: its spans lie outside its audio; correct the manifest."
        )
    return ranges


def mix(speech: np.ndarray, noise: np.ndarray, spans: list[slice], snr_db: float, name: str) -> Mixed:
    """Add noise inside each span at one SNR, then normalise the peak of the mixture.

    Per span: gain = sqrt(P_speech / (P_noise * 10^(SNR/10))), both powers over the samples of that span.

    Raises:
        UserError: the speech or the noise is silent in a span, or the measured SNR is off by more than 0.1 dB.
    """
    speech = speech.astype(np.float64)
    if not np.any(speech):
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
            mixture[span] += noise[span] * math.sqrt(speech_power / (noise_power * 10 ** (snr_db / 10)))
    gain = PEAK / np.abs(mixture).max()
    audio = (gain * mixture).astype(np.float32)
    measured = measure_snr_db(audio / gain, speech, spans, snr_db)
    if not agrees(measured, snr_db):
        raise UserError(
            f"{name}: asked for {snr_db} dB, measured {measured:.2f} dB: more than 32-bit audio can hold; choose a level nearer 0 dB."
        )
    return Mixed(audio, measured)


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
    return float(np.mean(np.square(samples, dtype=np.float64)))
