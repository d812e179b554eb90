"""Units of a self-supervised speech encoder: one layer of wav2vec 2.0, HuBERT, WavLM, w2v-BERT 2.0 or Whisper, k-means.

As in textless NLP (arXiv 2102.01192). The feature is what the transformer layer itself puts out, before the encoder's
final normalisation, where there is one (the large models and Whisper). That is `hidden_states[layer]` of `transformers`,
save for the last layer of Whisper, which stands there normalised. Only the layers up to that one are built.
B clips, T frames, D features.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.errors import UserError
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.quantize import Codebook, learn_codebook
from dmlm.weights import published

WAVEFORM = ("wav2vec2", "hubert", "wavlm")
FAMILIES = (*WAVEFORM, "wav2vec2-bert", "whisper")
MEL_HOP, MEL_FIELD = 160, 400  # samples between the frames of a spectrogram, and under one
PREPROCESSOR = "preprocessor_config.json"
FIT_CLIPS, FIT_FRAMES = 640, 80_000  # what units are learned from before byte pairs of them are
FIRST = 0x10000  # character that stands for unit 0 while pairs are learned
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
    """HuBERT base, layer 9, 500 units by default. `model` is a Hub id, a folder or `random:hubert`."""

    model: str = "facebook/hubert-base-ls960"
    revision: str | None = Field(default=None, description="commit or tag; null: the one known here, else main")
    layer: int = Field(default=9, ge=1, description="counted from 1; its output, before any final normalisation")
    clusters: int | None = Field(default=500, ge=2, description="units to learn; none where centroids are given")
    centroids: Path | None = Field(default=None, description=".npy of (units, features), used instead of learning")
    dedup: bool = Field(default=False, description="a run of one unit becomes one token; the tokens lose their clock")
    bpe: int | None = Field(default=None, ge=3, description="vocabulary of byte pairs of units; they have no clock")
    longest_s: float = Field(
        default=60.0,
        ge=1,
        description="longer clips are read in pieces; Whisper's of the 30 s at most that it hears at once",
    )
    architecture: dict[str, Any] = Field(default={}, description="of a random: model")

    @model_validator(mode="before")
    @classmethod
    def _centroids_alone(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("centroids") is not None:
            return {"clusters": None, **given}
        return given

    @model_validator(mode="after")
    def _one_codebook(self) -> "Settings":
        if (self.clusters is None) == (self.centroids is None):
            raise ValueError(f"clusters={self.clusters} and centroids={self.centroids}: give exactly one of them")
        if self.bpe and self.clusters and self.bpe <= self.clusters:
            raise ValueError(f"bpe={self.bpe} has to exceed clusters={self.clusters}")
        return self


class SpeechUnits(Tokenizer):
    """50 units a second. HuBERT and its kin: `floor((samples - 400) / 320) + 1`; Whisper: `floor(samples / 320)`;
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
        return published.of_model(self.settings.model, self.settings.revision, KNOWN)

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
        """Samples between frames."""
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
        return [*super().facts(), *map(published.file_digest, files)]

    @cached_property
    def codes(self) -> Codebook:
        """The given centroids, for features as they are; with byte pairs, what `fit` learned."""
        if self.settings.centroids:
            return Codebook.plain(published.load_centroids(self.settings.centroids.expanduser()))
        learned = self.learned or {}
        return Codebook(learned["centroids"], learned["mean"], learned["scale"])

    @cached_property
    def config(self) -> Any:
        """The network's configuration, read without the network."""
        return published.config_of(self.recipe, self.settings.model, self.card, self.settings.architecture)

    @cached_property
    def network(self) -> Any:
        """Only the layers up to the one that is read; of Whisper, only the encoder."""
        from dmlm.weights.frozen import on, open_model

        self.require()
        chosen, kind = self.settings, _First(self.settings.layer)
        opened: Any = open_model(self.recipe, chosen.model, self.card, chosen.architecture, kind)
        network = opened.encoder if self.config.model_type == "whisper" else opened
        layers = network.layers if self.config.model_type == "whisper" else network.encoder.layers
        layers[-1].register_forward_hook(self._keep)
        return on(self.device, network)

    @cached_property
    def extractor(self) -> Any:
        """What makes the network's input of a waveform: for Whisper and w2v-BERT a spectrogram.

        Raises:
            UserError: the model's file about it is damaged.
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
        """IDs int32 (T,) of each clip, float32 (samples,)."""
        given = self.settings.centroids or self.learns
        found = (
            [self.codes.assign(features) for features in self.features_of(batch)] if given else super().encode(batch)
        )
        units = [self._thinned(ids) for ids in found]
        return [np.array(self._pairs.encode(_text(ids)).ids, np.int32) for ids in units] if self.learns else units

    def _thinned(self, ids: np.ndarray) -> np.ndarray:
        """One token for each run of a unit, if that is wanted."""
        return ids[np.append(True, ids[1:] != ids[:-1])] if self.settings.dedup else ids

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Output of the layer, float32 (T, D), of each clip."""
        from dmlm.weights.frozen import in_equal_batches

        most = int(self.settings.longest_s * SAMPLE_RATE_HZ)
        if self.config.model_type not in WAVEFORM:
            most //= 2  # a second of their input is 8,000 numbers
        parts = [self._inputs(clip) for clip in batch]
        given = [array for clip in parts for array, _ in clip]
        found = iter(in_equal_batches(given, most, self._layer, self.device))
        return [np.concatenate([next(found)[:frames] for _, frames in clip]) for clip in parts]

    def fit(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Units, unless centroids are given, and byte pairs of them, from at most 640 training clips."""
        from tokenizers import Tokenizer as Pairs
        from tokenizers import models, trainers

        chosen = range(0, len(clips), -(-len(clips) // FIT_CLIPS))
        features = [self.features_of([clips[number]])[0] for number in chosen]
        codebook = self.codes if self.settings.centroids else self._learn_units(np.concatenate(features))
        found = [self._thinned(codebook.assign(frames)) for frames in features]
        pairs = Pairs(models.BPE())
        alphabet = [chr(FIRST + unit) for unit in range(codebook.size)]
        trainer = trainers.BpeTrainer(vocab_size=self.settings.bpe, initial_alphabet=alphabet, show_progress=False)
        pairs.train_from_iterator(map(_text, found), trainer)
        learned = {"centroids": codebook.centroids, "mean": codebook.mean, "scale": codebook.scale}
        return learned | {"pairs": np.frombuffer(pairs.to_str().encode(), np.uint8)}

    def _learn_units(self, frames: np.ndarray) -> Codebook:
        if len(frames) > FIT_FRAMES:
            frames = frames[np.random.default_rng(0).choice(len(frames), FIT_FRAMES, replace=False)]
        return learn_codebook(frames, self.settings.clusters)

    @cached_property
    def _pairs(self) -> Any:
        from tokenizers import Tokenizer as Pairs

        return Pairs.from_str((self.learned or {})["pairs"].tobytes().decode())

    def _inputs(self, clip: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """The network's inputs for a clip, piece by piece, and how many frames of each output belong to the clip.

        Raises:
            UserError: not mono, or shorter than one frame.
        """
        from dmlm.weights.frozen import pieces

        family, hop = self.config.model_type, self.hop
        field = {"whisper": hop, "wav2vec2-bert": MEL_FIELD + MEL_HOP}.get(family) or _field(self.config)
        if clip.ndim != 1 or len(clip) < field:
            raise UserError(
                f"audio_ssl_kmeans: a clip of shape {clip.shape}; give mono speech (samples,) of {field} samples or more."
            )
        longest = int(self.settings.longest_s * SAMPLE_RATE_HZ) // hop
        if family == "whisper":  # scaled by the loudest of the piece, as Whisper scales what it hears at once
            heard = self.config.max_source_positions  # frames at once, to which each piece is filled up
            cuts = pieces(len(clip), hop, 0, min(longest, heard))
            mels = [(clip[start:end], (end - start) // hop) for start, end in cuts if end - start >= hop]
            options = {"sampling_rate": SAMPLE_RATE_HZ, "max_length": heard * hop, "return_tensors": "np"}
            return [(self.extractor(piece, **options).input_features[0], frames) for piece, frames in mels]
        if family == "wav2vec2-bert":
            mel = self.extractor(clip, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np").input_features[0]
            frames = ((len(clip) - MEL_FIELD) // MEL_HOP + 1) // 2  # an odd last one is filled up, so not the clip's
            starts = range(0, frames, longest)
            return [(piece := mel[start : min(start + longest, frames)], len(piece)) for start in starts]
        if self.extractor.do_normalize:  # over the whole clip
            clip = (clip - clip.mean(dtype=np.float64)) / np.sqrt(clip.var(dtype=np.float64) + 1e-7)
        whole = clip.astype(np.float32)
        cuts = pieces(len(whole), hop, field - hop, longest)
        return [(whole[start:end], (end - start - field) // hop + 1) for start, end in cuts]

    def _layer(self, given: Any) -> Any:
        """Output (B, T, D) of the last layer that was built."""
        self.network(given)
        return self._kept.pop()

    def _keep(self, module: Any, given: Any, output: Any) -> None:
        self._kept = [output[0] if isinstance(output, tuple) else output]

    @cached_property
    def _folder(self) -> Path | None:
        """Where the model is; None if it is untrained."""
        return published.model_folder(self.card, self.recipe) if self.card else None


class _First:
    """`AutoModel` with the first layers only, and without what follows them.

    Models tuned for recognition were published without `masked_spec_embed`, which only pretraining uses.
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
        config.decoder_layers = 1  # of Whisper
        return config


def _field(config: Any) -> int:
    """Samples under one frame of a stack of convolutions."""
    field = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
    return field


def _text(units: np.ndarray) -> str:
    """A character for each unit, which is what pairs are learned from."""
    return "".join(chr(FIRST + unit) for unit in units)
