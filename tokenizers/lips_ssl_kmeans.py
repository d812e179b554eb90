"""Lip units of an image encoder: a vector per frame of the mouth from a vision model of `transformers`, k-means.

It needs no licence agreement. The default is DINOv2 (arXiv 2304.07193); other transformers over patches such as DINOv3,
I-JEPA, CLIP or SigLIP can be named. An image encoder sees single frames. So `delta` adds the change between frames, and
`centred` subtracts the mean of the clip, which is mostly the speaker's face.

Shapes: T frames of a clip, N frames at once, D features, S pixels a side.
"""

import inspect
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dmlm.errors import UserError
from dmlm.tokens.canvas import require_patchwise
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.weights import published

DINO = "facebook/dinov2-small"
KNOWN = {
    DINO: published.Card.on_hub(
        DINO,
        "Apache-2.0",
        "ed25f3a31f01632728cabb09d1542f84ab7b0056",
        published.File(
            "model.safetensors", "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1", 88_249_960
        ),
    )
}
FRAMES_AT_ONCE = 64


class Settings(BaseSettings):
    """By default 12.5 units a second: two video frames in a unit.

    `mean` and `deviation`, of levels 0..1, are those of ImageNet. `architecture` is for an untrained `random:` network.
    """

    model: str = Field(default=DINO, description="Hub id, folder, or random:KIND")
    revision: str | None = Field(default=None, description="commit or tag; null: the one named in the recipe, or main")
    layer: int | None = Field(
        default=None, ge=1, description="counted from 1, not normalised; null: the last, normalised"
    )
    pool: Literal["first", "mean"] = Field(
        default="first", description="the first token (CLS), or the mean of all patches"
    )
    side_px: int = Field(default=112, ge=14, description="the frame is scaled to this square")
    centred: bool = Field(default=True, description="subtract the mean of the clip")
    delta: bool = Field(default=True, description="append the difference between neighbouring frames")
    stack: int = Field(default=2, ge=1, description="frames per unit")
    clusters: int = Field(default=200, ge=2)
    fps: float = Field(default=25.0, gt=0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)
    architecture: dict[str, Any] = {}


class ImageEncoderUnits(Tokenizer):
    """`T // stack` units. A fixed number of frames is read at once, so a long clip needs no more memory than a short one."""

    modality = "L"
    media = "lips"
    Settings = Settings

    @property
    def card(self) -> published.Card | None:
        return published.card_of(self.settings.model, self.settings.revision, KNOWN)

    @property
    def rate_hz(self) -> float:
        return self.settings.fps / self.settings.stack

    @cached_property
    def network(self) -> Any:
        """The vision encoder of the model.

        Raises:
            UserError: It is no transformer over patches, has no such layer, or `side_px` is not a whole number of patches.
        """
        from dmlm.weights.frozen import on_device, open_model

        settings = self.settings
        network: Any = open_model(self.recipe, settings.model, self.card, settings.architecture)
        network = getattr(network, "vision_model", network)  # of a model that also has a text encoder
        require_patchwise(self.recipe, settings.model, network.config.model_type)
        patch, layers = network.config.patch_size, network.config.num_hidden_layers
        if settings.layer and settings.layer > layers:
            raise UserError(f"{self.recipe}: layer={settings.layer}, but {settings.model} has {layers} layers.")
        if settings.side_px % patch:
            raise UserError(
                f"{self.recipe}: side_px={settings.side_px} is no multiple of its patches of {patch} pixels."
            )
        return on_device(self.device, network)

    def features(self, item: np.ndarray) -> np.ndarray:
        """Stacked frame vectors with deltas, float32 (T // stack, D), of a clip, uint8 (T, H, W)."""
        frames = np.concatenate(
            [self._vectors(item[n : n + FRAMES_AT_ONCE]) for n in range(0, len(item), FRAMES_AT_ONCE)]
        )
        if self.settings.centred:
            frames = frames - frames.mean(axis=0)
        if self.settings.delta:
            slope = np.gradient(frames, axis=0) if len(frames) > 1 else np.zeros_like(frames)
            frames = np.concatenate([frames, slope], axis=1)
        units = max(1, len(frames) // self.settings.stack)
        return np.resize(frames, (units * self.settings.stack, frames.shape[1])).reshape(units, -1)

    def _vectors(self, frames: np.ndarray) -> np.ndarray:
        """A vector for each frame, float32 (N, D)."""
        import cv2

        from dmlm.weights.frozen import in_equal_batches

        square = (self.settings.side_px, self.settings.side_px)
        interpolation = cv2.INTER_AREA if frames.shape[1] > square[0] else cv2.INTER_CUBIC
        scaled = [cv2.resize(frame, square, interpolation=interpolation) for frame in frames]
        run = np.stack(scaled)  # one item, since all its frames are of one clip
        return in_equal_batches([run], run.size, lambda x: self._pooled(x[0])[None], self.device)[0]

    def _pooled(self, grey: Any) -> Any:
        """Grey frames, uint8 (N, S, S) -> vectors (N, D)."""
        network, layer = self.network, self.settings.layer
        mean, deviation = (
            grey.new_tensor(values, dtype=network.dtype).view(1, 3, 1, 1)
            for values in (self.settings.mean, self.settings.deviation)
        )
        inputs = {"pixel_values": (grey[:, None] / 255 - mean) / deviation, "output_hidden_states": layer is not None}
        if "interpolate_pos_encoding" in inspect.signature(network.forward).parameters:
            inputs["interpolate_pos_encoding"] = True
        output = network(**inputs)
        tokens = output.last_hidden_state if layer is None else output.hidden_states[layer]  # (N, tokens, D)
        patches = (self.settings.side_px // network.config.patch_size) ** 2
        if self.settings.pool == "mean":
            return tokens[:, -patches:].mean(dim=1)
        if tokens.shape[1] == patches:
            raise UserError(f"{self.recipe}: {self.settings.model} has no CLS token; choose pool=mean.")
        return tokens[:, 0]
