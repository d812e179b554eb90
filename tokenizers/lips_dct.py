"""Lip units that need no download: low 2-D DCT coefficients of the mouth with deltas, quantised by k-means."""

import numpy as np
from pydantic import Field

from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer


class Settings(BaseSettings):
    """By default 12.5 units a second: two video frames in a unit. Frames have to show the mouth region only."""

    clusters: int = Field(default=100, ge=2)
    stack: int = Field(default=2, ge=1, description="frames per unit")
    side: int = Field(default=24, ge=8, description="frames are averaged down to side x side pixels")
    coefficients: int = Field(default=6, ge=2, description="DCT coefficients kept along each axis")
    fps: float = Field(default=25.0, gt=0)


class DctUnits(Tokenizer):
    """The low-frequency triangle of the DCT, less its mean over the clip.

    Subtracting the mean removes what stays the same, mostly the speaker's face, and keeps the movement.
    """

    modality = "L"
    media = "lips"
    Settings = Settings

    @property
    def rate_hz(self) -> float:
        return self.settings.fps / self.settings.stack

    def features(self, item: np.ndarray) -> np.ndarray:
        """Stacked DCT coefficients and deltas, float32 (T // stack, D), of grey frames, uint8 (T, H, W)."""
        import cv2
        from scipy.fft import dctn

        side, count = self.settings.side, self.settings.coefficients
        small = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in item])
        spectrum = dctn(small.astype(np.float32), axes=(1, 2), norm="ortho")[:, :count, :count]  # (T, count, count)
        low = np.add.outer(np.arange(count), np.arange(count)) < count  # upper-left triangle
        static = spectrum[:, low]
        static = static - static.mean(axis=0)
        delta = np.gradient(static, axis=0) if len(static) > 1 else np.zeros_like(static)
        frames = np.concatenate([static, delta], axis=1).astype(np.float32)
        units = max(1, len(frames) // self.settings.stack)
        return np.resize(frames, (units * self.settings.stack, frames.shape[1])).reshape(units, -1)
