"""Codes of a neural audio codec: Mimi (arXiv 2410.00037), DAC (2306.06546), EnCodec (2210.13438) or X-Codec (2408.17175).

Order of the IDs: frame by frame, and in a frame codebook by codebook. The codes of codebook k (from 0) are shifted by
k times the codebook's size, so that each codebook has its own IDs:

    c[0, 0], size + c[1, 0], ..., (K-1) size + c[K-1, 0],   c[0, 1], size + c[1, 1], ...

The codes come from the `encode` method of each codec in `transformers`.

Shapes: B clips, K codebooks, T frames.
"""

from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field

from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.errors import UserError
from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer
from dmlm.weights import published

PADDED = ("dac", "xcodec")  # their feature extractor pads the last frame with zeros; the other codecs pad it themselves
CODECS = ("mimi", "encodec", *PADDED)
MIMI = "kyutai/mimi"
KNOWN = {
    MIMI: published.Card.on_hub(
        MIMI,
        "CC-BY-4.0",
        "89091b3e466eb6a9d11e537bf26b144f194978f7",
        published.File(
            "model.safetensors", "bac7e85083dcded655d24eaadde7e6eea34c0da1b35fa2d284e641bd2b942a5e", 384_649_828
        ),
    )
}


class Settings(BaseSettings):
    """By default only Mimi's semantic codebook: 12.5 IDs a second. `model` is a Hub id, a folder or `random:mimi`."""

    model: str = MIMI
    revision: str | None = Field(default=None, description="commit or tag; null: the one named in the recipe, or main")
    codebooks: int = Field(default=1, ge=1, description="how many of the residual codebooks, counted from the first")
    longest_s: float = Field(default=30.0, ge=1, description="longer clips are coded in pieces of this length")
    architecture: dict[str, Any] = Field(default={}, description="configuration values of a random: model")


