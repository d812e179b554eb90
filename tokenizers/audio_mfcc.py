"""Audio units that need no download: Kaldi MFCCs with deltas, stacked in pairs, quantised by k-means.

Shapes: T units, C cepstral coefficients.
"""

import numpy as np
from pydantic import Field

from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer


class Settings(BaseSettings):
    """By default 25 units a second: two frames of 20 ms in a unit."""

    clusters: int = Field(default=400, ge=2)
    coefficients: int = Field(default=13, ge=2, le=40)
    mels: int = Field(default=40, ge=10)
    hop_ms: float = Field(default=20.0, gt=0)
    stack: int = Field(default=2, ge=1, description="frames per unit")


class MfccUnits(Tokenizer):
    """`floor(frames / stack)` units for a clip; features are mean-normalised over the clip."""

    modality = "A"
    media = "audio"
    Settings = Settings

    @property
    def rate_hz(self) -> float:
        return 1000.0 / (self.settings.hop_ms * self.settings.stack)

    def features(self, item: np.ndarray) -> np.ndarray:
        """Stacked MFCCs and deltas, float32 (T, stack * 2 * C), of speech (samples,)."""
        import kaldi_native_fbank as knf

        options = knf.MfccOptions()
        options.frame_opts.samp_freq = SAMPLE_RATE_HZ
        options.frame_opts.frame_shift_ms = self.settings.hop_ms
        options.frame_opts.dither = 0.0  # dither is random: tokens must be reproducible
        options.frame_opts.snip_edges = False
        options.mel_opts.num_bins = self.settings.mels
        options.num_ceps = self.settings.coefficients
        options.use_energy = False
        extractor = knf.OnlineMfcc(options)
        extractor.accept_waveform(SAMPLE_RATE_HZ, (item * np.float32(32768)).tolist())  # a list is faster
        extractor.input_finished()
        cepstra = np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])  # (frames, C)
        cepstra = cepstra - cepstra.mean(axis=0)
        frames = np.concatenate([cepstra, np.gradient(cepstra, axis=0)], axis=1).astype(np.float32)  # (frames, 2C)
        units = len(frames) // self.settings.stack
        return frames[: units * self.settings.stack].reshape(units, -1)
