"""Audio units of Seamless (arXiv 2308.11596): layer 35 of its 1B-parameter XLS-R, 10,000 centroids, 50 units a second.

This computes what `UnitExtractor.predict` of seamless_communication computes (commit 90e2b57), and needs only
`transformers`. Like the original:

* the layer's output is taken before the encoder's last normalisation;
* the whole clip is scaled to zero mean and unit variance;
* a clip with an odd number of samples first gets one more sample, 1.0;
* repeated units are kept.
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

HOP, FIELD = 320, 400  # samples between two frames; samples that one frame sees (its receptive field)
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
RENAMED = [  # (pattern, replacement): first fairseq2 names, then fairseq 1 names; the first match is used
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
    """By default those of the paper. `architecture` overrides values of XLS-R 1B, for a checkpoint of another size."""

    layer: int = Field(default=35, ge=1, description="counted from 1, as audio_to_units does")
    longest_s: float = Field(default=60.0, ge=1, description="longer clips are read in pieces of this length")
    architecture: dict[str, Any] = {}


class SeamlessUnits(Tokenizer):
    """`floor((samples - 400) / 320) + 1` units for a clip.

    The network has 0.707 billion parameters, because layers after the 35th are not built.
    """

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
        """The published centroids; features are not normalised before the comparison."""
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
        """XLS-R with the layers up to `layer` only."""
        import torch
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        from dmlm.weights import untrusted
        from dmlm.weights.frozen import on_device, with_weights

        config = Wav2Vec2Config(**self._architecture)

        def build() -> torch.nn.Module:
            with torch.device("meta"):
                model: Any = Wav2Vec2Model(config)
            model.masked_spec_embed = None  # used in pretraining only
            model.encoder.layer_norm = torch.nn.Identity()
            return model.to_empty(device="cpu")

        path = self._file("xlsr2_1b_v2.pt")
        tensors = renamed(untrusted.read(path), self.settings.layer)
        return on_device(self.device, with_weights(build, tensors, str(path)))

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Units, int32 (T,), of each clip, float32 (samples,)."""
        return [self.codes.assign(features) for features in self.features_of(batch)]

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Output of layer `layer`, float32 (T, 1280), for each clip."""
        from dmlm.weights.frozen import in_pieces, pieces

        longest = int(self.settings.longest_s * SAMPLE_RATE_HZ) // HOP
        clips = []
        for clip in batch:
            samples = normalised(clip)
            clips.append([samples[start:end] for start, end in pieces(len(samples), HOP, FIELD - HOP, longest)])
        return in_pieces(clips, longest * HOP, lambda x: self.network(x).last_hidden_state, self.device)

    def _file(self, name: str) -> Path:
        self.require()
        return published.folder(self.recipe) / name


def normalised(clip: np.ndarray) -> np.ndarray:
    """Scale a clip (samples,) to zero mean and unit variance; an odd number of samples is first made even with a 1.0.

    Raises:
        UserError: The clip is not mono, or shorter than one frame.
    """
    if clip.ndim != 1 or len(clip) < FIELD:
        raise UserError(
            f"audio_seamless: a clip of shape {clip.shape}; give mono speech (samples,) of {FIELD} samples or more."
        )
    even = np.append(clip, np.float32(1.0)) if len(clip) % 2 else clip
    return ((even - even.mean(dtype=np.float64)) / np.sqrt(even.var(dtype=np.float64) + 1e-5)).astype(np.float32)


def renamed(tensors: dict[str, Any], layers: int) -> dict[str, Any]:
    """Rename the tensors of a fairseq 1 or fairseq2 checkpoint to the names of `transformers`; keep the first `layers`."""
    renamed_tensors = {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMED:
            if re.match(pattern, name):
                new = re.sub(f"^{pattern}", replacement, name)
                new = new.replace("weight_g", "parametrizations.weight.original0")
                new = new.replace("weight_v", "parametrizations.weight.original1")
                layer = re.match(LAYER, new)
                if layer is None or int(layer[1]) < layers:
                    renamed_tensors[new] = tensor.float()
                break
    return renamed_tensors
