"""Published image encoders at a reduced size, with random weights in the layout in which they are published.

The networks are written out from their descriptions, so that they are also what the recipes are held against.
"""

import re
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn.functional import conv2d, group_norm, normalize, pad
from transformers import JanusVQVAE, JanusVQVAEConfig

from dmlm.synthesis.page import draw_page
from dmlm.tokens.shards import EncoderSpec
from dmlm.weights import published

DALLE = {"hidden_size": 16, "vocab_size": 64}
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64}
VQ = {"base_channels": 32, "channel_multiplier": [1, 1, 2, 2, 2], "num_res_blocks": 1, "latent_channels": 32}
VQ |= {"num_embeddings": 128}


class Conv2d(nn.Module):
    """Convolution of the dVAE: `w` and `b`, an odd kernel, zeros around."""

    def __init__(self, n_in: int, n_out: int, kw: int) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.w = nn.Parameter(torch.randn(n_out, n_in, kw, kw) / (n_in * kw * kw) ** 0.5)
        self.b = nn.Parameter(torch.randn(n_out) / 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class EncoderBlock(nn.Module):
    """Four convolutions of a quarter of the width beside the identity, their sum scaled by 1 / layers^2."""

    def __init__(self, n_in: int, n_out: int, layers: int) -> None:
        super().__init__()
        self.post_gain = 1 / layers**2
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        steps, quarter = OrderedDict(), n_out // 4
        for number, (i, o, kw) in enumerate([(n_in, quarter, 3), *[(quarter, quarter, 3)] * 2, (quarter, n_out, 1)], 1):
            steps |= {f"relu_{number}": nn.ReLU(), f"conv_{number}": Conv2d(i, o, kw)}
        self.res_path = nn.Sequential(steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.id_path(x) + self.post_gain * self.res_path(x)


class Encoder(nn.Module):
    """7 x 7 convolution, four groups of two blocks with a max-pool of 2 between groups, ReLU, 1 x 1 convolution."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        widths = [hidden_size * factor for factor in (1, 1, 2, 4, 8)]
        parts = OrderedDict(input=Conv2d(3, hidden_size, 7))
        for group in range(1, 5):
            before, after = widths[group - 1], widths[group]
            steps = OrderedDict(block_1=EncoderBlock(before, after, 8), block_2=EncoderBlock(after, after, 8))
            parts[f"group_{group}"] = nn.Sequential(steps | ({"pool": nn.MaxPool2d(2)} if group < 4 else {}))
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(widths[-1], vocab_size, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


for kind, module in ((Conv2d, "dall_e.utils"), (EncoderBlock, "dall_e.encoder"), (Encoder, "dall_e.encoder")):
    kind.__module__ = module


def write_dalle(path: Path, **size: int) -> Encoder:
    """A pickled module as OpenAI publishes it: it names classes of a package that is not here."""
    torch.manual_seed(0)
    model = Encoder(**{**DALLE, **size}).eval().requires_grad_(False)
    stand_ins = {name: types.ModuleType(name) for name in ("dall_e", "dall_e.encoder", "dall_e.utils")}
    for kind in (Conv2d, EncoderBlock, Encoder):
        setattr(stand_ins[kind.__module__], kind.__name__, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(sys.modules, stand_ins):
        torch.save(model, path)
    return model


def image_dalle() -> dict[str, Any]:
    """At 64 px; converted as `dmlm fetch` would."""
    settings = {"side_px": 64, "architecture": DALLE}
    path = published.folder("image_dalle") / "encoder.pkl"
    write_dalle(path)
    EncoderSpec("image_dalle", settings).build().convert([path])
    return settings


TO_LLAMAGEN = [  # names of transformers, and those of LlamaGen
    (r"(en|de)coder\.(?:down|up)\.", r"\1coder.conv_blocks."),
    (r"(conv_blocks\.\d+)\.block\.", r"\1.res."),
    (r"mid\.block_1\.", "mid.0."),
    (r"mid\.attn_1\.", "mid.1."),
    (r"mid\.block_2\.", "mid.2."),
]


def janus() -> JanusVQVAE:
    """The VQ part of Janus in small, its codes of any length."""
    torch.manual_seed(0)
    model = JanusVQVAE(JanusVQVAEConfig(**VQ)).eval().requires_grad_(False)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) / max(1, tensor[0].numel()) ** 0.5)
    return model


def write_llamagen(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint as LlamaGen publishes it: decoder and counter of used codes included."""
    tensors = {}
    for name, tensor in janus().state_dict().items():
        for pattern, replacement in TO_LLAMAGEN:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor.clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {**tensors, "quantize.codebook_used": torch.zeros(65536)}}, path)
    return tensors


