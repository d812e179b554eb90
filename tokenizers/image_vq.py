"""Image units of LlamaGen's VQ-16 (arXiv 2406.06525), the VQ tokenizer of an image generator: 16,384 codes.

Its encoder is `JanusVQVAE` of `transformers` with other names (FoundationVision/LlamaGen tokenizer_image/vq_model.py):
72 million parameters, one file of 288 MB, one unit per 16 x 16 px square. A unit is the nearest code, after vectors and
codes are scaled to unit length. `transformers` does not scale them when it encodes, so the codes are scaled on loading.
Then the nearest code does not depend on the length of a vector.

`model` may also be the folder or Hub id of a Janus or Chameleon of `transformers`. Only the tensors of its VQ encoder
are read: a few hundred megabytes out of tens of gigabytes.

`fit` decides how a page becomes a square. Pixels are scaled to [-1, 1], or as `preprocessor_config.json` says.

* `pad` (default): the whole page, padded with the colour of its paper;
* `crop`: the shorter side fits, the rest is cut off;
* `squash`: the whole page, its aspect ratio changed.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from dmlm import known_files
from dmlm.errors import UserError
from dmlm.tokens.canvas import Fit, square
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.weights import published

LLAMAGEN, FILE = "llamagen", "vq_ds16_t2i.pt"
COMMIT = "276f5c5a3d915b922899a03f1912605531574747"
PUBLISHED = published.File(
    FILE,
    sha256="0e21fc1318e2e9ee641a07bdad0e20675e9ec35e6e3eb911d58b5d7a2cd8d4cb",
    bytes=287_920_306,
    url=f"https://huggingface.co/peizesun/llamagen_t2i/resolve/{COMMIT}/{FILE}",
)
JANUS = "deepseek-community/Janus-Pro-1B"
KNOWN = {
    LLAMAGEN: published.Card(
        source="https://github.com/FoundationVision/LlamaGen (arXiv 2406.06525, vq_ds16_t2i)",
        licence="MIT",
        revision=COMMIT,
        files=(PUBLISHED,),
    ),
    JANUS: published.Card.on_hub(JANUS, "see its page", "1655280bb75959cc1cb85529a2a8b26e7016072e"),
}
KINDS = {"janus": ("JanusVQVAE", "JanusVQVAEConfig"), "chameleon": ("ChameleonVQVAE", "ChameleonVQVAEConfig")}
PREFIX = "model.vqmodel."  # tensors of the VQ part in a multimodal checkpoint begin so
ENCODING = ("encoder.", "quant_conv.", "quantize.embedding.")  # tensors of the encoder; the rest belongs to the decoder
RENAMED = [  # (pattern, replacement): from LlamaGen's names to those of `transformers`
    (r"encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
    (r"encoder\.conv_blocks\.", "encoder.down."),
    (r"encoder\.mid\.0\.", "encoder.mid.block_1."),
    (r"encoder\.mid\.1\.", "encoder.mid.attn_1."),
    (r"encoder\.mid\.2\.", "encoder.mid.block_2."),
]


class Settings(BaseSettings):
    """256 units for an image at 256 px. `architecture` overrides values of the configuration of the VQ part."""

    model: str = Field(default=LLAMAGEN, description="llamagen, or the folder or Hub id of a Janus or Chameleon")
    revision: str | None = Field(default=None, description="commit or tag; null: the one named in the recipe, or main")
    side_px: int = Field(default=256, ge=16, multiple_of=16)
    fit: Fit = "pad"
    architecture: dict[str, Any] = {}


class VectorQuantizedUnits(Tokenizer):
    """(side_px / 16)^2 units in raster order."""

    modality = "I"
    media = "image"
    Settings = Settings

    @property
    def card(self) -> published.Card | None:
        return published.card_of(self.settings.model, self.settings.revision, KNOWN)

    def require(self) -> None:
        if self.card is None:
            raise UserError(
                f"{self.recipe}: model={self.settings.model} is untrained, and so are its codes; choose another."
            )
        super().require()

    @property
    def vocab_size(self) -> int:
        return self.config.num_embeddings

    @property
    def rate_hz(self) -> None:
        return None

    def facts(self) -> list[str]:
        path = self._folder / "preprocessor_config.json"
        return [*super().facts(), *([known_files.digest(path)] if path.is_file() else [])]

    @property
    def _folder(self) -> Path:
        self.require()
        card = self.card
        return published.model_folder(card, self.recipe) if card and card.hub else published.folder(self.recipe)

    @cached_property
    def _kind(self) -> tuple[str, dict[str, Any]]:
        """(model type, configuration of the VQ part)."""
        if self.settings.model == LLAMAGEN:
            return "janus", {}
        config = json.loads((self._folder / "config.json").read_text("utf-8"))
        family = config.get("model_type")
        if family not in KINDS or not isinstance(config.get("vq_config"), dict):
            raise UserError(f"{self.recipe}: {self._folder} is a {family}; choose one of {', '.join(KINDS)}.")
        return family, config["vq_config"]

    @cached_property
    def config(self) -> Any:
        """Configuration of the VQ part, changed by `architecture`."""
        import transformers

        family, vq_config = self._kind
        return getattr(transformers, KINDS[family][1])(**{**vq_config, **self.settings.architecture})

    @cached_property
    def network(self) -> Any:
        """The encoder and its codes, in single precision."""
        import torch

        from dmlm.weights import untrusted
        from dmlm.weights.frozen import on_device, with_weights

        family, _ = self._kind
        if self.settings.model == LLAMAGEN:
            path = self._folder / FILE
            tensors = renamed(untrusted.read(path))
        else:
            path = self._folder
            tensors = part(path, PREFIX)
        tensors = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(ENCODING)}
        if family == "janus" and "quantize.embedding.weight" in tensors:
            codes = tensors["quantize.embedding.weight"]
            tensors["quantize.embedding.weight"] = torch.nn.functional.normalize(codes, dim=-1)
        return on_device(self.device, with_weights(self._build, tensors, str(path)))

    def _build(self) -> Any:
        import transformers

        model = getattr(transformers, KINDS[self._kind[0]][0])(self.config)
        for unused in ("decoder", "post_quant_conv"):
            if hasattr(model, unused):
                delattr(model, unused)
        return model

    @cached_property
    def scaling(self) -> dict[str, Any]:
        """How pixels are scaled: (x * rescale_factor - image_mean) / image_std."""
        path = self._folder / "preprocessor_config.json"
        preprocessor = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **preprocessor}

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Units, int32 (T,), of each page, uint8 (H, W, 3)."""
        from dmlm.weights.frozen import in_equal_batches

        pages = [self.pixels(page) for page in batch]
        one = pages[0].size  # a batch would round otherwise than one image, and another of two close codes be nearest
        rows = in_equal_batches(pages, one, self._units, self.device)
        return [row.astype(np.int32) for row in rows]

    def _units(self, pixels: Any) -> Any:
        return self.network.encode(pixels).image_tokens.reshape(len(pixels), -1)

    def pixels(self, page: np.ndarray) -> np.ndarray:
        """The input of the network for a page: float32 (3, side, side)."""
        small = square(page, self.settings.side_px, self.settings.fit).astype(np.float32)
        factor, mean, std = (np.float32(self.scaling[key]) for key in ("rescale_factor", "image_mean", "image_std"))
        return ((small * factor - mean) / std).transpose(2, 0, 1)


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    """Rename the tensors of LlamaGen's `VQModel` to the names of `JanusVQVAE`."""
    renamed_tensors = {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMED:
            name = re.sub(f"^{pattern}", replacement, name)
        renamed_tensors[name] = tensor
    return renamed_tensors


def part(folder: Path, prefix: str) -> dict[str, Any]:
    """Read only those tensors of a model's safetensors shards whose names begin with `prefix`; it is removed from names.

    Raises:
        UserError: There are no such shards or tensors, or a shard is damaged.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob(published.WEIGHT_FILES[0])):
        try:
            with safe_open(path, "pt") as shard:
                names = [name for name in shard.keys() if name.startswith(prefix)]  # noqa: SIM118
                tensors |= {name.removeprefix(prefix): shard.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); fetch it again.") from None
    if not tensors:
        raise UserError(
            f"{folder} has no safetensors with names in {prefix}*; choose a Janus or Chameleon of transformers."
        )
    return tensors
