"""Lip units without a download: low 2-D DCT coefficients of the mouth region with deltas, to k-means clusters."""

import numpy as np
from pydantic import Field

from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer


class Settings(BaseSettings):
    """12.5 Hz units by default: two video frames a unit. The frames are expected to show the mouth region only."""

    clusters: int = Field(default=100, ge=2)
    stack: int = Field(default=2, ge=1, description="frames per unit")
    side: int = Field(default=24, ge=8, description="frames are averaged down to side x side pixels")
    coefficients: int = Field(default=6, ge=2, description="DCT coefficients kept along each axis")
    fps: float = Field(default=25.0, gt=0)


class DctUnits(Tokenizer):
    """Zigzag corner of the DCT, mean-normalised over the clip (the speaker's face goes, the movement stays)."""

    modality = "L"
    media = "lips"
    Settings = Settings

    @property
    def rate_hz(self) -> float:
        return self.settings.fps / self.settings.stack

    def features(self, item: np.ndarray) -> np.ndarray:
        """Stacked DCT + delta, float32 (T // stack, D), of grey frames uint8 (T, H, W)."""
        import cv2
        from scipy.fft import dctn

        side, kept = self.settings.side, self.settings.coefficients
        small = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in item])
        spectrum = dctn(small.astype(np.float32), axes=(1, 2), norm="ortho")[:, :kept, :kept]  # (T, kept, kept)
        low = np.add.outer(np.arange(kept), np.arange(kept)) < kept  # upper-left triangle
        static = spectrum[:, low]
        static = static - static.mean(axis=0)
        delta = np.gradient(static, axis=0) if len(static) > 1 else np.zeros_like(static)
        frames = np.concatenate([static, delta], axis=1).astype(np.float32)
        units = max(1, len(frames) // self.settings.stack)
        return np.resize(frames, (units * self.settings.stack, frames.shape[1])).reshape(units, -1)