class CodecCodes(Tokenizer):
    """`codebooks * ceil(samples / hop)` IDs for a clip; samples are counted at the codec's rate.

    Mimi: 24 kHz, hop 1920. EnCodec: 24 kHz, hop 320. DAC: 16, 24 or 44.1 kHz, hop 320 or 512. X-Codec: 16 kHz, hop 320.
    """

    modality = "A"
    media = "audio"
    Settings = Settings

    @property
    def card(self) -> published.Card | None:
        return published.card_of(self.settings.model, self.settings.revision, KNOWN)

    @property
    def vocab_size(self) -> int:
        return self.settings.codebooks * int(self.config.codebook_size)

    @property
    def rate_hz(self) -> float:
        return self.settings.codebooks * self.codec_hz / self.hop

    def require(self) -> None:
        super().require()
        if self.config.model_type not in CODECS:
            raise UserError(
                f"audio_codec: model={self.settings.model} is a {self.config.model_type}; give one of {', '.join(CODECS)}."
            )
        if getattr(self.config, "audio_channels", 1) != 1 or getattr(self.config, "chunk_length_s", None):
            raise UserError(
                f"audio_codec: model={self.settings.model} codes stereo or overlapping chunks; give one for mono speech."
            )
        if not self.fewest_codebooks <= self.settings.codebooks <= self.most_codebooks:
            raise UserError(
                f"audio_codec: codebooks={self.settings.codebooks}, and {self.settings.model} has {self.most_codebooks};"
                f" give {self.fewest_codebooks} to {self.most_codebooks}."
            )

    @cached_property
    def config(self) -> Any:
        """Configuration of the network, read without loading the network."""
        return published.config_of(self.recipe, self.settings.model, self.card, self.settings.architecture)

    @property
    def codec_hz(self) -> int:
        """Sampling rate of the codec, in samples per second."""
        return int(self.config.sample_rate if self.config.model_type == "xcodec" else self.config.sampling_rate)

    @property
    def hop(self) -> int:
        """Samples per frame. EnCodec and DAC round `frame_rate` up in their configurations, so only Mimi's is used."""
        is_mimi = self.config.model_type == "mimi"
        return round(self.codec_hz / self.config.frame_rate) if is_mimi else int(self.config.hop_length)

    @property
    def fewest_codebooks(self) -> int:
        """Smallest allowed number of codebooks: for Mimi, its semantic ones."""
        return int(getattr(self.config, "num_semantic_quantizers", 1))

    @property
    def most_codebooks(self) -> int:
        """Number of codebooks of the codec."""
        is_dac = self.config.model_type == "dac"
        return int(self.config.n_codebooks if is_dac else self.config.num_quantizers)

    @cached_property
    def network(self) -> Any:
        """The codec without its decoder, which encoding does not need."""
        from dmlm.weights.frozen import on_device, open_model

        self.require()
        network = open_model(self.recipe, self.settings.model, self.card, self.settings.architecture)
        for name in ("decoder", "acoustic_decoder", "decoder_semantic"):
            if hasattr(network, name):
                setattr(network, name, None)
        if self.card is None:
            _fill_codebooks(network)
        return on_device(self.device, network)

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """IDs, int32 (T * K,), of each clip, float32 (samples,) at 16 kHz."""
        from dmlm.weights.frozen import in_pieces, pieces

        frames = max(1, int(self.settings.longest_s * self.codec_hz) // self.hop)
        clips = []
        for clip in batch:
            samples = self._resampled(clip)
            clips.append([samples[start:end] for start, end in pieces(len(samples), self.hop, 0, frames)])
        return in_pieces(clips, frames * self.hop, self._codes, self.device)

    def _codes(self, samples: Any) -> Any:
        """Clips (B, samples) -> IDs (B, T * K)."""
        import torch

        options: dict[str, Any] = {}
        if self.config.model_type == "mimi":
            options["num_quantizers"] = self.settings.codebooks
        elif self.config.model_type == "dac":
            options["n_quantizers"] = self.settings.codebooks
        else:
            options["bandwidth"] = self._bandwidth()
        codes = self.network.encode(samples[:, None], **options).audio_codes
        if codes.dim() == 4:  # EnCodec's first axis is chunks; there is one
            codes = codes[0]
        codes = codes[:, : self.settings.codebooks]  # (B, K, T)
        shifts = torch.arange(codes.shape[1], device=codes.device) * self.config.codebook_size
        return (codes + shifts[:, None]).transpose(1, 2).flatten(1).to(torch.int32)

    def _bandwidth(self) -> float:
        """Lowest bandwidth in kbit/s that has enough codebooks.

        A higher one would only add codebooks: they are residual, so the first ones stay the same.
        """
        quantizer = self.network.quantizer
        for bandwidth in sorted(self.config.target_bandwidths):
            if quantizer.get_num_quantizers_for_bandwidth(bandwidth) >= self.settings.codebooks:
                return float(bandwidth)
        raise AssertionError("require() checks the number of codebooks")

    def _resampled(self, clip: np.ndarray) -> np.ndarray:
        """The clip at the codec's rate; for the codecs in `PADDED`, with zeros up to a whole frame.

        Raises:
            UserError: The clip is empty or not mono.
        """
        from scipy.signal import resample_poly

        if clip.ndim != 1 or not len(clip):
            raise UserError(
                f"audio_codec: a clip of shape {clip.shape}; give mono speech (samples,) of 1 sample or more."
            )
        if self.codec_hz != SAMPLE_RATE_HZ:
            divisor = int(np.gcd(self.codec_hz, SAMPLE_RATE_HZ))
            clip = resample_poly(clip, self.codec_hz // divisor, SAMPLE_RATE_HZ // divisor)
        padding = -len(clip) % self.hop if self.config.model_type in PADDED else 0
        return np.pad(clip, (0, padding)).astype(np.float32)


def _fill_codebooks(network: Any) -> None:
    """Fill the codebooks of an untrained codec with random vectors, in place.

    `transformers` leaves them at zero, so every frame would have the same ID. The vectors are short: then the nearest
    one depends on the direction of a frame's vector and not on its length.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.named_buffers():
        if name.endswith(("codebook.embed", "codebook.embed_sum")) and not tensor.any():
            tensor.normal_(std=1e-3, generator=generator)
