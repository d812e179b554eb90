"""Published audio encoders at a reduced size, with random weights in the layout in which they are published."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, Wav2Vec2Config, Wav2Vec2Model

from dmlm import paths, recipes
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.weights import published

RATE = 16_000
TINY_WAV2VEC = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TINY_TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
TINY_WAVEFORM = {
    **TINY_TRANSFORMER,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}  # as the large models
SPEECH = {  # of each family of audio_ssl_kmeans
    "hubert": TINY_WAVEFORM,
    "wav2vec2": {**TINY_WAVEFORM, **LARGE},
    "wavlm": TINY_WAVEFORM,
    "wav2vec2-bert": TINY_TRANSFORMER,
    "whisper": {
        "d_model": 32,
        "encoder_layers": 4,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64,
    },
}
PREPROCESSORS = {
    "wav2vec2-bert": {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "padding_value": 1},
    "whisper": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80},
}
CODECS = {  # of each family of audio_codec
    "mimi": {
        "num_filters": 4,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "codebook_size": 64,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "num_quantizers": 4,
        "upsample_groups": 32,
        "frame_rate": 12.5,
    },
    "dac": {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 16,
        "downsampling_ratios": [2, 4, 5, 8],  # the 16 kHz model's
        "n_codebooks": 4,
        "codebook_size": 64,
        "codebook_dim": 4,
    },
    "encodec": {
        "num_filters": 4,
        "hidden_size": 16,
        "num_lstm_layers": 1,
        "codebook_size": 64,
        "target_bandwidths": [0.9, 1.8],
    },
    "xcodec": {
        "codebook_size": 64,
        "target_bandwidths": [0.3, 0.6, 1.2],
        "acoustic_model_config": {
            "model_type": "dac",
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 16,
            "hidden_size": 16,
            "downsampling_ratios": [8, 5, 4, 2],
        },
        "semantic_model_config": {**TINY_WAVEFORM, "model_type": "hubert", "num_hidden_layers": 2},
    },
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
FAIRSEQ_TO_2 = [  # names of fairseq 1, and those of fairseq2
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"encoder_frontend.feature_extractor.layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"encoder_frontend.feature_extractor.layers.\1.layer_norm."),
    (r"layer_norm\.", "encoder_frontend.post_extract_layer_norm."),
    (r"post_extract_proj\.", "encoder_frontend.model_dim_proj."),
    (r"encoder\.pos_conv\.0\.", "encoder_frontend.pos_encoder.conv."),
    (r"(encoder\.layers\.\d+)\.self_attn\.out_proj\.", r"\1.self_attn.output_proj."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.ffn_layer_norm."),
    (r"(encoder\.layers\.\d+)\.fc1\.", r"\1.ffn.inner_proj."),
    (r"(encoder\.layers\.\d+)\.fc2\.", r"\1.ffn.output_proj."),
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


def fairseq2_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict as fairseq2 0.2 would write it."""
    found = {}
    for name, tensor in fairseq_names(tensors).items():
        for pattern, replacement in FAIRSEQ_TO_2:
            name = re.sub(f"^{pattern}", replacement, name)
        found[name] = tensor
    return found


def speech_model(folder: Path, family: str, do_normalize: bool = True, **architecture: Any) -> Any:
    """Write a speech encoder of full depth as it is published, and give it."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **SPEECH[family], **architecture)).eval()
    model.save_pretrained(folder)
    extractor = PREPROCESSORS.get(
        family, {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": do_normalize}
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    if family not in PREPROCESSORS:  # models of 2021 are pickles, their weight norm of the old kind
        (folder / "model.safetensors").unlink()
        old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        tensors = model.state_dict()
        for new, name in old.items():
            tensors = {key.replace(new, name): value for key, value in tensors.items()}
        torch.save(tensors, folder / "pytorch_model.bin")
    return model


def codec(folder: Path, family: str) -> Any:
    """Write a codec as it is published, its codebooks filled, and give it."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **CODECS[family])).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("codebook.embed", "codebook.embed_sum")):
            tensor.normal_(std=1e-3)
        elif family == "encodec" and name.startswith("encoder.") and name.endswith("original0"):
            tensor.mul_(2)  # an untrained EnCodec hardly hears its input
    model.save_pretrained(folder)
    return model


def audio_ssl_kmeans() -> dict[str, Any]:
    """HuBERT, read after two of four layers."""
    folder = paths.home() / "models" / "hubert"
    speech_model(folder, "hubert")
    return {"model": str(folder), "layer": 2, "clusters": 50}


def audio_codec() -> dict[str, Any]:
    """Mimi, three of four codebooks."""
    folder = paths.home() / "models" / "mimi"
    codec(folder, "mimi")
    return {"model": str(folder), "codebooks": 3}


def audio_seamless() -> dict[str, Any]:
    """Five layers of which the third is read; fifty centroids."""
    folder = published.folder("audio_seamless")
    folder.mkdir(parents=True)
    torch.save({"model": fairseq_names(wav2vec(5).state_dict())}, folder / "xlsr2_1b_v2.pt")
    np.save(folder / "kmeans_10k.npy", np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32))
    return {"layer": 3, "architecture": TINY_WAV2VEC}


SMALL = {"audio_seamless": audio_seamless, "audio_ssl_kmeans": audio_ssl_kmeans, "audio_codec": audio_codec}


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose level and mean change, so that it matters over what a clip is scaled."""
    x = np.random.default_rng(seed).normal(0.1, 0.05, samples)
    return (x * np.linspace(0.2, 1.5, samples)).astype(np.float32)


def build(recipe: str, **settings) -> Tokenizer:
    encoder = EncoderSpec(recipe, {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}).build()
    assert isinstance(encoder, Tokenizer)
    return encoder
