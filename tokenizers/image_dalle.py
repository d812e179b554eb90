"""Image units of DALL-E (arXiv 2102.12092): the encoder of its discrete VAE, 8,192 codes, one unit per 8 x 8 px square.

This computes what openai/DALL-E (commit 5be4b23) computes, with `FlavaImageCodebook` of `transformers`: the same network
with other names. Pixels in [0, 1] are mapped to [0.1, 0.9]; a unit is the index of the largest logit. The published file
is a pickled module. `dmlm fetch` extracts its tensors with the guarded reader, and only these are ever loaded.

The original resizes the shorter side to `side_px` and crops the centre: a wide page loses its ends, and a small page is
an error. Here `fit` decides:

* `pad` (default): the whole page on a square, padded with the colour of its paper;
* `crop`: as in the original, but small pages are enlarged;
* `squash`: the whole page, its aspect ratio changed to a square.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from dmlm import files
from dmlm.errors import UserError
from dmlm.tokens.canvas import Fit, square
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.weights import published

STRIDE = 8
EPSILON = 0.1  # margin to 0 and 1 that the logit-Laplace distribution of pixels needs
PUBLISHED, CONVERTED = "encoder.pkl", "converted.safetensors"


class Settings(BaseSettings):
    """1,024 units for an image at 256 px, 256 at 128 px. `architecture` overrides values of `FlavaImageCodebookConfig`."""

    side_px: int = Field(default=256, ge=8, multiple_of=STRIDE)
    fit: Fit = "pad"
    architecture: dict[str, Any] = {}


class DalleUnits(Tokenizer):
    """(side_px / 8)^2 units in raster order; 53.8 million parameters.

    On CUDA the original computes in half precision; this recipe always computes in single precision.
    """

    modality = "I"
    media = "image"
    Settings = Settings

    @property
    def card(self) -> published.Card:
        return published.Card(
            source="https://github.com/openai/DALL-E (arXiv 2102.12092)",
            licence="modified MIT of openai/DALL-E",
            files=(published.File(PUBLISHED, url=f"https://cdn.openai.com/dall-e/{PUBLISHED}"),),
            converted=CONVERTED,
        )

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def rate_hz(self) -> None:
        return None

    @property
    def converted(self) -> Path:
        """File with the extracted tensors; `network` loads it."""
        return published.folder(self.recipe) / CONVERTED

    def convert(self, downloaded: list[Path]) -> list[Path]:
        """Extract the tensors of the pickled module and save them under the names of `transformers`.

        Raises:
            UserError: The file wants code to be run, is damaged, or holds another network.
        """
        from safetensors.torch import save_file

        from dmlm.weights import untrusted

        (path,) = (file for file in downloaded if file.name == PUBLISHED)
        module = untrusted.read_guarded(path, inert=("dall_e", "torch"))
        if not isinstance(module, untrusted.Inert):
            raise UserError(f"{path} holds no module; give the published {PUBLISHED}.")
        tensors = renamed(untrusted.module_tensors(module, str(path)))
        untrusted.load_exactly(self._build(), tensors, str(path))
        with files.atomic(self.converted) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        return [self.converted]

    @cached_property
    def config(self) -> Any:
        """Configuration of the published network, changed by `architecture`."""
        from transformers import FlavaImageCodebookConfig

        return FlavaImageCodebookConfig(**self.settings.architecture)

    @cached_property
    def network(self) -> Any:
        from dmlm.weights import untrusted
        from dmlm.weights.frozen import on_device, with_weights

        self.require()
        return on_device(self.device, with_weights(self._build, untrusted.read(self.converted), str(self.converted)))

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Units, int32 (T,), of each page, uint8 (H, W, 3)."""
        from dmlm.weights.frozen import in_equal_batches

        pages = [pixels(page, self.settings.side_px, self.settings.fit) for page in batch]
        one = pages[0].size  # a batch would round otherwise than one image, and a tie of two logits fall otherwise
        rows = in_equal_batches(pages, one, lambda x: self.network(x).argmax(1).flatten(1), self.device)
        return [row.astype(np.int32) for row in rows]

    def _build(self) -> Any:
        from transformers import FlavaImageCodebook

        return FlavaImageCodebook(self.config)


def pixels(page: np.ndarray, side: int, fit: Fit) -> np.ndarray:
    """The input of the network for a page: float32 (3, side, side) in [0.1, 0.9]."""
    return ((1 - 2 * EPSILON) * (square(page, side, fit).astype(np.float32) / 255) + EPSILON).transpose(2, 0, 1)


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    """Rename the tensors of `dall_e.Encoder` to the names of `FlavaImageCodebook`; single precision."""
    import re

    renamed_tensors = {}
    for name, tensor in tensors.items():
        new = re.sub(r"(blocks\.group_\d+\.)", r"\1group.", name).replace("res_path.", "res_path.path.")
        new = re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", new))
        renamed_tensors[new] = tensor.float()
    return renamed_tensors
