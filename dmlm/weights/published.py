"""Published weights: where they come from, that they are what they should be, and how they are read without trust.

    weights/RECIPE/FILE                 as published
    weights/RECIPE/FILE.sha256          digest of the first that came, where nobody publishes one
    weights/RECIPE/FILE.part, .refused  what broke off, and what was not the published file; nothing reads them
    weights/RECIPE/converted.safetensors    what a recipe made of a pickle; nothing else of it is ever loaded
    weights/digests.json                SHA-256 of each file that was read: a memory, nothing is held to it

Models of the Hub stay in its own cache. Nothing is downloaded unless `dmlm fetch` is called.
"""

import functools
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmlm import files, paths, progress
from dmlm.errors import UserError

CHUNK = 1 << 20
RANDOM = "random:"  # model="random:hubert": an untrained network, for controls and for tests without weights
CONFIGURED = ("*.json", "*.txt", "*.model")  # what stands beside the weights of a Hub model
LEARNED = ("model*.safetensors", "pytorch_model*.bin")  # what `transformers` loads, whole or in parts


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
        return AutoConfig.from_pretrained(model_folder(card, recipe), local_files_only=True, trust_remote_code=False)
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


def verified_folder(card: Card, recipe: str) -> Path:
    """Folder of a card's Hub model that is about to be opened: anybody may have written into the cache.

    Raises:
        UserError: it is not on this machine, or a file of it is not the one that the card knows.
    """
    place = model_folder(card, recipe)
    for file in card.files:
        path = place / file.name
        if path.is_file():
            remedy = f"remove {path.resolve()} and run: {_command(card, recipe)}"
            _verify(file_digest(path), file, path, f"{recipe}: {path}", remedy)
    return place


def folder(recipe: str) -> Path:
    """Where the weights of a recipe are kept."""
    return paths.home() / "weights" / recipe


def fetch(card: Card, recipe: str, given: Path | None = None) -> list[Path]:
    """Bring the files of a card here, from where they are published or from a folder, and check them.

    `given` may also be the file itself, where the card has one. A download that broke goes on where it stopped.
    `HF_HUB_OFFLINE` is honoured for every source.

    Raises:
        UserError: no network, a file that is not there, or one whose digest is not the card's.
    """
    if card.hub and given is not None:
        raise UserError(f"{recipe}: --from is not for a model of the Hub; set model={given}, if that is its folder.")
    if card.hub:
        return present(card, recipe) or [] if _is_folder(card) else _from_hub(card, recipe)
    return [_bring(file, card, recipe, given) for file in card.files]


def _bring(file: File, card: Card, recipe: str, given: Path | None) -> Path:
    """One file of a card. It is verified before it takes its place, and leaves it when it is refused."""
    path = folder(recipe) / file.name
    if given is not None:
        source = given / file.name if given.is_dir() or len(card.files) > 1 else given
        if not source.is_file():
            raise UserError(f"{recipe}: there is no {source}; --from takes the folder that holds {file.name}.")
        if source.resolve() != path.resolve():
            with files.atomic(path) as new:
                shutil.copyfile(source, new)
                remedy = "give that one, nothing was changed here"
                _verify(files.digest(new), file, path, f"{recipe}: {source}", remedy)
            return path
    new, origin = path, str(path)
    if not path.is_file():
        if not file.url:
            raise UserError(f"{recipe}: {file.name} cannot be downloaded unasked; {card.by_hand}")
        _refuse_offline(recipe)
        new, origin = _download(file, path), file.url
    refused = path.with_name(f"{file.name}.refused")
    try:
        remedy = f"it is now {refused.name}, run the same command again"
        _verify(files.digest(new), file, path, f"{recipe}: {origin}", remedy)
    except UserError:
        os.replace(new, refused)
        raise
    os.replace(new, path)
    return path


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
    """Every file of a model's folder that its loader may open for the network, or None if a part is missing."""
    learned = [path for pattern in LEARNED for path in sorted(place.glob(pattern))]
    if not learned or not (place / "config.json").is_file():
        return None
    return [place / "config.json", *sorted(place.glob("*.index.json")), *learned]


def missing(card: Card, recipe: str) -> str:
    """The sentence about weights that are not here."""
    if _is_folder(card):
        return (
            f"{recipe}: {card.hub} lacks config.json or weights ({' or '.join(LEARNED)}); give a whole model's folder."
        )
    size = f" ({card.bytes / 1e6:,.0f} MB)" if card.bytes else ""
    return f"{recipe}: its weights{size} are not here; {card.by_hand or f'run: {_command(card, recipe)}'}"


def _command(card: Card, recipe: str) -> str:
    return f"dmlm fetch {recipe}{f' model={card.hub}' if card.hub else ''}"


