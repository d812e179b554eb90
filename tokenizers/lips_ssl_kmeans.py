"""Lip units of an image encoder: a vector for each frame of the mouth from a vision model of `transformers`, to k-means.

For those who want no licence to click through: DINOv2 (arXiv 2304.07193) by default, or another transformer over patches
such as DINOv3, I-JEPA, CLIP or SigLIP by name. Such a model sees single frames: `delta` adds what changes between them,
and `centred` takes away what stays, which is mostly whose face it is. T frames, N at once, D features, S pixels a side.
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
    """12.5 Hz by default: two video frames a unit. `mean` and `deviation` of grey levels 0..1 are those of ImageNet.

    `architecture` is for an untrained `random:` network.
    """

    model: str = Field(default=DINO, description="Hub id, folder, or random:KIND")
    revision: str | None = Field(default=None, description="commit or tag; null: the one known here, else main")
    layer: int | None = Field(default=None, ge=1, description="counted from 1, as it comes; null: the last, normalised")
    pool: Literal["first", "mean"] = Field(default="first", description="the first token (CLS), or all patches")
    side_px: int = Field(default=112, ge=14, description="the frame is scaled to this square")
    centred: bool = Field(default=True, description="less the mean of the clip")
    delta: bool = Field(default=True, description="and the difference between neighbours")
    stack: int = Field(default=2, ge=1, description="frames per unit")
    clusters: int = Field(default=200, ge=2)
    fps: float = Field(default=25.0, gt=0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)
    architecture: dict[str, Any] = {}


class ImageEncoderUnits(Tokenizer):
    """`T // stack` units; frames are seen one by one, so a long clip needs no more memory than a short one."""

    modality = "L"
    media = "lips"
    Settings = Settings

    @property
    def card(self) -> published.Card | None:
        return published.of_model(self.settings.model, self.settings.revision, KNOWN)

    @property
    def rate_hz(self) -> float:
        return self.settings.fps / self.settings.stack

    @cached_property
    def network(self) -> Any:
        """The part that sees, of a model that may also read.

        Raises:
            UserError: no transformer over patches, no such layer, or a side that its patches do not fill.
        """
        from dmlm.weights.frozen import on, open_model

        chosen = self.settings
        network: Any = open_model(self.recipe, chosen.model, self.card, chosen.architecture)
        network = getattr(network, "vision_model", network)
        require_patchwise(self.recipe, chosen.model, network.config.model_type)
        patch, layers = network.config.patch_size, network.config.num_hidden_layers
        if chosen.layer and chosen.layer > layers:
            raise UserError(f"{self.recipe}: layer={chosen.layer}, but {chosen.model} has {layers} layers.")
        if chosen.side_px % patch:
            raise UserError(f"{self.recipe}: side_px={chosen.side_px} is no multiple of its patches of {patch} pixels.")
        return on(self.device, network)

    def features(self, item: np.ndarray) -> np.ndarray:
        """Stacked vectors of frames with their deltas, float32 (T // stack, D), of a clip uint8 (T, H, W)."""
        frames = np.concatenate([self._seen(item[n : n + FRAMES_AT_ONCE]) for n in range(0, len(item), FRAMES_AT_ONCE)])
        if self.settings.centred:
            frames = frames - frames.mean(axis=0)
        if self.settings.delta:
            slope = np.gradient(frames, axis=0) if len(frames) > 1 else np.zeros_like(frames)
            frames = np.concatenate([frames, slope], axis=1)
        units = max(1, len(frames) // self.settings.stack)
        return np.resize(frames, (units * self.settings.stack, frames.shape[1])).reshape(units, -1)

    def _seen(self, frames: np.ndarray) -> np.ndarray:
        """A vector of each frame, float32 (N, D)."""
        import cv2

        from dmlm.weights.frozen import in_equal_batches

        square = (self.settings.side_px, self.settings.side_px)
        shrunk = cv2.INTER_AREA if frames.shape[1] > square[0] else cv2.INTER_CUBIC
        scaled = [cv2.resize(frame, square, interpolation=shrunk) for frame in frames]
        run = np.stack(scaled)  # one item, since all its frames are of one clip
        return in_equal_batches([run], run.size, lambda x: self._pooled(x[0])[None], self.device)[0]

    def _pooled(self, grey: Any) -> Any:
        """Grey frames uint8 (N, S, S) -> (N, D)."""
        network, layer = self.network, self.settings.layer
        mean, deviation = (
            grey.new_tensor(values, dtype=network.dtype).view(1, 3, 1, 1)
            for values in (self.settings.mean, self.settings.deviation)
        )
        given = {"pixel_values": (grey[:, None] / 255 - mean) / deviation, "output_hidden_states": layer is not None}
        if "interpolate_pos_encoding" in inspect.signature(network.forward).parameters:
            given["interpolate_pos_encoding"] = True
        seen = network(**given)
        tokens = seen.last_hidden_state if layer is None else seen.hidden_states[layer]  # (N, tokens, D)
        patches = (self.settings.side_px // network.config.patch_size) ** 2
        if self.settings.pool == "mean":
            return tokens[:, -patches:].mean(dim=1)
        if tokens.shape[1] == patches:
            raise UserError(f"{self.recipe}: {self.settings.model} has no CLS token; choose pool=mean.")
        return tokens[:, 0]
