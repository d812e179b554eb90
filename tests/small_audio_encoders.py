"""Published audio encoders at a reduced size, with random weights in the layout in which they are published."""

import re
from typing import Any

import numpy as np
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from dmlm import recipes
from dmlm.tokens import weights

TINY_WAV2VEC = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TO_FAIRSEQ = [  # names of transformers, and those of a fairseq 1 checkpoint
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"feature_extractor.conv_layers.\1.2.1."),
    (r"feature_projection\.layer_norm\.", "layer_norm."),
    (r"feature_projection\.projection\.", "post_extract_proj."),
    (r"encoder\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
    (r"(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"feed_forward\.intermediate_dense\.", "fc1."),
    (r"feed_forward\.output_dense\.", "fc2."),
]


def wav2vec(layers: int) -> Wav2Vec2Model:
    """XLS-R in small, with random weights."""
    base = recipes.load("tokenizers", "audio_seamless").XLSR_1B
    torch.manual_seed(0)
    return Wav2Vec2Model(Wav2Vec2Config(**{**base, **TINY_WAV2VEC, "num_hidden_layers": layers})).eval()


def fairseq_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict as fairseq 1 would write it."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in TO_FAIRSEQ:
            name = re.sub(f"^{pattern}" if not pattern.startswith(("param", "feed")) else pattern, replacement, name)
        found[name] = tensor.clone()
    return found


def audio_seamless() -> dict[str, Any]:
    """Five layers of which the third is read; fifty centroids."""
    folder = weights.folder("audio_seamless")
    folder.mkdir(parents=True)
    torch.save({"model": fairseq_names(wav2vec(5).state_dict())}, folder / "xlsr2_1b_v2.pt")
    np.save(folder / "kmeans_10k.npy", np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32))
    return {"layer": 3, "architecture": TINY_WAV2VEC}


SMALL = {"audio_seamless": audio_seamless}
