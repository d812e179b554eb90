"""Units of a pretrained speech encoder: one layer of wav2vec 2.0, HuBERT, WavLM, w2v-BERT 2.0 or Whisper, k-means.

The method is that of textless NLP (arXiv 2102.01192). The features are the output of one transformer layer, before the
encoder's final normalisation where it has one (the large models and Whisper). This is `hidden_states[layer]` of
`transformers`, except for the last layer of Whisper, whose entry there is normalised. Later layers are not built.

Shapes: B clips, T frames, D features.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dmlm import known_files
from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.errors import UserError
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.quantize import Codebook, learn_codebook
from dmlm.weights import published

WAVEFORM = ("wav2vec2", "hubert", "wavlm")
FAMILIES = (*WAVEFORM, "wav2vec2-bert", "whisper")
MEL_HOP, MEL_FIELD = 160, 400  # samples between two frames of a spectrogram; samples under one frame
PREPROCESSOR = "preprocessor_config.json"
FIT_CLIPS, FIT_FRAMES = 640, 80_000  # with byte pairs: at most so many clips and frames are learned from
FIRST_CHARACTER = 0x10000  # stands for unit 0 where units are written as text, for byte pairs
KNOWN = {
    "facebook/hubert-base-ls960": published.Card.on_hub(
        "facebook/hubert-base-ls960",
        "Apache-2.0",
        "dba3bb02fda4248b6e082697eee756de8fe8aa8a",
        published.File(
            "pytorch_model.bin", "062249fffb353eab67547a2fbc129f7c31a2f459faf641b19e8fb007cc5c48ad", 377_569_754
        ),
    ),
    "facebook/w2v-bert-2.0": published.Card.on_hub(
        "facebook/w2v-bert-2.0",
        "MIT",
        "da985ba0987f70aaeb84a80f2851cfac8c697a7b",
        published.File(
            "model.safetensors", "eb890c9660ed6e3414b6812e27257b8ce5454365d5490d3ad581ea60b93be043", 2_322_063_736
        ),
    ),
}


class Settings(BaseSettings):
    """By default HuBERT base, layer 9, 500 units. `model` is a Hub id, a folder or `random:hubert`."""

    model: str = "facebook/hubert-base-ls960"
    revision: str | None = Field(default=None, description="commit or tag; null: the one named in the recipe, or main")
    layer: int = Field(default=9, ge=1, description="counted from 1; its output before any final normalisation")
    clusters: int | None = Field(default=500, ge=2, description="units to learn; null where centroids are given")
    centroids: Path | None = Field(default=None, description=".npy of (units, features), used instead of learning")
    dedup: bool = Field(default=False, description="join repeats of a unit to one token; no fixed rate")
    bpe: int | None = Field(default=None, ge=3, description="size of a byte-pair vocabulary over units; no fixed rate")
    longest_s: float = Field(
        default=60.0,
        ge=1,
        description="longer clips are read in pieces of this length; with Whisper at most 30 s, its input length",
    )
    window: Literal["full", "clip"] = Field(
        default="full",
        description="how far Whisper reads: to the end of its input, 30 s, which is silence after the clip; or of the clip",
    )
    architecture: dict[str, Any] = Field(default={}, description="configuration values of a random: model")

    @model_validator(mode="before")
    @classmethod
    def _centroids_replace_clusters(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("centroids") is not None:
            return {"clusters": None, **values}
        return values

    @model_validator(mode="after")
    def _one_codebook(self) -> "Settings":
        if (self.clusters is None) == (self.centroids is None):
            raise ValueError(f"clusters={self.clusters} and centroids={self.centroids}: give exactly one of them")
        if self.bpe and self.clusters and self.bpe <= self.clusters:
            raise ValueError(f"bpe={self.bpe} has to exceed clusters={self.clusters}")
        return self


class SpeechUnits(Tokenizer):
    """50 units a second. The number for a clip depends on the model:

    wav2vec 2.0, HuBERT, WavLM: `floor((samples - 400) / 320) + 1`; Whisper: `floor(samples / 320)`;
    w2v-BERT: half the frames of its spectrogram, `floor((floor((samples - 400) / 160) + 1) / 2)`.
    """

    modality = "A"
    media = "audio"
    Settings = Settings

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.learns = settings.bpe is not None  # byte pairs are learned from units, so `fit` has to learn the units too

    @property
    def card(self) -> published.Card | None:
        return published.card_of(self.settings.model, self.settings.revision, KNOWN)

    @property
    def clusters(self) -> int | None:
        return None if self.settings.centroids or self.learns else self.settings.clusters

    @property
    def vocab_size(self) -> int:
        if self.settings.bpe:
            return int(self.settings.bpe)
        return self.codes.size if self.settings.centroids else int(self.settings.clusters)

    @property
    def rate_hz(self) -> float | None:
        return None if self.settings.dedup or self.learns else SAMPLE_RATE_HZ / self.hop

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return int(np.prod(self.config.conv_stride)) if self.config.model_type in WAVEFORM else 2 * MEL_HOP

    def require(self) -> None:
        super().require()
        model, layers, width = self.settings.model, self.config.num_hidden_layers, self.config.hidden_size
        if self.config.model_type not in FAMILIES:
            raise UserError(
                f"audio_ssl_kmeans: model={model} is a {self.config.model_type}; give one of {', '.join(FAMILIES)}."
            )
        if self.settings.layer > layers:
            raise UserError(
                f"audio_ssl_kmeans: layer={self.settings.layer}, and {model} has {layers}; give 1 to {layers}."
            )
        if self.settings.window == "clip" and self.config.model_type != "whisper":
            raise UserError(
                f"audio_ssl_kmeans: window=clip is for Whisper, and {model} is a {self.config.model_type}, which always"
                " reads as far as the clip goes; leave window out."
            )
        if self._folder and not (self._folder / PREPROCESSOR).is_file():
            raise UserError(f"audio_ssl_kmeans: {self._folder} lacks {PREPROCESSOR}, which says how audio is scaled.")
        if self.extractor.sampling_rate != SAMPLE_RATE_HZ:
            raise UserError(
                f"audio_ssl_kmeans: {model} is for audio of {self.extractor.sampling_rate} Hz ({PREPROCESSOR});"
                f" give a model for {SAMPLE_RATE_HZ} Hz."
            )
        if self.settings.centroids and self.codes.centroids.shape[1] != width:
            raise UserError(
                f"audio_ssl_kmeans: {self.settings.centroids} has centroids of {self.codes.centroids.shape[1]} features,"
                f" and {model} gives {width}; give the centroids of this model."
            )
        if self.settings.centroids and self.settings.bpe and self.settings.bpe <= self.codes.size:
            raise UserError(f"audio_ssl_kmeans: bpe={self.settings.bpe} has to exceed the {self.codes.size} centroids.")

    def facts(self) -> list[str]:
        files = [self._folder / PREPROCESSOR] if self.card and self._folder else []
        files += [self.settings.centroids.expanduser()] if self.settings.centroids else []
        return [*super().facts(), *map(known_files.digest, files)]

    @cached_property
    def codes(self) -> Codebook:
        """The centroids of a file, for features that are not normalised; with byte pairs, the codebook that `fit` learned."""
        if self.settings.centroids:
            return Codebook.plain(published.load_centroids(self.settings.centroids.expanduser()))
        learned = self.learned or {}
        return Codebook(learned["centroids"], learned["mean"], learned["scale"])

    @cached_property
    def config(self) -> Any:
        """Configuration of the network, read without loading the network."""
        return published.config_of(self.recipe, self.settings.model, self.card, self.settings.architecture)

    @cached_property
    def network(self) -> Any:
        """The encoder with its layers up to `layer` only; its last layer keeps its output, see `_layer`."""
        from dmlm.weights.frozen import on_device, open_model

        self.require()
        settings, kind = self.settings, _FirstLayers(self.settings.layer)
        opened: Any = open_model(self.recipe, settings.model, self.card, settings.architecture, kind)
        if self.config.model_type == "whisper":
            return on_device(self.device, opened.encoder)
        opened.encoder.layers[-1].register_forward_hook(self._keep_output)
        return on_device(self.device, opened)

    @cached_property
    def extractor(self) -> Any:
        """The feature extractor: makes the network's input from a waveform; for Whisper and w2v-BERT a spectrogram.

        Raises:
            UserError: The model's preprocessor file is damaged.
        """
        from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

        kind: Any = {"whisper": WhisperFeatureExtractor, "wav2vec2-bert": SeamlessM4TFeatureExtractor}.get(
            self.config.model_type, Wav2Vec2FeatureExtractor
        )
        if self._folder:
            path = self._folder / PREPROCESSOR
            try:
                return kind.from_dict(json.loads(path.read_text("utf-8")))
            except (ValueError, TypeError) as error:
                raise UserError(f"audio_ssl_kmeans: {path} is damaged ({error}); fetch the model again.") from None
        return kind(feature_size=self.config.num_mel_bins) if self.config.model_type == "whisper" else kind()

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """IDs, int32 (T,), of each clip, float32 (samples,)."""
        if self.settings.centroids or self.learns:
            every_unit = [self.codes.assign(features) for features in self.features_of(batch)]
        else:
            every_unit = super().encode(batch)
        units = [self._joined(ids) for ids in every_unit]
        return [np.array(self._pairs.encode(_text(ids)).ids, np.int32) for ids in units] if self.learns else units

    def _joined(self, ids: np.ndarray) -> np.ndarray:
        """The IDs; with `dedup`, each run of equal IDs as one."""
        return ids[np.append(True, ids[1:] != ids[:-1])] if self.settings.dedup else ids

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Output of layer `layer`, float32 (T, D), for each clip."""
        from dmlm.weights.frozen import in_equal_batches

        max_numbers = int(self.settings.longest_s * SAMPLE_RATE_HZ)
        if self.config.model_type not in WAVEFORM:
            max_numbers //= 2  # a second of their input is 8,000 numbers
        inputs_of_clips = [self._inputs(clip) for clip in batch]
        inputs = [array for clip in inputs_of_clips for array, _ in clip]
        outputs = iter(in_equal_batches(inputs, max_numbers, self._layer, self.device))
        return [np.concatenate([next(outputs)[:frames] for _, frames in clip]) for clip in inputs_of_clips]

    def fit(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Learn byte pairs of units from at most 640 training clips, and the units unless centroids are given."""
        from tokenizers import Tokenizer as BytePairs
        from tokenizers import models, trainers

        indices = range(0, len(clips), -(-len(clips) // FIT_CLIPS))
        features = [self.features_of([clips[index]])[0] for index in indices]
        codebook = self.codes if self.settings.centroids else self._learn_units(np.concatenate(features))
        units = [self._joined(codebook.assign(frames)) for frames in features]
        pairs = BytePairs(models.BPE())
        alphabet = [chr(FIRST_CHARACTER + unit) for unit in range(codebook.size)]
        trainer = trainers.BpeTrainer(vocab_size=self.settings.bpe, initial_alphabet=alphabet, show_progress=False)
        pairs.train_from_iterator(map(_text, units), trainer)
        learned = {"centroids": codebook.centroids, "mean": codebook.mean, "scale": codebook.scale}
        return learned | {"pairs": np.frombuffer(pairs.to_str().encode(), np.uint8)}

    def _learn_units(self, frames: np.ndarray) -> Codebook:
        if len(frames) > FIT_FRAMES:
            frames = frames[np.random.default_rng(0).choice(len(frames), FIT_FRAMES, replace=False)]
        return learn_codebook(frames, self.settings.clusters)

    @cached_property
    def _pairs(self) -> Any:
        from tokenizers import Tokenizer as BytePairs

        return BytePairs.from_str((self.learned or {})["pairs"].tobytes().decode())

    def _inputs(self, clip: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """(network input, number of output frames that belong to the clip) for each piece of a clip.

        Raises:
            UserError: The clip is not mono, or shorter than one frame.
        """
        from dmlm.weights.frozen import pieces

        family, hop = self.config.model_type, self.hop
        field = {"whisper": hop, "wav2vec2-bert": MEL_FIELD + MEL_HOP}.get(family) or _field(self.config)
        if clip.ndim != 1 or len(clip) < field:
            raise UserError(
                f"audio_ssl_kmeans: a clip of shape {clip.shape}; give mono speech (samples,) of {field} samples or more."
            )
        longest = int(self.settings.longest_s * SAMPLE_RATE_HZ) // hop
        if family == "whisper":  # each piece is scaled by its own maximum, as Whisper scales its input
            window = self.config.max_source_positions  # frames of Whisper's input
            cuts = pieces(len(clip), hop, 0, min(longest, window))
            waves = [(clip[start:end], (end - start) // hop) for start, end in cuts if end - start >= hop]
            return [(self._mel(wave, frames, window), frames) for wave, frames in waves]
        if family == "wav2vec2-bert":
            mel = self.extractor(clip, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np").input_features[0]
            frames = ((len(clip) - MEL_FIELD) // MEL_HOP + 1) // 2  # in pairs; an odd last one is dropped
            starts = range(0, frames, longest)
            return [(piece := mel[start : min(start + longest, frames)], len(piece)) for start in starts]
        if self.extractor.do_normalize:  # over the whole clip, not over each piece
            clip = (clip - clip.mean(dtype=np.float64)) / np.sqrt(clip.var(dtype=np.float64) + 1e-7)
        samples = clip.astype(np.float32)
        cuts = pieces(len(samples), hop, field - hop, longest)
        return [(samples[start:end], (end - start - field) // hop + 1) for start, end in cuts]

    def _mel(self, wave: np.ndarray, frames: int, window: int) -> np.ndarray:
        """Whisper's spectrogram (mels, 2 T) of a piece, T being `window`, or with `window: clip` the `frames` of the piece.

        Silence follows the piece in both, so that they agree on the frames that they share.
        """
        read = window if self.settings.window == "full" else frames
        length = min(read + 2, window) * self.hop
        options = {"sampling_rate": SAMPLE_RATE_HZ, "max_length": length, "return_tensors": "np"}
        return np.asarray(self.extractor(wave, **options).input_features[0][:, : 2 * read])

    def _layer(self, inputs: Any) -> Any:
        """Inputs (B, ...) -> output (B, T, D) of the last layer that was built."""
        if self.config.model_type == "whisper":
            return _whisper(self.network, inputs)
        self.network(inputs)
        return self._outputs.pop()

    def _keep_output(self, module: Any, inputs: Any, output: Any) -> None:
        """Forward hook of the last layer."""
        self._outputs = [output[0] if isinstance(output, tuple) else output]

    @cached_property
    def _folder(self) -> Path | None:
        """Folder of the model; None for an untrained one."""
        return published.model_folder(self.card, self.recipe) if self.card else None


class _FirstLayers:
    """Stands in for `AutoModel` and builds a model with its first layers only.

    Models that are fine-tuned for recognition were published without `masked_spec_embed`, which only pretraining uses, so
    it may be missing.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def from_config(self, config: Any) -> Any:
        from transformers import AutoModel

        return AutoModel.from_config(self._cut(config))

    def from_pretrained(self, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
        from transformers import AutoConfig, AutoModel

        config = self._cut(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        network, report = AutoModel.from_pretrained(folder, config=config, **options)
        return network, report | {"missing_keys": set(report["missing_keys"]) - {"masked_spec_embed"}}

    def _cut(self, config: Any) -> Any:
        config.num_hidden_layers = self.layers
        config.add_adapter = False
        config.decoder_layers = 1  # Whisper's; it is not used
        return config


def _whisper(encoder: Any, mels: Any) -> Any:
    """Spectrograms (B, mels, 2 T) -> output (B, T, D) of the last layer that was built, for T up to the full window.

    The parts of `WhisperEncoder.forward`, which takes no other length than the full window.
    """
    from torch.nn.functional import gelu

    x = gelu(encoder.conv2(gelu(encoder.conv1(mels)))).transpose(1, 2)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    for layer in encoder.layers:
        x = layer(x, None)
    return x


def _field(config: Any) -> int:
    """Receptive field, in samples, of one frame of a stack of convolutions."""
    field = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
    return field


def _text(units: np.ndarray) -> str:
    """Units as text, one character for each: byte pairs are learned from text."""
    return "".join(chr(FIRST_CHARACTER + unit) for unit in units)
