"""Phonemes, 50 a second, of the recogniser in the package hama (version 1.7; its wheel contains the weights).

Each frame gets its most probable symbol: a phoneme, `<wb>` between words, or `<blank>` where none begins. The recogniser
was trained with transcripts, so these are not units of self-supervised learning: a model that hears them is given part of
the answer. It is trained by connectionist temporal classification, so a phoneme is mostly one frame among blanks.

The engine computes one clip at a time on one core of the CPU, and hears at most 30 s at once. It drops the rest silently
and clips samples beyond 1; here a longer clip is read in pieces, and a louder one is scaled down.
"""

from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from dmlm import known_files
from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.errors import UserError
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer

HOP = 320  # samples between two frames
SYMBOLS = 191


class Settings(BaseSettings):
    """Every frame by default."""

    dedup: bool = Field(default=False, description="join repeats of a symbol to one token; no fixed rate")
    longest_s: float = Field(default=30.0, ge=1, le=30, description="longer clips are read in pieces of this length")


class PhonemeUnits(Tokenizer):
    """`floor(samples / 320)` symbols of a clip. The engine gives one more, centred on the end of the clip."""

    modality = "A"
    media = "audio"
    packages = {"hama": 'pip install -e ".[phones]"'}
    Settings = Settings

    @property
    def vocab_size(self) -> int:
        return SYMBOLS

    @property
    def rate_hz(self) -> float | None:
        return None if self.settings.dedup else SAMPLE_RATE_HZ / HOP

    def facts(self) -> list[str]:
        """The version of the package, and the digest of its weights."""
        self.require()
        package = find_spec("hama")
        assert package is not None
        weights = Path(str(package.origin)).parent / "assets" / "asr_waveform.hama"
        return [*super().facts(), f"hama {version('hama')}", known_files.digest(weights)]

    @cached_property
    def recogniser(self) -> Any:
        """The recogniser.

        Raises:
            UserError: The package is missing, has no engine for this machine, or is another version with other symbols.
        """
        self.require()
        from hama import ASRModel

        try:
            model = ASRModel()
        except RuntimeError as error:
            raise UserError(
                f"audio_phones: the engine of hama {version('hama')} does not run here ({error})."
            ) from None
        if len(model.decoder_tokens) != SYMBOLS:
            raise UserError(
                f"audio_phones: hama {version('hama')} has {len(model.decoder_tokens)} symbols, not {SYMBOLS}; run:"
                f" {self.packages['hama']}"
            )
        return model

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """IDs, int32 (T,), of each clip, float32 (samples,), one clip at a time."""
        return [self._symbols(clip) for clip in batch]

    def _symbols(self, clip: np.ndarray) -> np.ndarray:
        """IDs of one clip.

        Raises:
            UserError: The clip is not mono, shorter than one frame, or holds NaN or infinity.
        """
        if clip.ndim != 1 or len(clip) < HOP:
            raise UserError(
                f"audio_phones: a clip of shape {clip.shape}; give mono speech (samples,) of {HOP} samples or more."
            )
        peak = np.abs(clip).max()
        if not np.isfinite(peak):
            raise UserError("audio_phones: a clip holds NaN or infinity; look at its file.")
        samples = (clip / max(1, peak)).astype(np.float32)
        step = int(self.settings.longest_s * SAMPLE_RATE_HZ) // HOP * HOP
        pieces = [samples[start : start + step] for start in range(0, len(samples) - HOP + 1, step)]
        ids = np.concatenate([self._frames(piece)[: len(piece) // HOP] for piece in pieces])
        return ids[np.append(True, ids[1:] != ids[:-1])] if self.settings.dedup else ids

    def _frames(self, samples: np.ndarray) -> np.ndarray:
        return np.array(self.recogniser.transcribe_waveform(samples, SAMPLE_RATE_HZ).frame_token_ids, np.int32)
