"""Image units of a vision transformer: the vectors of its patches, to k-means clusters. ViT, DINOv2, DINOv3, SigLIP by name.

A page is brought to the square that the network knows, each channel scaled as its `preprocessor_config.json` says, and
the vectors of class and register tokens, which stand before the patches, are dropped. `layer` counts from 1 and gives
the output of that layer as it comes; without it, the last one's after the network's own last normalisation.

`fit` is `pad` by default: the whole page on a square of its own paper. `crop` fits the shorter side and cuts the rest;
`squash` gives up the aspect, as the networks' own preprocessing often does.
"""

import inspect
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, PositiveFloat, ValidationError

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
    """196 units of an image at 224 px and 16 px patches. `architecture` is for an untrained `random:` network."""

    model: str = Field(default=VIT, description="Hub id, folder, or random:KIND")
    revision: str | None = Field(default=None, description="commit or tag; null: the one known here, else main")
    layer: int | None = Field(default=None, ge=1, description="null: the last, normalised")
    clusters: int = Field(default=512, ge=2)
    side_px: int | None = Field(default=None, ge=8, description="null: what the network was trained at")
    fit: Fit = "pad"
    architecture: dict[str, Any] = {}


class Scaling(BaseModel):
    """What a `preprocessor_config.json` says of pixels; where it is silent: bilinear, to [-1, 1]."""

    resample: int = Field(default=2, ge=0, le=5)  # of PIL.Image.Resampling
    do_rescale: bool = True
    rescale_factor: PositiveFloat = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)

    def scaled(self, levels: np.ndarray) -> np.ndarray:
        """Grey levels 0..255 (..., 3) as the network was trained with them, float32."""
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
        return published.of_model(self.settings.model, self.settings.revision, KNOWN)

    @property
    def rate_hz(self) -> None:
        return None

    def facts(self) -> list[str]:
        said = self._folder / "preprocessor_config.json" if self._folder else None
        return [*super().facts(), *([published.file_digest(said)] if said and said.is_file() else [])]

    @property
    def _folder(self) -> Path | None:
        return published.model_folder(self.card, self.recipe) if self.card else None

    @cached_property
    def network(self) -> Any:
        """Only the layers up to the one that is read.

        Raises:
            UserError: not here, no transformer over patches, or without such a layer.
        """
        from dmlm.weights.frozen import on, open_model

        chosen, layer = self.settings, self.settings.layer
        kind = vision_class(self._folder) if self._folder else None
        network: Any = open_model(self.recipe, chosen.model, self.card, chosen.architecture, kind)
        require_patchwise(self.recipe, chosen.model, network.config.model_type)
        if layer:
            layers = blocks(network)
            if layer > len(layers):
                raise UserError(f"{self.recipe}: there is no layer {layer}; {chosen.model} has {len(layers)}.")
            del layers[layer:]
        return on(self.device, network)

    @cached_property
    def scaling(self) -> Scaling:
        """How pixels are resized and scaled.

        Raises:
            UserError: the model's file is damaged, or says what cannot be done.
        """
        said = self._folder / "preprocessor_config.json" if self._folder else None
        if not (said and said.is_file()):
            return Scaling()
        try:
            return Scaling.model_validate_json(said.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{self.recipe}: {said}: {where} {first['msg']}; mend the file or fetch it again."
            ) from None

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Vectors of the patches, float32 (T, D), of each page, uint8 (H, W, 3)."""
        from dmlm.weights.frozen import in_equal_batches

        pages = [self.pixels(page) for page in batch]
        return in_equal_batches(pages, IMAGES_AT_ONCE * pages[0].size, self.patches, self.device)

    @property
    def side(self) -> int:
        """Of the square, in pixels; a whole number of patches."""
        own = self.network.config.image_size
        side = self.settings.side_px or (own if isinstance(own, int) else own[0])
        if side % self.network.config.patch_size:
            patch = self.network.config.patch_size
            raise UserError(f"{self.recipe}: side_px {side} is no multiple of the patch, {patch} px; change it.")
        return side

    def pixels(self, page: np.ndarray) -> np.ndarray:
        """What the network is given: float32 (3, side, side)."""
        small = square(page, self.side, self.settings.fit, self.scaling.resample)
        return self.scaling.scaled(small).transpose(2, 0, 1)

    def patches(self, pixels: Any) -> Any:
        """(B, 3, side, side) -> (B, T, D)."""
        given = {"pixel_values": pixels}
        own = self.network.config.image_size
        if pixels.shape[-1] != (own if isinstance(own, int) else own[0]):
            takes = inspect.signature(self.network.forward).parameters
            given |= {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        if self.settings.layer is None:
            hidden = self.network(**given).last_hidden_state
        else:
            seen: list[Any] = []
            with blocks(self.network)[-1].register_forward_hook(lambda module, given, output: seen.append(output)):
                self.network(**given)
            hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        return hidden[:, -((self.side // self.network.config.patch_size) ** 2) :]


def blocks(network: Any) -> Any:
    """The list of a transformer's layers: the longest one of modules."""
    from torch.nn import ModuleList

    return max((module for module in network.modules() if isinstance(module, ModuleList)), key=len)


def vision_class(folder: Path) -> Any:
    """What opens a model's folder: its vision encoder alone, without a pooler, which many checkpoints lack."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"image_vit_kmeans: {folder} cannot be opened ({str(error).splitlines()[0]}).") from None
    config = getattr(config, "vision_config", config)  # of a model that also holds a text encoder
    require_patchwise("image_vit_kmeans", str(folder), config.model_type)
    kind: Any = transformers.AutoModel._model_mapping[type(config)]
    plain = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    return SimpleNamespace(from_pretrained=partial(kind.from_pretrained, **plain))
