"""The interfaces of frozen encoders: `Tokenizer` gives IDs; `Reader` gives text, which the text vocabulary encodes."""

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from dmlm import known_files, recipes
from dmlm.errors import UserError
from dmlm.tokens.quantize import Codebook
from dmlm.weights import published


class Settings(BaseModel):
    """Base class for the settings of an encoder; each recipe derives its own. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Encoder(ABC):
    """What tokenizers and readers share: settings, and a fingerprint that identifies them in the token cache."""

    modality: ClassVar[str]  # letter in templates: A audio, L lips, I image, O recognised text
    media: ClassVar[Literal["audio", "lips", "image", "ocr"]]  # the manifest field that it encodes
    packages: ClassVar[dict[str, str]] = {}  # required package -> command that installs it
    Settings: ClassVar[type[Settings]] = Settings
    device = "cpu"  # where its network runs, if it has one; `EncoderSpec.build` sets it

    def __init__(self, settings: Any) -> None:
        """Keep the settings. Must be cheap: open networks and import engines when they are first used."""
        self.settings = settings

    @property
    def recipe(self) -> str:
        """Name of the recipe: the file that defines the class, without suffix."""
        return Path(str(sys.modules[type(self).__module__].__file__)).stem

    @property
    def depends_on_noise(self) -> bool:
        """Whether its output depends on the noise, so that every condition must be encoded."""
        return self.media == "audio"

    @property
    def card(self) -> published.Card | None:
        """The published weights that it needs, or None."""
        return None

    def convert(self, downloaded: list[Path]) -> list[Path]:
        """Convert downloaded files that are not safe to load as they are. Return the files to keep."""
        return downloaded

    def require(self) -> None:
        """Check that everything needed for encoding is installed.

        Raises:
            UserError: a package or weights are missing; the message contains the command that installs them.
        """
        for package, command in self.packages.items():
            if not importable(package):
                raise UserError(f"{self.recipe}: the package {package} is missing; run: {command}")
        if self.card and published.local_files(self.card, self.recipe) is None:
            raise UserError(published.missing_message(self.card, self.recipe))

    def facts(self) -> list[str]:
        """What else determines the result, such as the version of a library; by default the digest of the weights."""
        if self.card is None:
            return []
        self.require()
        return [published.digest(published.local_files(self.card, self.recipe) or [])]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the code of the recipe, its settings (a path in them
        by what lies there) and its facts. Equal fingerprints give equal tokens."""
        settings = known_files.by_content(self.settings.model_dump(mode="json"))
        parts = [recipes.digest(type(self).__module__), json.dumps(settings), *self.facts()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Tokenizer(Encoder):
    """Encoder to discrete IDs. Results must not depend on batch size, order or padding.

    - A tokenizer with a learned codebook has `clusters` in its settings and defines `features` (or `features_of` for
      batches).
    - A tokenizer with its own codebook overrides `vocab_size` and `encode`.
    - A tokenizer that learns a network on the training split sets `learns = True` and defines `fit`.
    """

    learns: bool = False
    learned: dict[str, np.ndarray] | None = None  # the arrays that `fit` returned; set by `EncoderSpec.build`
    codebook: Codebook | None = None  # set by `EncoderSpec.build` once it is learned

    @property
    def clusters(self) -> int | None:
        """Size of the codebook to learn; None if the tokenizer has its own."""
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
        """Tokens per second; None if the modality has no clock."""

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """IDs (T,) of each item. Audio: float32 (samples,) at 16 kHz; lips: uint8 (T, H, W); image: uint8 (H, W, 3)."""
        if self.codebook is None:
            lack = "no codebook yet" if self.clusters else "neither `encode` nor `clusters` in its settings"
            raise TypeError(f"{type(self).__name__} has {lack}")
        return [self.codebook.assign(features) for features in self.features_of(batch)]

    def features_of(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Feature vectors (T, D) of each item, for a tokenizer whose codebook is learned."""
        return [self.features(item) for item in batch]

    def features(self, item: np.ndarray) -> np.ndarray:
        """Feature vectors (T, D) of one item."""
        raise TypeError(f"{type(self).__name__} defines neither `features` nor `features_of` to learn a codebook from")

    def fit(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Learn a network on training clips and return its arrays, which are stored and set as `learned`.

        `clips` reads each clip from disk when it is indexed.
        """
        raise TypeError(f"{type(self).__name__} learns no network")

    def facts(self) -> list[str]:
        learned = [tensors_digest(self.learned)] if self.learned else []
        return [*super().facts(), *learned, *([self.codebook.digest] if self.codebook else [])]


def importable(package: str) -> bool:
    """Whether a package is installed. Does not import it."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return find_spec(package) is not None


def tensors_digest(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over named arrays."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode() + tensors[name].tobytes())
    return digest.hexdigest()


class Reader(Encoder):
    """Encoder to text, such as an OCR engine. Its text enters the sequence through the text vocabulary."""

    modality: ClassVar[str] = "O"

    @property
    def first_pass(self) -> Path | None:
        """Folder of the first-pass transcripts that it uses, see `dmlm.tokens.first_pass`; None if it uses none."""
        return getattr(self.settings, "first_pass", None)

    @property
    def depends_on_noise(self) -> bool:
        return self.first_pass is not None

    @abstractmethod
    def read(self, batch: list[Any], heard: list[str] | None = None) -> list[str]:
        """Text of each item: an image, uint8 (H, W, 3), or the `ocr` string of the manifest if `media` is "ocr".

        `heard` is the first-pass transcript of each item; it is passed if `first_pass` is set.
        """
