"""Published weights: where they come from, that they are what they should be, and how they are read without trust.

    weights/RECIPE/FILE                 as published
    weights/RECIPE/converted.safetensors    what a recipe made of a pickle; nothing else of it is ever loaded
    weights/digests.json                SHA-256 of each file that was read, by size and time of change

Models of the Hub stay in its own cache. Nothing is downloaded unless `dmlm fetch` is called.
"""

import functools
import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmlm import places, progress
from dmlm.errors import UserError

CHUNK = 1 << 20
RANDOM = "random:"  # model="random:hubert": an untrained network, for controls and for tests without weights
CONFIGURED = ("*.json", "*.txt", "*.model")  # what stands beside the weights of a Hub model
LEARNED = ("*.safetensors", "pytorch_model*.bin")  # the first that is there


@dataclass(frozen=True)
class File:
    """One published file."""

    name: str
    sha256: str | None = None  # None: nobody publishes one; taken down at the first download and held to from then on
    bytes: int = 0  # 0: not known
    url: str = ""  # none: a file of the Hub, or one whose owner wants a licence accepted first


@dataclass(frozen=True)
class Card:
    """Where weights come from, and on what terms."""

    source: str  # page or paper
    licence: str
    files: tuple[File, ...] = ()
    hub: str = ""  # id of a model on the Hub
    revision: str = "main"  # commit or tag
    by_hand: str = ""  # how to get what may not be downloaded unasked
    converted: str = ""  # what `convert` makes of the files: it alone is looked for, loaded and fingerprinted

    @classmethod
    def on_hub(cls, hub: str, licence: str, revision: str, *files: File) -> "Card":
        """That of a model of the Hub."""
        return cls(f"https://huggingface.co/{hub}", licence, files, hub=hub, revision=revision)

    @property
    def bytes(self) -> int:
        """Size of the download; 0 where it is not known."""
        return sum(file.bytes for file in self.files) if all(file.bytes for file in self.files) else 0


def of_model(model: str, revision: str | None, known: dict[str, Card]) -> Card | None:
    """Card of the model that a setting names: one that a recipe knows, any other of the Hub, or a folder.

    None for an untrained network. Of another revision than the known one no digest is known.
    """
    if model.startswith(RANDOM):
        return None
    there = model if Path(model).expanduser().is_dir() else f"https://huggingface.co/{model}"
    card = known.get(model) or Card(there, "see its page", hub=model)
    if not card.hub or revision in (None, card.revision):
        return card
    return replace(card, revision=str(revision), files=())


def config_of(recipe: str, model: str, card: Card | None, architecture: dict[str, Any]) -> Any:
    """Configuration of the model that a setting names, read without the network.

    Raises:
        UserError: it is not here, or `transformers` does not know it.
    """
    from transformers import AutoConfig

    try:
        if card is None:
            return AutoConfig.for_model(model.removeprefix(RANDOM), **architecture)
        return AutoConfig.from_pretrained(model_folder(card, recipe), local_files_only=True)
    except (ValueError, OSError) as error:
        why = str(error).splitlines()[0].partition(" Should contain one of")[0]
        raise UserError(f"{recipe}: model={model} is not known to transformers ({why}).") from None


def model_folder(card: Card, recipe: str) -> Path:
    """Folder of a card's Hub model.

    Raises:
        UserError: it is not on this machine.
    """
    place = hub_folder(card.hub, card.revision)
    if place is None:
        raise UserError(missing(card, recipe))
    return place


def folder(recipe: str) -> Path:
    """Where the weights of a recipe are kept."""
    return places.home() / "weights" / recipe


def fetch(card: Card, recipe: str, given: Path | None = None) -> list[Path]:
    """Bring the files of a card here, from where they are published or from a folder, and check them.

    A download that broke goes on where it stopped. `HF_HUB_OFFLINE` is honoured for every source.

    Raises:
        UserError: no network, a file that is not there, or one whose digest is not the card's.
    """
    if card.hub and given is None:
        return present(card, recipe) or [] if _is_folder(card) else _from_hub(card, recipe)
    paths = []
    for file in card.files:
        path = folder(recipe) / file.name
        if given is not None:
            source = given / file.name if given.is_dir() else given
            if not source.is_file():
                raise UserError(f"{recipe}: there is no {source}; --from takes the folder that holds {file.name}.")
            if source.resolve() != path.resolve():
                _copy(source, path)
        elif not path.is_file():
            if not file.url:
                raise UserError(f"{recipe}: {file.name} cannot be downloaded unasked; {card.by_hand}")
            _refuse_offline(recipe)
            _download(file, path)
        _verify(path, file, recipe)
        paths.append(path)
    return paths


def present(card: Card, recipe: str) -> list[Path] | None:
    """The files of a card that are here, or None if one is not."""
    if not card.hub:
        names = [card.converted] if card.converted else [file.name for file in card.files]
        paths = [folder(recipe) / name for name in names]
        return paths if all(path.is_file() for path in paths) else None
    place = hub_folder(card.hub, card.revision)
    return model_files(place) if place else None


