"""The interface of a frozen encoder: `Tokenizer` gives IDs, `Reader` gives text that the text vocabulary encodes."""

import hashlib
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from dmlm.tokens.quantize import Codebook


class Settings(BaseModel):
    """What can be set on a tokenizer; each recipe derives its own. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Encoder(ABC):
    """What tokenizers and readers share: settings, and a fingerprint that keys the token cache."""

    modality: ClassVar[str]  # letter of the template notation: A audio, L lips, I image, O recognised text
    media: ClassVar[Literal["audio", "lips", "image", "ocr"]]  # the manifest field that is handed to it
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def facts(self) -> list[str]:
        """Whatever else decides the result, such as a library's version or the digest of weights."""
        return []

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe's source, its settings and its facts: equal fingerprints give equal tokens."""
        source = Path(str(sys.modules[type(self).__module__].__file__)).read_bytes()
        parts = [hashlib.sha256(source).hexdigest(), self.settings.model_dump_json(), *self.facts()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Tokenizer(Encoder):
    """Encoder to discrete IDs. Results must not depend on batch size, order or padding.

    One whose codebook is learned has `clusters` in its settings and defines `features`; one that brings its own overrides
    `vocab_size` and `encode`.
    """

    codebook: Codebook | None = None  # set by the engine once learned

    @property
    def clusters(self) -> int | None:
        """Size of the codebook to learn; None where the encoder brings its own."""
        return getattr(self.settings, "clusters", None)

    @property
    def vocab_size(self) -> int:
        """Number of IDs; each ID lies in `[0, vocab_size)`."""
        if self.clusters is None:
            raise TypeError(f"{type(self).__name__} has no `clusters` setting, so it must define vocab_size")
        return self.clusters

    @property
    @abstractmethod
    def rate_hz(self) -> float | None:
        """Tokens per second; None where the modality has no clock."""

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """IDs (T,) of each item. Audio: float32 (samples,) at 16 kHz; lips: uint8 (T, H, W); image: uint8 (H, W, 3)."""
        if self.codebook is None:
            raise TypeError(f"{type(self).__name__} has no codebook yet; the engine learns it before encoding")
        return [self.codebook.assign(self.features(item)) for item in batch]

    def features(self, item: np.ndarray) -> np.ndarray:
        """Feature vectors (T, D) of one item, for an encoder whose codebook is learned."""
        raise TypeError(f"{type(self).__name__} learns no codebook")

    def facts(self) -> list[str]:
        return [self.codebook.digest] if self.codebook else []


class Reader(Encoder):
    """Encoder to text, such as an OCR engine. Its text enters the sequence through the text vocabulary."""

    modality: ClassVar[str] = "O"

    @abstractmethod
    def read(self, batch: list[Any]) -> list[str]:
        """Text of each item: an image, uint8 (H, W, 3), or the manifest's own `ocr` string where `media` says so."""
