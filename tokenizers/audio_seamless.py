"""Audio units of Seamless (arXiv 2308.11596): layer 35 of its 1B-parameter XLS-R, nearest of 10,000 centroids, 50 Hz.

What `UnitExtractor.predict` of seamless_communication computes (commit 90e2b57), on `transformers` alone. As there, the
layer's output is taken before the encoder's last normalisation, a clip is scaled to zero mean and unit variance as a
whole, one of an odd number of samples first gets a sample of 1.0, and units are not deduplicated.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.errors import UserError
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.quantize import Codebook
from dmlm.weights import published

HOP, FIELD = 320, 400  # samples between frames, and under one frame
XLSR_1B = {
    "hidden_size": 1280,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "layerdrop": 0.0,
}
PUBLISHED = "https://dl.fbaipublicfiles.com/seamlessM4T/models/unit_extraction/"
POSITIONS = "encoder.pos_conv_embed.conv."
LAYER = r"encoder\.layers\.(\d+)\."
RENAMED = [  # of fairseq2 names, then of fairseq 1 names; the first pattern that fits
    (
        r"encoder_frontend\.feature_extractor\.layers\.(\d+)\.(conv|layer_norm)\.",
        r"feature_extractor.conv_layers.\1.\2.",
    ),
    (r"encoder_frontend\.post_extract_layer_norm\.", "feature_projection.layer_norm."),
    (r"encoder_frontend\.model_dim_proj\.", "feature_projection.projection."),
    (r"encoder_frontend\.pos_encoder\.conv\.", POSITIONS),
    (LAYER + r"self_attn\.output_proj\.", r"encoder.layers.\1.attention.out_proj."),
    (LAYER + r"ffn\.inner_proj\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (LAYER + r"ffn\.output_proj\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (LAYER + r"ffn_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"encoder\.pos_conv\.0\.", POSITIONS),
    (LAYER + r"fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (LAYER + r"fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (LAYER + r"final_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (LAYER + r"self_attn\.(out|[qkv])_proj\.", r"encoder.layers.\1.attention.\2_proj."),
    (LAYER + r"self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
]


class Settings(BaseSettings):
    """The paper's by default. `architecture` overrides values of XLS-R 1B, for a checkpoint of another size."""

    layer: int = Field(default=35, ge=1, description="counted from 1, as audio_to_units does")
    longest_s: float = Field(default=60.0, ge=1, description="longer clips are read in pieces of this length")
    architecture: dict[str, Any] = {}


class SeamlessUnits(Tokenizer):
    """`floor((samples - 400) / 320) + 1` units of a clip; 0.707 billion parameters, since layers after the 35th are not built."""

    modality = "A"
    media = "audio"
    Settings = Settings

    @property
    def card(self) -> published.Card:
        return published.Card(
            source="https://github.com/facebookresearch/seamless_communication at 90e2b57 (xlsr2_1b_v2, kmeans_10k)",
            licence="not stated for the unit extractor; the SeamlessM4T models are CC-BY-NC 4.0",
            files=(
                published.File("xlsr2_1b_v2.pt", url=PUBLISHED + "xlsr2_1b_v2.pt"),
                published.File("kmeans_10k.npy", url=PUBLISHED + "kmeans_10k.npy"),
            ),
        )

    @property
    def vocab_size(self) -> int:
        return len(self.codes.centroids)

    @property
    def rate_hz(self) -> float:
        return SAMPLE_RATE_HZ / HOP

    @cached_property
    def codes(self) -> Codebook:
        """The published centroids, for features as they are."""
        path, width = self._file("kmeans_10k.npy"), self._architecture["hidden_size"]
        centroids = published.load_centroids(path)
        if centroids.shape[1] != width:
            raise UserError(f"{path} has centroids of {centroids.shape[1]} features, and the layer gives {width}.")
        return Codebook.plain(centroids)

    @property
    def _architecture(self) -> dict[str, Any]:
        return {**XLSR_1B, **self.settings.architecture, "num_hidden_layers": self.settings.layer}

    @cached_property
    def network(self) -> Any:
        """Only the layers up to the one that is read."""
        import torch
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        from dmlm.weights import untrusted
        from dmlm.weights.frozen import loaded, on

        config = Wav2Vec2Config(**self._architecture)

        def build() -> torch.nn.Module:
            with torch.device("meta"):
                model: Any = Wav2Vec2Model(config)
            model.masked_spec_embed = None  # of pretraining
            model.encoder.layer_norm = torch.nn.Identity()
            return model.to_empty(device="cpu")

        path = self._file("xlsr2_1b_v2.pt")
        tensors = renamed(untrusted.read(path), self.settings.layer)
        return on(self.device, loaded(build, tensors, str(path)))

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Units int32 (T,) of each clip, float32 (samples,)."""
        return [self.codes.assign(features) for features in self.features_of(batch)]

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Output of the layer, float32 (T, 1280), of each clip."""
        from dmlm.weights.frozen import in_pieces, pieces

        longest = int(self.settings.longest_s * SAMPLE_RATE_HZ) // HOP
        clips = []
        for clip in batch:
            whole = normalised(clip)
            clips.append([whole[start:end] for start, end in pieces(len(whole), HOP, FIELD - HOP, longest)])
        return in_pieces(clips, longest * HOP, lambda x: self.network(x).last_hidden_state, self.device)

    def _file(self, name: str) -> Path:
        self.require()
        return published.folder(self.recipe) / name


def normalised(clip: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the clip, which first gets a sample of 1.0 if it has an odd number of them.

    Raises:
        UserError: not mono, or shorter than one frame.
    """
    if clip.ndim != 1 or len(clip) < FIELD:
        raise UserError(
            f"audio_seamless: a clip of shape {clip.shape}; give mono speech (samples,) of {FIELD} samples or more."
        )
    even = np.append(clip, np.float32(1.0)) if len(clip) % 2 else clip
    return ((even - even.mean(dtype=np.float64)) / np.sqrt(even.var(dtype=np.float64) + 1e-5)).astype(np.float32)


def renamed(tensors: dict[str, Any], layers: int) -> dict[str, Any]:
    """Tensors of a fairseq 1 or fairseq2 checkpoint under the names of `transformers`, as far as `layers` go."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMED:
            if re.match(pattern, name):
                new = re.sub(f"^{pattern}", replacement, name)
                new = new.replace("weight_g", "parametrizations.weight.original0")
                new = new.replace("weight_v", "parametrizations.weight.original1")
                layer = re.match(LAYER, new)
                if layer is None or int(layer[1]) < layers:
                    found[new] = tensor.float()
                break
    return found
