"""Image units that need no download: the grey patches of a page, in raster order, quantised by k-means."""

import numpy as np
from pydantic import Field

from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer


class Settings(BaseSettings):
    """A page of 450 x 200 px gives 19 x 9 = 171 units. Most patches are blank; blank patches share a unit."""

    clusters: int = Field(default=256, ge=2)
    patch_px: int = Field(default=24, ge=4, description="side of a patch, in pixels of the page")
    side: int = Field(default=12, ge=2, description="a patch is averaged down to side x side pixels")


class PatchUnits(Tokenizer):
    """Patches do not overlap. The page is padded with the grey of its paper to a whole number of patches."""

    modality = "I"
    media = "image"
    Settings = Settings

    @property
    def rate_hz(self) -> None:
        return None

    def features(self, item: np.ndarray) -> np.ndarray:
        """Darkness relative to the paper, float32 (T, side * side) in [-1, 1], of a page, uint8 (H, W, 3)."""
        import cv2

        patch, side = self.settings.patch_px, self.settings.side
        grey = cv2.cvtColor(item, cv2.COLOR_RGB2GRAY)
        paper = int(np.median(grey))
        down, across = -(-grey.shape[0] // patch), -(-grey.shape[1] // patch)
        padding = (down * patch - grey.shape[0], across * patch - grey.shape[1])
        padded = cv2.copyMakeBorder(grey, 0, padding[0], 0, padding[1], cv2.BORDER_CONSTANT, value=paper)
        small = cv2.resize(padded, (across * side, down * side), interpolation=cv2.INTER_AREA)
        dark = (paper - small.astype(np.float32)) / 255
        return dark.reshape(down, side, across, side).swapaxes(1, 2).reshape(down * across, side * side)