def _is_folder(card: Card) -> bool:
    return bool(card.hub) and Path(card.hub).expanduser().is_dir()


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 over files."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(file_digest(path).encode())
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of one file, remembered until it is written to or replaced; its time alone could be set back."""
    real = path.resolve()
    state = real.stat()
    return _digest_of(real, f"{real} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}")


@functools.cache
def _digest_of(path: Path, key: str) -> str:
    book = paths.home() / "weights" / "digests.json"
    try:
        known = dict(json.loads(book.read_text("utf-8"))) if book.is_file() else {}
    except (ValueError, TypeError):
        known = {}  # a damaged memory costs time only
    if key not in known:
        known[key] = files.digest(path)
        files.write_text(book, json.dumps(known, indent=1) + "\n")
    return str(known[key])


def _verify(found: str, file: File, path: Path, origin: str, remedy: str) -> None:
    """Hold the digest of what is, or shall be, at `path` to the published one; without one, to that of the first."""
    first = path.with_name(f"{path.name}.sha256")
    if file.sha256 is None and not first.is_file():
        print(f"{origin}: nobody publishes its digest; this one is taken down: {found}")
        files.write_text(first, found + "\n")
    wanted, whose = (file.sha256, "") if file.sha256 else (first.read_text("utf-8").strip(), f" as {first} says")
    if found != wanted:
        raise UserError(
            f"{origin} is not the published file (SHA-256 {found[:12]}..., wanted {wanted[:12]}...{whose}); {remedy}."
        )


def _refuse_offline(recipe: str) -> None:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise UserError(f"{recipe}: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or give --from FOLDER.")


def _download(file: File, target: Path) -> Path:
    """Bring a file to NAME.part; what came before a broken connection is kept there, and asked for no more."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    had = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={had}-"} if had else {})
    again = "run the same command again, it goes on from there"
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            said = response.headers.get("Content-Range", "")
            other = response.status == 206 and not said.startswith(f"bytes {had}-")
            total = 0 if other else _receive(response, file, partial, had if response.status == 206 else 0)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not had:
            raise UserError(
                f"{file.url} answered {error.code} {error.reason}; see whether the file has moved."
            ) from None
        total = had  # there is nothing after what is here
        other = error.headers.get("Content-Range") != f"bytes */{had}"
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{file.url} cannot be read ({str(error).strip()}); {again}.") from None
    if other and not had:
        raise UserError(f"{file.url} sent a part of it, where all was asked for; see whether the file has moved.")
    if other:  # what is here is no beginning of this file
        partial.unlink()
        return _download(file, target)
    if (size := partial.stat().st_size) < total:
        raise UserError(f"{file.url}: the connection broke after {size:,} of {total:,} bytes; {again}.")
    return partial


def _receive(response: Any, file: File, partial: Path, had: int) -> int:
    """Write an answer behind the `had` bytes that are here; gives how many there should be then.

    Raises:
        UserError: it is no file, or does not say where it ends, so that a broken one would pass for whole.
    """
    if response.headers.get_content_type() == "text/html":
        raise UserError(f"{file.url} answered with a page; see whether the file has moved.")
    if response.length is None and not response.chunked:
        raise UserError(f"{file.url} does not say how long it is; download it otherwise and give it with --from.")
    total = had + (response.length or 0)
    with partial.open("ab" if had else "wb") as part, progress.bar(file.name, total, "B", had) as shown:
        while block := response.read(CHUNK):
            part.write(block)
            shown.update(len(block))
    if partial.stat().st_size == 0:
        raise UserError(f"{file.url} answered with nothing; see whether the file has moved.")
    return total


def _from_hub(card: Card, recipe: str) -> list[Path]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    _refuse_offline(recipe)
    try:
        names = HfApi().list_repo_files(card.hub, revision=card.revision)
        whole = [(pattern, pattern.replace("*", "")) for pattern in LEARNED]
        learned = next((p for p, name in whole if name in names or f"{name}.index.json" in names), None)
        if learned is None:
            raise UserError(f"{recipe}: {card.hub} holds no weights that are read here ({' or '.join(LEARNED)}).")
        snapshot_download(card.hub, revision=card.revision, allow_patterns=[*CONFIGURED, learned])
    except HFValidationError:
        raise UserError(f"{recipe}: {card.hub!r} is no Hub id like owner/name.") from None
    except (HTTPError, OSError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{recipe}: {card.hub} cannot be downloaded ({why}); run the same command again.") from None
    return model_files(verified_folder(card, recipe)) or []


def load_centroids(path: Path) -> Any:
    """Centroids (K, D), float32, of an .npy file; pickled objects in it are refused.

    Raises:
        UserError: unreadable, or not a matrix of numbers that are finite in single precision.
    """
    import numpy as np

    try:
        found = np.lib.format.open_memmap(path, mode="r")  # an array that is longer than its file takes no memory
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be read as an array of centroids ({error}); give an .npy file.") from None
    matrix = found.ndim == 2 and found.size and np.issubdtype(found.dtype, np.floating)
    if not matrix or not (np.abs(found) <= np.finfo(np.float32).max).all():
        raise UserError(f"{path} holds {found.dtype} {found.shape}; centroids are a finite matrix (K, D).")
    return np.array(found, np.float32)
