"""Lip units of AV-HuBERT (arXiv 2201.02184): a layer of its transformer, from video only, k-means, 25 units a second.

The visual stream follows the paper, settings and checkpoints (facebookresearch/av_hubert at 258fb50), and uses the
encoder of `transformers`. A 3-D convolution and a ResNet-18 read the mouth; zeros stand for the audio features; a
pre-norm transformer with convolutional position embeddings follows. A published checkpoint pickles objects of the program
that wrote it. `dmlm fetch` extracts its tensors to a safetensors file, and only this file is ever loaded.

Shapes: B clips, T frames, C channels, D width of the transformer; the network reads 88 x 88 pixels of a frame.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field

from dmlm import files, known_files
from dmlm.errors import UserError
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.quantize import Codebook
from dmlm.weights import published

SIDE, CENTRE = 96, 88  # side, in pixels, of the mouth region, and of its centre, which the network reads
MEAN, DEVIATION = 0.421, 0.165  # of grey levels 0..1, from AV-HuBERT's settings
FPS = 25
CONTEXT = 25  # frames before and after a piece of a long clip that are read with it
WIDTHS = [64, 64, 128, 256, 512]  # channels of the 3-D convolution and of the four stages of ResNet-18
SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
FOREIGN = (  # packages whose objects the checkpoints contain (settings, dictionaries, counters); they are not executed
    *("fairseq", "avhubert", "hubert_pretraining", "hubert_asr", "omegaconf", "hydra", "argparse", "numpy", "_codecs"),
    *("builtins", "__builtin__", "collections", "enum", "pathlib", "typing"),
)
TUNED = "encoder.w2v_model."  # prefix of the encoder in a fine-tuned checkpoint
VISUAL_STREAM = re.compile(r"(feature_extractor_video|layer_norm|post_extract_proj|encoder)\.")
RENAMED = [  # (pattern, replacement): from fairseq names to those of `transformers`
    (r"feature_extractor_video\.", ""),
    (r"encoder\.pos_conv\.0\.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
]


class Settings(BaseSettings):
    """By default layer 12 of the base model and 500 clusters, like AV-HuBERT's clustering scripts.

    `architecture` overrides values of `size`, for a checkpoint of another size.
    """

    size: Literal["base", "large"] = "base"
    layer: int | None = Field(
        default=12, ge=1, description="counted from 1, not normalised; null: the last, normalised"
    )
    clusters: int = Field(default=500, ge=2)
    centroids: str | None = Field(default=None, description=".npy file of (K, D), used instead of learning")
    longest_s: float = Field(default=40.0, ge=1, description="longer clips are read in pieces of this length")
    architecture: dict[str, Any] = {}


class LipUnits(Tokenizer):
    """One unit per frame. A clip longer than `longest_s` is cut; each piece is read with a second before and after it."""

    modality = "L"
    media = "lips"
    rate_hz = float(FPS)
    Settings = Settings

    @property
    def card(self) -> published.Card:
        size = self.settings.size
        return published.Card(
            source="https://facebookresearch.github.io/av_hubert/ (LRS3 + VoxCeleb2, iteration 5)",
            licence="AV-HuBERT licence agreement, non-commercial research only",
            files=(published.File(f"{size}_vox_iter5.pt"),),
            converted=f"converted-{size}.safetensors",
            by_hand=f"accept the licence and download {size}_vox_iter5.pt at https://facebookresearch.github.io/av_hubert/,"
            f" then run: dmlm fetch lips_avhubert size={size} --from FOLDER",
        )

    @property
    def _converted(self) -> Path:
        return published.folder(self.recipe) / self.card.converted

    def convert(self, downloaded: list[Path]) -> list[Path]:
        """Write the tensors of the visual stream to one safetensors file, under the names of `visual_stream`."""
        from safetensors.torch import save_file

        from dmlm.weights.untrusted import load_exactly, read_guarded

        tensors = renamed(read_guarded(downloaded[0], FOREIGN), str(downloaded[0]))
        load_exactly(visual_stream(self._shape, normalised=True), tensors, str(downloaded[0]))
        with files.atomic(self._converted) as temporary:
            save_file(tensors, temporary)
        return [self._converted]

    def require(self) -> None:
        """Check that the converted weights and the centroids are present and that the layer exists."""
        super().require()
        depth = self._shape["num_hidden_layers"]
        if (self.settings.layer or 1) > depth:
            raise UserError(f"lips_avhubert: layer={self.settings.layer}, but {self.settings.size} has {depth} layers.")
        if self.settings.centroids:
            _ = self.codes

    def facts(self) -> list[str]:
        path = self.settings.centroids
        return [*super().facts(), *([known_files.digest(Path(path))] if path else [])]

    @property
    def clusters(self) -> int | None:
        return None if self.settings.centroids else self.settings.clusters

    @property
    def vocab_size(self) -> int:
        return len(self.codes.centroids) if self.settings.centroids else super().vocab_size

    @cached_property
    def codes(self) -> Codebook:
        """The centroids of the file; features are not normalised before the comparison."""
        centroids = published.load_centroids(Path(self.settings.centroids))
        if centroids.shape[1] != self._shape["hidden_size"]:
            mismatch = f"has {centroids.shape[1]} columns, and a frame {self._shape['hidden_size']} features"
            raise UserError(f"lips_avhubert: {self.settings.centroids} {mismatch}; give the centroids of this size.")
        return Codebook.plain(centroids)

    @property
    def _shape(self) -> dict[str, Any]:
        """Sizes of the network: `widths` of its ResNet, and settings of `Wav2Vec2Config`."""
        return {"widths": WIDTHS, **SIZES[self.settings.size], **self.settings.architecture}

    @cached_property
    def network(self) -> Any:
        """The visual stream with the layers up to `layer` only."""
        from dmlm.weights import untrusted
        from dmlm.weights.frozen import on_device, with_weights

        self.require()
        layer, depth = self.settings.layer, self._shape["num_hidden_layers"]
        shape = {**self._shape, "num_hidden_layers": layer or depth}
        unused = [f"encoder.layers.{number}." for number in range(shape["num_hidden_layers"], depth)]
        unused += [] if layer is None else ["encoder.layer_norm."]
        tensors = untrusted.read(self._converted)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(unused))}
        return on_device(
            self.device, with_weights(lambda: visual_stream(shape, layer is None), tensors, str(self._converted))
        )

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Units, int32 (T,), of each clip, uint8 (T, H, W)."""
        if not self.settings.centroids:
            return super().encode(batch)
        return [self.codes.assign(features) for features in self.features_of(batch)]

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Output of layer `layer`, float32 (T, D), for each clip."""
        from dmlm.weights.frozen import in_equal_batches

        longest = int(self.settings.longest_s * FPS)
        windows: list[np.ndarray] = []  # frames that the network reads together, with context on both sides
        inner_slices: list[list[slice]] = []  # for each clip and window: the features without those of the context
        for clip in map(centred, batch):
            inner_slices.append([])
            for start in range(0, len(clip), longest):
                first = max(0, start - CONTEXT)
                windows.append(clip[first : start + longest + CONTEXT])
                inner_slices[-1].append(slice(start - first, start - first + longest))
        outputs = iter(in_equal_batches(windows, longest * CENTRE * CENTRE, self.network, self.device))
        return [np.concatenate([next(outputs)[inner] for inner in slices]) for slices in inner_slices]


def centred(clip: np.ndarray) -> np.ndarray:
    """The centre (T, 88, 88) of frames (T, 96, 96); frames of another size are scaled to 96 x 96 first."""
    if clip.shape[1:] != (SIDE, SIDE):
        import cv2

        clip = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in clip])
    edge = (SIDE - CENTRE) // 2
    return clip[:, edge : edge + CENTRE, edge : edge + CENTRE]


def renamed(checkpoint: Any, where: str) -> dict[str, Any]:
    """Tensors of the visual stream in a fairseq checkpoint, pretrained or fine-tuned, renamed as in `visual_stream`.

    Raises:
        UserError: The checkpoint, named as `where`, has no visual stream.
    """
    import torch

    tensors = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{where} has no entry 'model'; give a checkpoint of AV-HuBERT as it was published.")
    tuned = {name.removeprefix(TUNED): tensor for name, tensor in tensors.items() if name.startswith(TUNED)}
    renamed_tensors = {}
    for name, tensor in (tuned or tensors).items():
        if VISUAL_STREAM.match(name) and isinstance(tensor, torch.Tensor):
            for pattern, replacement in RENAMED:
                name = re.sub(f"^{pattern}", replacement, name)
            renamed_tensors[name] = tensor.float().contiguous() if tensor.is_floating_point() else tensor
    if not any(name.startswith("resnet.") for name in renamed_tensors):
        raise UserError(f"{where} sees no video; give a checkpoint of AV-HuBERT as it was published.")
    return renamed_tensors


def visual_stream(shape: dict[str, Any], normalised: bool) -> Any:
    """A network that maps frames, uint8 (B, T, 88, 88), to (B, T, D); its modules are named as in the checkpoint."""
    import torch
    from torch import nn
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2EncoderStableLayerNorm

    class Block(nn.Module):
        """Two convolutions with a residual connection."""

        def __init__(self, narrow: int, wide: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
            self.bn1, self.relu1 = nn.BatchNorm2d(wide), nn.PReLU(wide)
            self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
            self.bn2, self.relu2 = nn.BatchNorm2d(wide), nn.PReLU(wide)
            shortcut = (nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
            self.downsample = nn.Sequential(*(shortcut if stride != 1 else ()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
            return self.relu2(inner + self.downsample(x))

    class VisualStream(nn.Module):
        """AV-HuBERT with video as its only input."""

        def __init__(self) -> None:
            super().__init__()
            width, widths = shape["hidden_size"], shape["widths"]
            stages = {
                f"layer{k}": nn.Sequential(
                    Block(widths[k - 1], widths[k], 1 if k == 1 else 2), Block(widths[k], widths[k], 1)
                )
                for k in range(1, 5)
            }
            front = nn.Conv3d(1, widths[0], (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False)
            pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
            self.resnet = nn.ModuleDict(
                {
                    "frontend3D": nn.Sequential(front, nn.BatchNorm3d(widths[0]), nn.PReLU(widths[0]), pool),
                    "trunk": nn.ModuleDict(stages),
                }
            )
            self.proj = nn.Linear(widths[-1], width)
            self.layer_norm = nn.LayerNorm(2 * width)
            self.post_extract_proj = nn.Linear(2 * width, width)
            values = {name: value for name, value in shape.items() if name != "widths"}
            config = Wav2Vec2Config(**values | {"layerdrop": 0.0, "attn_implementation": "sdpa"})
            self.encoder = Wav2Vec2EncoderStableLayerNorm(config)
            if not normalised:
                self.encoder.add_module("layer_norm", nn.Identity())  # replaces it

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            x = (frames.float() / 255 - MEAN) / DEVIATION
            x = self.resnet["frontend3D"](x[:, None])  # (B, C, T, 22, 22)
            x = x.transpose(1, 2).flatten(0, 1)  # (B * T, C, 22, 22)
            for stage in cast(nn.ModuleDict, self.resnet["trunk"]).values():
                x = stage(x)
            video = self.proj(x.mean((2, 3)).unflatten(0, frames.shape[:2]))  # (B, T, D)
            both = torch.cat([torch.zeros_like(video), video], dim=-1)  # audio, video
            return self.encoder(self.post_extract_proj(self.layer_norm(both))).last_hidden_state

    return VisualStream()