def hub_folder(name: str, revision: str = "main") -> Path | None:
    """Folder of a model: a local one by its path, or one of the Hub that was downloaded before.

    Raises:
        UserError: neither a folder nor a Hub id.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except HFValidationError:
        raise UserError(f"{name!r}: there is no such folder, and it is not a Hub id like owner/name.") from None
    except LocalEntryNotFoundError:
        return None


def model_files(place: Path) -> list[Path] | None:
    """Configuration and weights of a model's folder, or None if a part is missing."""
    if not (place / "config.json").is_file():
        return None
    for pattern in LEARNED:
        if found := sorted(place.glob(pattern)):
            return [place / "config.json", *found]
    return None


def missing(card: Card, recipe: str) -> str:
    """The sentence about weights that are not here."""
    if _is_folder(card):
        return (
            f"{recipe}: {card.hub} lacks config.json or weights ({' or '.join(LEARNED)}); give a whole model's folder."
        )
    size = f" ({card.bytes / 1e6:,.0f} MB)" if card.bytes else ""
    chosen = f" model={card.hub}" if card.hub else ""
    return f"{recipe}: its weights{size} are not here; {card.by_hand or f'run: dmlm fetch {recipe}{chosen}'}"


def _is_folder(card: Card) -> bool:
    return bool(card.hub) and Path(card.hub).expanduser().is_dir()


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 over files. That of each is remembered as long as its size and time of change stay."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(file_digest(path).encode())
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of one file."""
    real = path.resolve()
    state = real.stat()
    return _digest_of(real, f"{real} {state.st_size} {state.st_mtime_ns}")


@functools.cache
def _digest_of(path: Path, key: str) -> str:
    book = places.home() / "weights" / "digests.json"
    known = json.loads(book.read_text("utf-8")) if book.is_file() else {}
    if key not in known:
        known[key] = places.digest(path)
        places.write_text(book, json.dumps(known, indent=1) + "\n")
    return str(known[key])


def _verify(path: Path, file: File, recipe: str) -> None:
    """Hold a file to its digest; one that has none published, to that of its first download."""
    found = file_digest(path)
    first = path.with_name(f"{path.name}.sha256")
    wanted = file.sha256 or (first.read_text("utf-8").strip() if first.is_file() else None)
    if wanted is None:
        print(f"{recipe}: nobody publishes a digest of {file.name}; this one is taken down: {found}")
        places.write_text(first, found + "\n")
    elif found != wanted:
        raise UserError(
            f"{recipe}: {path} is not the published file (SHA-256 {found[:12]}..., wanted {wanted[:12]}...);"
            " remove it and run the same command again."
        )


def _copy(source: Path, target: Path) -> None:
    with places.atomic(target) as temporary, source.open("rb") as read, temporary.open("wb") as written:
        while block := read.read(CHUNK):
            written.write(block)


def _refuse_offline(recipe: str) -> None:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise UserError(f"{recipe}: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or give --from FOLDER.")


def _download(file: File, target: Path) -> None:
    """Bring a file here; what came before a broken connection is kept, and asked for no more."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    had = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={had}-"} if had else {})
    again = "run the same command again, it goes on from there"
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            had = had if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = had + int(length) if length else None
            with partial.open("ab" if had else "wb") as part, progress.bar(file.name, total or 0, "B", had) as shown:
                while block := response.read(CHUNK):
                    part.write(block)
                    shown.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing after what is here
            raise UserError(
                f"{file.url} answered {error.code} {error.reason}; see whether the file has moved."
            ) from None
        total = had
    except OSError as error:
        raise UserError(f"{file.url} cannot be read ({error}); {again}.") from None
    if total is not None and partial.stat().st_size < total:
        raise UserError(
            f"{file.url}: the connection broke after {partial.stat().st_size:,} of {total:,} bytes; {again}."
        )
    os.replace(partial, target)


def _from_hub(card: Card, recipe: str) -> list[Path]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    _refuse_offline(recipe)
    try:
        names = HfApi().list_repo_files(card.hub, revision=card.revision)
        learned = next((p for p in LEARNED if any(Path(n).match(p) and "/" not in n for n in names)), None)
        if learned is None:
            raise UserError(f"{recipe}: {card.hub} holds no weights that are read here ({' or '.join(LEARNED)}).")
        place = Path(snapshot_download(card.hub, revision=card.revision, allow_patterns=[*CONFIGURED, learned]))
    except HFValidationError:
        raise UserError(f"{recipe}: {card.hub!r} is no Hub id like owner/name.") from None
    except (HfHubHTTPError, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{recipe}: {card.hub} cannot be downloaded ({why}); run the same command again.") from None
    for file in card.files:
        if (place / file.name).is_file():
            _verify(place / file.name, file, recipe)
    return model_files(place) or []


def load_centroids(path: Path) -> Any:
    """Centroids (K, D), float32, of an .npy file; pickled objects in it are refused.

    Raises:
        UserError: unreadable, or not a matrix of finite numbers.
    """
    import numpy as np

    try:
        centroids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an array of centroids ({error}); give an .npy file.") from None
    if centroids.ndim != 2 or not np.issubdtype(centroids.dtype, np.floating) or not np.isfinite(centroids).all():
        raise UserError(f"{path} holds {centroids.dtype} {centroids.shape}; centroids are a finite matrix (K, D).")
    return centroids.astype(np.float32)
