"""Audio units of a small speech encoder, quantised by k-means. The encoder is trained on the training split.

The training is that of the first two iterations of HuBERT (arXiv 2106.07447, section II), at a size that takes a CPU
some minutes. A transformer reads log-mel frames with parts masked and predicts the cluster of each masked unit. In the
first iteration the clusters are those of MFCCs, in later ones those of the encoder's own features. As in WavLM (arXiv
2110.13900, section III-B), other speech or noise is mixed into the input while the targets stay those of the clip. This
comes on top of the noise that the training clips contain.

Shapes: B clips, T units, M mel bands times frames per unit, D width.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from dmlm import progress
from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.errors import UserError
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.quantize import Codebook, learn_codebook
from dmlm.weights.frozen import freeze, in_pieces, on_device, pieces

CLIPS_AT_ONCE = 64  # pieces of full length in a batch
TARGET_FRAMES = 40_000  # at most this many are clustered to make the targets of an iteration


class Settings(BaseSettings):
    """By default 25 units a second, like `audio_mfcc`."""

    clusters: int = Field(default=400, ge=2)
    hop_ms: float = Field(default=20.0, ge=1)
    stack: int = Field(default=2, ge=1, description="frames per unit")
    mels: int = Field(default=40, ge=10)
    width: int = Field(default=144, ge=8)
    layers: int = Field(default=4, ge=1)
    layer: int = Field(default=3, ge=1, description="layer whose output is quantised, counted from 1")
    heads: int = Field(default=4, ge=1)
    targets: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(100, 200), min_length=1, description="number of clusters to predict, one entry per iteration"
    )
    steps: int = Field(default=1500, ge=1, description="training steps of each iteration")
    batch_size: int = Field(default=16, ge=1)
    crop_s: float = Field(default=3.0, gt=0)
    mixed: float = Field(default=0.5, ge=0, le=1, description="share of clips with other speech or noise mixed in")
    lr: float = Field(default=1e-3, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    longest_s: float = Field(default=30.0, ge=1, description="longer clips are read in pieces of this length")

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if self.layer > self.layers:
            raise ValueError(f"layer={self.layer} and layers={self.layers}: give a layer of 1 to {self.layers}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} and heads={self.heads}: the heads have to divide the width")
        if min(self.crop_s, self.longest_s) * (1000.0 / (self.hop_ms * self.stack)) < 1:
            raise ValueError(
                f"crop_s={self.crop_s} and longest_s={self.longest_s}: each has to hold a unit,"
                f" which is of {self.stack} frames (stack) of {self.hop_ms} ms (hop_ms)"
            )
        return self


class MaskedPredictor(nn.Module):
    """Transformer encoder with convolutional position embeddings, and a classifier of units.

    The names of its modules are the keys of the file that keeps what was learned.
    """

    def __init__(self, inputs: int, settings: Settings, targets: int) -> None:
        super().__init__()
        width = settings.width
        self.into = nn.Linear(inputs, width)
        self.mask = nn.Parameter(torch.randn(width) * 0.1)
        self.positions = nn.Conv1d(width, width, 15, padding=7, groups=settings.heads)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, settings.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(settings.layers)
        )
        self.guess = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, targets))

    def forward(self, mels: torch.Tensor, masked: torch.Tensor | None = None, upto: int | None = None) -> torch.Tensor:
        """Log-mels (B, T, M) -> output (B, T, D) of layer `upto`, counted from 1; None: of the last layer.

        `masked`, bool (B, T), marks the units whose input is replaced by the mask vector.
        """
        x = self.into(mels)
        if masked is not None:
            x = torch.where(masked.unsqueeze(-1), self.mask, x)
        x = self.norm(x + nn.functional.gelu(self.positions(x.transpose(1, 2)).transpose(1, 2)))
        for layer in self.layers[:upto]:
            x = layer(x)
        return x


class EncoderUnits(Tokenizer):
    """`floor(frames / stack)` units for a clip, as many as `audio_mfcc` gives."""

    modality = "A"
    media = "audio"
    learns = True
    Settings = Settings

    @property
    def rate_hz(self) -> float:
        return 1000.0 / (self.settings.hop_ms * self.settings.stack)

    @cached_property
    def network(self) -> MaskedPredictor:
        """The network that `fit` learned."""
        assert self.learned is not None
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self.learned.items()}
        model = MaskedPredictor(tensors["into.weight"].shape[1], self.settings, len(tensors["guess.1.bias"]))
        model.load_state_dict(tensors)
        on_device(self.device, freeze(model))  # in place
        return model

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Output of layer `layer`, float32 (T, D), for each clip."""
        longest = int(self.settings.longest_s * self.rate_hz)
        mels = [self._mels(clip) for clip in batch]
        clips = [[mel[start:end] for start, end in pieces(len(mel), 1, 0, longest)] for mel in mels]
        max_numbers = CLIPS_AT_ONCE * mels[0].shape[1] * longest
        return in_pieces(clips, max_numbers, lambda x: self.network(x, upto=self.settings.layer), self.device)

    def fit(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Train the encoder on random crops of clips (samples,); returns its tensors by name."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            speech = [np.round(clip * 32767).astype(np.int16) for clip in clips]
            features = [_mfcc_of(self._mels(_as_float(clip)), self.settings) for clip in speech]
            for iteration, clusters in enumerate(self.settings.targets):
                codes = _learn_codes(features, clusters, self.settings.seed)
                targets = [codes.assign(frames) for frames in features]
                model = self._train(iteration, speech, targets, clusters)
                self.learned = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
                vars(self).pop("network", None)  # the one of the previous iteration
                if iteration + 1 < len(self.settings.targets):
                    features = [self.features_of([_as_float(clip)])[0] for clip in speech]
        return self.learned or {}

    def _train(
        self, iteration: int, speech: list[np.ndarray], targets: list[np.ndarray], classes: int
    ) -> MaskedPredictor:
        """Train a new network to predict `targets`, the cluster (T,) of each unit of each clip."""
        settings = self.settings
        model = MaskedPredictor(settings.mels * settings.stack, settings, classes)
        optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
        warm_up = 0.11 if settings.steps == 10 else 0.1  # at 0.1 of 10 steps OneCycleLR divides by zero
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.lr, settings.steps, pct_start=warm_up)
        generator = np.random.default_rng((settings.seed, iteration))
        with progress.bar(f"encoder, iteration {iteration + 1}", settings.steps, "step") as bar:
            for mels, labels in self._batches(speech, targets, generator):
                masked = torch.from_numpy(_mask_spans(mels.shape[:2], generator))
                logits = model.guess(model(mels, masked))[masked]  # loss at masked units only: HuBERT's alpha = 1
                loss = nn.functional.cross_entropy(logits, labels[masked])
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
                bar.update()
        freeze(model)  # in place
        return model

    def _batches(
        self, speech: list[np.ndarray], targets: list[np.ndarray], generator: np.random.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield log-mels (B, T, M) of crops, some with other sound mixed in, and the targets (B, T) of the clean crops."""
        unit = int(SAMPLE_RATE_HZ / self.rate_hz)
        length = int(self.settings.crop_s * self.rate_hz)
        for _ in range(self.settings.steps):
            mels, labels = [], []
            for number in generator.integers(len(speech), size=self.settings.batch_size):
                first = int(generator.integers(max(1, len(targets[number]) - length + 1)))
                crop = _as_float(_looped(speech[number], first * unit, length * unit))
                if generator.random() < self.settings.mixed:
                    crop = _mix(crop, speech[generator.integers(len(speech))], generator)
                mels.append(self._mels(crop)[:length])
                labels.append(_looped(targets[number], first, length))
            yield torch.from_numpy(np.stack(mels)), torch.from_numpy(np.stack(labels).astype(np.int64))

    def _mels(self, clip: np.ndarray) -> np.ndarray:
        """Stacked log-mels, float32 (T, M), mean-normalised over the clip.

        Raises:
            UserError: The clip is not mono, or shorter than one unit.
        """
        import kaldi_native_fbank as knf

        hop = int(SAMPLE_RATE_HZ * 0.001 * self.settings.hop_ms)
        least = self.settings.stack * hop - hop // 2  # Kaldi rounds: half a hop at the end makes a frame
        if clip.ndim != 1 or len(clip) < least:
            raise UserError(
                f"audio_encoder_kmeans: a clip of shape {clip.shape}; give mono speech (samples,) of {least} samples or more."
            )
        options = knf.FbankOptions()
        options.frame_opts.samp_freq = SAMPLE_RATE_HZ
        options.frame_opts.frame_shift_ms = self.settings.hop_ms
        options.frame_opts.dither = 0.0  # dither is random: tokens must be reproducible
        options.frame_opts.snip_edges = False
        options.mel_opts.num_bins = self.settings.mels
        extractor = knf.OnlineFbank(options)
        for start in range(0, len(clip), SAMPLE_RATE_HZ * 60):
            part = clip[start : start + SAMPLE_RATE_HZ * 60] * np.float32(32768)
            extractor.accept_waveform(SAMPLE_RATE_HZ, part.tolist())  # faster than an array
        extractor.input_finished()
        frames = np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])
        frames = ((frames - frames.mean(axis=0)) / 4).astype(np.float32)  # divided by 4: of the order of 1
        units = len(frames) // self.settings.stack
        return frames[: units * self.settings.stack].reshape(units, -1)


def _mfcc_of(mels: np.ndarray, settings: Settings) -> np.ndarray:
    """13 cepstral coefficients of each frame with deltas, (T, 26 * stack): the features of the first targets."""
    from scipy.fft import dct

    cepstra = dct(mels.reshape(-1, settings.mels), norm="ortho")[:, :13]
    return np.concatenate([cepstra, np.gradient(cepstra, axis=0)], axis=1).reshape(len(mels), -1).astype(np.float32)


def _learn_codes(features: list[np.ndarray], clusters: int, seed: int) -> Codebook:
    """Cluster a random sample of the frames of all clips (T, features)."""
    frames = np.concatenate(features)
    sample = np.random.default_rng(seed).permutation(len(frames))[:TARGET_FRAMES]
    return learn_codebook(frames[sample], min(clusters, len(sample)), seed)


def _mask_spans(shape: torch.Size, generator: np.random.Generator, share: float = 0.13, span: int = 5) -> np.ndarray:
    """Mask, bool (B, T): spans of `span` units whose starts are drawn with probability `share`.

    About half of all units are masked, in spans of 0.2 s, as in HuBERT. Each row has at least one span.
    """
    starts = generator.random(tuple(shape)) < share
    starts[:, 0] |= ~starts.any(axis=1)
    return np.stack([np.convolve(row, np.ones(span), "full")[: shape[1]] > 0 for row in starts])


def _mix(crop: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mix another clip or white noise into up to half of the crop, at an SNR of -5 to 20 dB."""
    length = int(generator.integers(len(crop) // 8, len(crop) // 2))
    start = int(generator.integers(len(crop) - length))
    noise = generator.normal(size=length) if generator.random() < 0.3 else _as_float(_looped(other, 0, length))
    power = np.mean(np.square(noise)) + 1e-9
    gain = np.sqrt(np.mean(np.square(crop)) / power / 10 ** (generator.uniform(-5, 20) / 10))
    mixed = crop.copy()
    mixed[start : start + length] += (gain * noise).astype(np.float32)
    return mixed


def _looped(values: np.ndarray, start: int, length: int) -> np.ndarray:
    """`length` values from `start` on; if there are fewer, `values` repeated from its beginning."""
    excerpt = values[start : start + length]
    return excerpt if len(excerpt) == length else np.resize(values, length)


def _as_float(speech: np.ndarray) -> np.ndarray:
    return speech.astype(np.float32) / np.float32(32767)
