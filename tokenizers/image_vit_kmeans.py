"""Image units of a vision transformer such as ViT, DINOv2, DINOv3 or SigLIP: patch vectors, quantised by k-means.

A page is fitted to the square that the network takes, and its channels are scaled as `preprocessor_config.json` says.
The class and register tokens, which come before the patches, are dropped. `layer` (counted from 1) selects the layer
whose output is used, without normalisation; without `layer` it is the last one, after the network's final normalisation.

`fit` decides how a page becomes a square:

* `pad` (default): the whole page, padded with the colour of its paper;
* `crop`: the shorter side fits, the rest is cut off;
* `squash`: the whole page, its aspect ratio changed, as the networks' own preprocessing often does.

Shapes: B pages, T patches, D features.
"""

import inspect
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, PositiveFloat, ValidationError

from dmlm import known_files
from dmlm.errors import UserError
from dmlm.tokens.canvas import Fit, require_patchwise, square
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.weights import published

IMAGES_AT_ONCE = 8
VIT = "google/vit-base-patch16-224-in21k"
DINO = "facebook/dinov2-base"
KNOWN = {
    VIT: published.Card.on_hub(
        VIT,
        "Apache-2.0",
        "b4569560a39a0f1af58e3ddaf17facf20ab919b0",
        published.File("model.safetensors", "fd4e1169c7aa6c2dbfa8a6448be13b35abc0ee256190857c90009d12c094619b"),
    ),
    DINO: published.Card.on_hub(DINO, "Apache-2.0", "f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
}


class Settings(BaseSettings):
    """196 units for an image at 224 px with patches of 16 px. `architecture` is for an untrained `random:` network."""

    model: str = Field(default=VIT, description="Hub id, folder, or random:KIND")
    revision: str | None = Field(default=None, description="commit or tag; null: the one named in the recipe, or main")
    layer: int | None = Field(default=None, ge=1, description="counted from 1; null: the last, normalised")
    clusters: int = Field(default=512, ge=2)
    side_px: int | None = Field(default=None, ge=8, description="side of the square; null: that of the training")
    fit: Fit = "pad"
    architecture: dict[str, Any] = {}


class Scaling(BaseModel):
    """The part of `preprocessor_config.json` about pixels. Defaults for missing keys: bilinear, scaled to [-1, 1]."""

    resample: int = Field(default=2, ge=0, le=5)  # a value of PIL.Image.Resampling
    do_rescale: bool = True
    rescale_factor: PositiveFloat = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)

    def scaled(self, levels: np.ndarray) -> np.ndarray:
        """Levels 0..255 (..., 3), scaled as in the training of the network, float32."""
        scaled: np.ndarray = levels.astype(np.float32)
        if self.do_rescale:
            scaled = scaled / np.float32(1 / self.rescale_factor)
        if self.do_normalize:
            scaled = (scaled - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return scaled


class PatchFeatureUnits(Tokenizer):
    """(side_px / patch)^2 units in raster order."""

    modality = "I"
    media = "image"
    Settings = Settings

    @property
    def card(self) -> published.Card | None:
        return published.card_of(self.settings.model, self.settings.revision, KNOWN)

    @property
    def rate_hz(self) -> None:
        return None

    def facts(self) -> list[str]:
        path = self._preprocessor
        return [*super().facts(), *([known_files.digest(path)] if path else [])]

    @property
    def _folder(self) -> Path | None:
        return published.model_folder(self.card, self.recipe) if self.card else None

    @property
    def _preprocessor(self) -> Path | None:
        """The model's `preprocessor_config.json`; None if there is none."""
        path = self._folder / "preprocessor_config.json" if self._folder else None
        return path if path and path.is_file() else None

    @cached_property
    def network(self) -> Any:
        """The vision transformer with its layers up to `layer` only.

        Raises:
            UserError: The model is missing, is no transformer over patches, or has no such layer.
        """
        from dmlm.weights.frozen import on_device, open_model

        settings, layer = self.settings, self.settings.layer
        kind = vision_class(self._folder) if self._folder else None
        network: Any = open_model(self.recipe, settings.model, self.card, settings.architecture, kind)
        require_patchwise(self.recipe, settings.model, network.config.model_type)
        if layer:
            layers = blocks(network)
            if layer > len(layers):
                raise UserError(f"{self.recipe}: there is no layer {layer}; {settings.model} has {len(layers)}.")
            del layers[layer:]
        return on_device(self.device, network)

    @cached_property
    def scaling(self) -> Scaling:
        """How pixels are resized and scaled.

        Raises:
            UserError: The model's preprocessor file is damaged or has invalid values.
        """
        path = self._preprocessor
        if path is None:
            return Scaling()
        try:
            return Scaling.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{self.recipe}: {path}: {where} {first['msg']}; mend the file or fetch it again."
            ) from None

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Patch vectors, float32 (T, D), of each page, uint8 (H, W, 3)."""
        from dmlm.weights.frozen import in_equal_batches

        pages = [self.pixels(page) for page in batch]
        return in_equal_batches(pages, IMAGES_AT_ONCE * pages[0].size, self.patches, self.device)

    @property
    def trained_side(self) -> int:
        """Side, in pixels, of the square that the network was trained with."""
        size = self.network.config.image_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def side(self) -> int:
        """Side, in pixels, of the square that the network is given.

        Raises:
            UserError: It is not a whole number of patches.
        """
        side = self.settings.side_px or self.trained_side
        if side % self.network.config.patch_size:
            patch = self.network.config.patch_size
            raise UserError(f"{self.recipe}: side_px {side} is no multiple of the patch, {patch} px; change it.")
        return side

    def pixels(self, page: np.ndarray) -> np.ndarray:
        """The input of the network for a page: float32 (3, side, side)."""
        small = square(page, self.side, self.settings.fit, self.scaling.resample)
        return self.scaling.scaled(small).transpose(2, 0, 1)

    def patches(self, pixels: Any) -> Any:
        """(B, 3, side, side) -> (B, T, D)."""
        inputs = {"pixel_values": pixels}
        if pixels.shape[-1] != self.trained_side:
            parameters = inspect.signature(self.network.forward).parameters
            inputs |= {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        if self.settings.layer is None:
            hidden = self.network(**inputs).last_hidden_state
        else:
            outputs: list[Any] = []
            with blocks(self.network)[-1].register_forward_hook(lambda module, args, output: outputs.append(output)):
                self.network(**inputs)
            hidden = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        return hidden[:, -((self.side // self.network.config.patch_size) ** 2) :]


def blocks(network: Any) -> Any:
    """The layers of a transformer: the longest `ModuleList` in the network."""
    from torch.nn import ModuleList

    return max((module for module in network.modules() if isinstance(module, ModuleList)), key=len)


def vision_class(folder: Path) -> Any:
    """An object with `from_pretrained` that opens only the vision encoder of a model's folder.

    It is built without a pooler, because many checkpoints have none.

    Raises:
        UserError: The folder cannot be opened, or holds no transformer over patches.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"image_vit_kmeans: {folder} cannot be opened ({str(error).splitlines()[0]}).") from None
    config = getattr(config, "vision_config", config)  # in a model that also has a text encoder
    require_patchwise("image_vit_kmeans", str(folder), config.model_type)
    kind: Any = transformers.AutoModel._model_mapping[type(config)]
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    return SimpleNamespace(from_pretrained=partial(kind.from_pretrained, **options))