def llamagen_units(held: dict[str, torch.Tensor], x: torch.Tensor, levels: int = 5, blocks: int = 1) -> torch.Tensor:
    """Units (B, T) that the weights of a LlamaGen checkpoint give for pixels (B, 3, H, W) in [-1, 1]."""

    def conv(name: str, x: torch.Tensor, **how: Any) -> torch.Tensor:
        return conv2d(x, held[f"{name}.weight"], held[f"{name}.bias"], **how)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return group_norm(x, 32, held[f"{name}.weight"], held[f"{name}.bias"], eps=1e-6)

    def swish(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    def residual(name: str, x: torch.Tensor) -> torch.Tensor:
        path = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", x)), padding=1)
        path = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", path)), padding=1)
        return path + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in held else x)

    def attention(name: str, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (conv(f"{name}.{part}", norm(f"{name}.norm", x)).flatten(2) for part in "qkv")  # (B, C, N)
        weight = torch.softmax(query.transpose(1, 2) @ key / x.shape[1] ** 0.5, dim=-1)  # (B, N, N)
        return x + conv(f"{name}.proj_out", (value @ weight.transpose(1, 2)).view_as(x))

    x = conv("encoder.conv_in", x, padding=1)
    for level in range(levels):
        for block in range(blocks):
            x = residual(f"encoder.conv_blocks.{level}.res.{block}", x)
            if level == levels - 1:
                x = attention(f"encoder.conv_blocks.{level}.attn.{block}", x)
        if level < levels - 1:
            x = conv(f"encoder.conv_blocks.{level}.downsample.conv", pad(x, (0, 1, 0, 1)), stride=2)
    x = residual("encoder.mid.2", attention("encoder.mid.1", residual("encoder.mid.0", x)))
    x = conv("quant_conv", conv("encoder.conv_out", swish(norm("encoder.norm_out", x)), padding=1))
    vectors, codes = (
        normalize(x.flatten(2).transpose(1, 2), dim=-1),
        normalize(held["quantize.embedding.weight"], dim=-1),
    )
    return torch.cdist(vectors, codes[None]).argmin(-1)


def image_vq() -> dict[str, Any]:
    """Of LlamaGen, at 64 px."""
    write_llamagen(published.folder("image_vq") / "vq_ds16_t2i.pt")
    return {"side_px": 64, "architecture": VQ}


def image_vit_kmeans() -> dict[str, Any]:
    """An untrained ViT at 64 px."""
    return {"model": "random:vit", "architecture": VIT, "clusters": 40}


def image_vqvae() -> dict[str, Any]:
    """Barely learned."""
    return {"codes": 32, "width": 16, "steps": 20}


EQUATIONS = ["12 a^{3} + 45 = 8", r"\log(17 k) - 30 = 9 h", r"\frac{12}{7} b + 26 = 41"]


def built(name: str, **settings: Any) -> Any:
    return EncoderSpec(name, settings).build()


def page_of(seed: int, width: int = 450, height: int = 200) -> np.ndarray:
    page = draw_page(EQUATIONS[: 1 + seed % 3], np.random.default_rng(seed), width, height)
    return np.repeat(page[..., None], 3, axis=2)


def noise(number: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    """Images of random colours in squares of 8 px, so that units differ."""
    cells = np.random.default_rng(0).integers(0, 256, (number, height // 8, width // 8, 3), dtype=np.uint8)
    return list(cells.repeat(8, axis=1).repeat(8, axis=2))


SMALL = {
    "image_dalle": image_dalle,
    "image_vit_kmeans": image_vit_kmeans,
    "image_vq": image_vq,
    "image_vqvae": image_vqvae,
}
