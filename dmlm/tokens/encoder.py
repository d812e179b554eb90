"""The interface of a frozen encoder: `Tokenizer` gives IDs, `Reader` gives text that the text vocabulary encodes."""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from dmlm import recipes
from dmlm.errors import UserError
from dmlm.tokens.quantize import Codebook
from dmlm.weights import published


class Settings(BaseModel):
    """What can be set on a tokenizer; each recipe derives its own. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Encoder(ABC):
    """What tokenizers and readers share: settings, and a fingerprint that keys the token cache."""

    modality: ClassVar[str]  # letter of the template notation: A audio, L lips, I image, O recognised text
    media: ClassVar[Literal["audio", "lips", "image", "ocr"]]  # the manifest field that is handed to it
    packages: ClassVar[dict[str, str]] = {}  # what has to be importable, and the command that installs it
    Settings: ClassVar[type[Settings]] = Settings
    device = "cpu"  # where its network runs, if it has one; the engine may set another

    def __init__(self, settings: Any) -> None:
        """Cheap: networks are opened, and engines imported, when they are first used."""
        self.settings = settings

    @property
    def recipe(self) -> str:
        """Name of the file that defines it."""
        return Path(str(sys.modules[type(self).__module__].__file__)).stem

    @property
    def hears(self) -> bool:
        """Whether what it gives depends on the noise, so that each condition is encoded for itself."""
        return self.media == "audio"

    @property
    def card(self) -> published.Card | None:
        """The published weights that it needs; None for an encoder that needs none."""
        return None

    def convert(self, downloaded: list[Path]) -> list[Path]:
        """Make of the downloaded files what is loaded, where they are not safe as they are; returns what is kept."""
        return downloaded

    def require(self) -> None:
        """See that everything is here that encoding takes.

        Raises:
            UserError: a package or weights are missing; the message has the command that brings them.
        """
        for package, command in self.packages.items():
            if not importable(package):
                raise UserError(f"{self.recipe}: the package {package} is missing; run: {command}")
        if self.card and published.present(self.card, self.recipe) is None:
            raise UserError(published.missing(self.card, self.recipe))

    def facts(self) -> list[str]:
        """Whatever else decides the result, such as a library's version; by default the digest of the weights."""
        if self.card is None:
            return []
        self.require()
        return [published.digest(published.present(self.card, self.recipe) or [])]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe's source, its settings and its facts: equal fingerprints give equal tokens."""
        parts = [recipes.digest(type(self).__module__), self.settings.model_dump_json(), *self.facts()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Tokenizer(Encoder):
    """Encoder to discrete IDs. Results must not depend on batch size, order or padding.

    One whose codebook is learned has `clusters` in its settings and defines `features` (or, for batches, `features_of`);
    one that brings its own overrides `vocab_size` and `encode`. One that learns a network on the training split has
    `learns = True` and defines `fit`.
    """

    learns: bool = False
    learned: dict[str, np.ndarray] | None = None  # what `fit` gave; set by the engine
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
            why = "no codebook yet" if self.clusters else "neither `encode` nor `clusters` in its settings"
            raise TypeError(f"{type(self).__name__} has {why}")
        return [self.codebook.assign(features) for features in self.features_of(batch)]

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Feature vectors (T, D) of each item, for an encoder whose codebook is learned."""
        return [self.features(item) for item in batch]

    def features(self, item: np.ndarray) -> np.ndarray:
        """Feature vectors (T, D) of one item."""
        raise TypeError(f"{type(self).__name__} defines neither `features` nor `features_of` to learn a codebook from")

    def fit(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Learn on training clips, read one by one as they are asked for; what it gives is kept and set as `learned`."""
        raise TypeError(f"{type(self).__name__} learns no network")

    def facts(self) -> list[str]:
        learned = [tensors_digest(self.learned)] if self.learned else []
        return [*super().facts(), *learned, *([self.codebook.digest] if self.codebook else [])]


def importable(package: str) -> bool:
    """Whether a package is installed, found without importing it."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return find_spec(package) is not None


def tensors_digest(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over named arrays."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode() + tensors[name].tobytes())
    return whole.hexdigest()


class Reader(Encoder):
    """Encoder to text, such as an OCR engine. Its text enters the sequence through the text vocabulary."""

    modality: ClassVar[str] = "O"

    @property
    def first_pass(self) -> Path | None:
        """Folder of the transcripts that it wants to be told, see `dmlm.tokens.first_pass`; None where it wants none."""
        return getattr(self.settings, "first_pass", None)

    @property
    def hears(self) -> bool:
        return self.first_pass is not None

    @abstractmethod
    def read(self, batch: list[Any], said: list[str] | None = None) -> list[str]:
        """Text of each item: an image, uint8 (H, W, 3), or the manifest's own `ocr` string where `media` says so.

        `said` is what a first pass over the audio understood of each, where `first_pass` asks for it.
        """
