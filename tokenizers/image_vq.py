"""Image units of a VQ tokenizer that image generators are built on: LlamaGen's VQ-16 (arXiv 2406.06525), 16,384 codes.

Its encoder is `JanusVQVAE` of `transformers` under other names (FoundationVision/LlamaGen tokenizer_image/vq_model.py):
72 million parameters, one file of 288 MB, one unit of each 16 x 16 px square. A unit is the nearest of the codes, codes
and vectors scaled to unit length. `transformers` leaves that scaling out where it encodes, so codes get it on loading;
the length of the vectors then decides nothing.

`model` may also be the folder or Hub id of a Janus or Chameleon of `transformers`: of its shards only the tensors of the
VQ encoder are read, a few hundred megabytes of tens of gigabytes.

`fit` is `pad` by default: the whole page on a square of its own paper. `crop` fits the shorter side and cuts the rest;
`squash` gives up the aspect. Pixels are scaled to [-1, 1], or as the model's `preprocessor_config.json` says.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

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
PREFIX = "model.vqmodel."  # of the VQ part of a multi-modal checkpoint
ENCODING = ("encoder.", "quant_conv.", "quantize.embedding.")  # the rest decodes
RENAMED = [  # of LlamaGen's names
    (r"encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
    (r"encoder\.conv_blocks\.", "encoder.down."),
    (r"encoder\.mid\.0\.", "encoder.mid.block_1."),
    (r"encoder\.mid\.1\.", "encoder.mid.attn_1."),
    (r"encoder\.mid\.2\.", "encoder.mid.block_2."),
]


class Settings(BaseSettings):
    """256 units of an image at 256 px. `architecture` overrides values of the config of the VQ part."""

    model: str = Field(default=LLAMAGEN, description="llamagen, or the folder or Hub id of a Janus or Chameleon")
    revision: str | None = Field(default=None, description="commit or tag; null: the one known here, else main")
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
        return published.of_model(self.settings.model, self.settings.revision, KNOWN)

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
        said = self._folder / "preprocessor_config.json"
        return [*super().facts(), *([published.file_digest(said)] if said.is_file() else [])]

    @property
    def _folder(self) -> Path:
        self.require()
        card = self.card
        return published.model_folder(card, self.recipe) if card and card.hub else published.folder(self.recipe)

    @cached_property
    def _kind(self) -> tuple[str, dict[str, Any]]:
        """Family, and what its configuration says of the VQ part."""
        if self.settings.model == LLAMAGEN:
            return "janus", {}
        said = json.loads((self._folder / "config.json").read_text("utf-8"))
        family = said.get("model_type")
        if family not in KINDS or not isinstance(said.get("vq_config"), dict):
            raise UserError(f"{self.recipe}: {self._folder} is a {family}; choose one of {', '.join(KINDS)}.")
        return family, said["vq_config"]

    @cached_property
    def config(self) -> Any:
        """Of the VQ part."""
        import transformers

        family, said = self._kind
        return getattr(transformers, KINDS[family][1])(**{**said, **self.settings.architecture})

    @cached_property
    def network(self) -> Any:
        """The encoder and its codes, in single precision."""
        import torch

        from dmlm.weights import untrusted
        from dmlm.weights.frozen import loaded, on

        family, _ = self._kind
        if self.settings.model == LLAMAGEN:
            where = self._folder / FILE
            tensors = renamed(untrusted.read(where))
        else:
            where = self._folder
            tensors = part(where, PREFIX)
        tensors = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(ENCODING)}
        if family == "janus" and "quantize.embedding.weight" in tensors:
            codes = tensors["quantize.embedding.weight"]
            tensors["quantize.embedding.weight"] = torch.nn.functional.normalize(codes, dim=-1)
        return on(self.device, loaded(self._build, tensors, str(where)))

    def _build(self) -> Any:
        import transformers

        model = getattr(transformers, KINDS[self._kind[0]][0])(self.config)
        for unused in ("decoder", "post_quant_conv"):
            if hasattr(model, unused):
                delattr(model, unused)
        return model

    @cached_property
    def scaling(self) -> dict[str, Any]:
        """How pixels are scaled: (x * factor - mean) / std."""
        said = self._folder / "preprocessor_config.json"
        given = json.loads(said.read_text("utf-8")) if said.is_file() else {}
        return {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **given}

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Units int32 (T,) of each page, uint8 (H, W, 3)."""
        from dmlm.weights.frozen import in_equal_batches

        pages = [self.pixels(page) for page in batch]
        one = pages[0].size  # a batch would round otherwise than one image, and another of two close codes be nearest
        rows = in_equal_batches(pages, one, self._units, self.device)
        return [row.astype(np.int32) for row in rows]

    def _units(self, pixels: Any) -> Any:
        return self.network.encode(pixels).image_tokens.reshape(len(pixels), -1)

    def pixels(self, page: np.ndarray) -> np.ndarray:
        """What the network is given: float32 (3, side, side)."""
        small = square(page, self.settings.side_px, self.settings.fit).astype(np.float32)
        factor, mean, std = (np.float32(self.scaling[key]) for key in ("rescale_factor", "image_mean", "image_std"))
        return ((small * factor - mean) / std).transpose(2, 0, 1)


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors of LlamaGen's `VQModel` under the names of `JanusVQVAE`."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMED:
            name = re.sub(f"^{pattern}", replacement, name)
        found[name] = tensor
    return found


def part(folder: Path, prefix: str) -> dict[str, Any]:
    """Tensors of a model's safetensors shards whose names begin so, without the prefix; nothing else is read.

    Raises:
        UserError: no such shards or tensors, or damaged ones.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Any] = {}
    for path in sorted(folder.glob(published.LEARNED[0])):
        try:
            with safe_open(path, "pt") as shard:
                names = [name for name in shard.keys() if name.startswith(prefix)]  # noqa: SIM118
                found |= {name.removeprefix(prefix): shard.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); fetch it again.") from None
    if not found:
        raise UserError(
            f"{folder} has no safetensors with names in {prefix}*; choose a Janus or Chameleon of transformers."
        )
    return found
