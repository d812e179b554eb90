"""Lip encoders at a reduced size, with random weights in the layout in which they are published."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import torch

from dmlm import recipes
from dmlm.tokens.shards import EncoderSpec
from dmlm.weights import published

TINY_AVHUBERT: dict[str, Any] = {
    "widths": [8, 8, 8, 12, 16],
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TINY_DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 28}
TO_FAIRSEQ = [  # our names, and those of a published checkpoint
    (r"^(resnet|proj)\.", r"feature_extractor_video.\1."),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.", "pos_conv.0."),
    (r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"(layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"feed_forward\.intermediate_dense\.", "fc1."),
    (r"feed_forward\.output_dense\.", "fc2."),
]


def avhubert_tensors(shape: dict[str, Any] = TINY_AVHUBERT) -> dict[str, torch.Tensor]:
    """A state dict as AV-HuBERT publishes it: the video, the audio, and what only pretraining needs; all random."""
    torch.manual_seed(0)
    network = recipes.load("tokenizers", "lips_avhubert").visual_stream(shape, normalised=True)
    found = {}
    for name, tensor in network.state_dict().items():
        for pattern, replacement in TO_FAIRSEQ:
            name = re.sub(pattern, replacement, name)
        if name.endswith("running_var"):
            tensor = torch.rand_like(tensor) + 0.5
        elif tensor.is_floating_point():  # none at its initial 0 or 1, which would hide a mistake
            tensor = tensor + 0.05 * torch.randn_like(tensor)
        found[name] = tensor.clone()
    width = shape["hidden_size"]
    for name, size in {"feature_extractor_audio.proj.weight": (width, 104), "mask_emb": (2 * width,)}.items():
        found[name] = torch.randn(size)
    for name, size in {"final_proj.weight": (16, width), "label_embs_concat": (20, 16)}.items():
        found[name] = torch.randn(size)
    return found


def write_published(path: Path, tensors: dict[str, torch.Tensor], **more: Any) -> None:
    """Write a checkpoint as fairseq does: the tensors, and around them objects of fairseq, omegaconf and argparse."""
    fairseq, omegaconf = types.ModuleType("fairseq.meters"), types.ModuleType("omegaconf.dictconfig")
    for module, name in ((fairseq, "AverageMeter"), (omegaconf, "DictConfig")):
        setattr(module, name, type(name, (), {"__module__": module.__name__}))
    known = {"fairseq": fairseq, fairseq.__name__: fairseq, "omegaconf": omegaconf, omegaconf.__name__: omegaconf}
    before = {name: sys.modules.get(name) for name in known}
    sys.modules.update(known)
    try:
        config, meter = omegaconf.DictConfig(), fairseq.AverageMeter()
        config.content, config.object_type, meter.sum = {"label_rate": 25}, dict, torch.tensor(3.0)
        held = {"args": None, "cfg": config, "model": tensors, "extra_state": {"metrics": meter}, **more}
        torch.save(held, path)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def lips_avhubert() -> dict[str, Any]:
    """Three layers of which the second is read, through a checkpoint in the published layout."""
    settings = {"layer": 2, "clusters": 30, "architecture": TINY_AVHUBERT}
    path = published.folder("lips_avhubert") / "base_vox_iter5.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_published(path, avhubert_tensors())
    EncoderSpec("lips_avhubert", settings).build().convert([path])
    return settings


SMALL = {
    "lips_avhubert": lips_avhubert,
    "lips_ssl_kmeans": lambda: {"model": "random:dinov2", "architecture": TINY_DINO, "clusters": 30},
}
