"""Published weights: find, download and verify them. Files below the home folder:

    weights/RECIPE/FILE                     as published
    weights/RECIPE/FILE.sha256              digest of the first download, for a file that is published without one
    weights/RECIPE/FILE.part                an unfinished download, which `dmlm fetch` continues
    weights/RECIPE/FILE.refused             a file with another digest than the published one; never read
    weights/RECIPE/converted.safetensors    the tensors of a pickle, as a recipe converted them; only they are loaded

Models of the Hugging Face Hub stay in the cache of its library. Only `dmlm fetch` downloads anything.
"""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmlm import files, known_files, paths, progress
from dmlm.errors import UserError

CHUNK = 1 << 20  # bytes read from a connection at a time
RANDOM = "random:"  # model="random:hubert": an untrained network, for controls and for tests without weights
CONFIG_FILES = ("*.json", "*.txt", "*.model")  # configuration and vocabulary of a Hub model
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")  # files that `transformers` loads; best first


@dataclass(frozen=True)
class File:
    """A published file."""

    name: str
    sha256: str | None = None  # None: not published; the digest of the first download is recorded and then required
    bytes: int = 0  # size; 0: unknown
    url: str = ""  # empty: a file of the Hub, or one that needs a licence to be accepted first


@dataclass(frozen=True)
class Card:
    """Source, licence and files of published weights."""

    source: str  # address of a page, or a paper
    licence: str
    files: tuple[File, ...] = ()
    hub: str = ""  # id of a model on the Hub, or a model folder
    revision: str = "main"  # commit, tag or branch on the Hub
    by_hand: str = ""  # how the user gets files that may not be downloaded automatically
    converted: str = ""  # name of the file that `convert` makes of the others; only it is loaded and fingerprinted

    @classmethod
    def on_hub(cls, hub: str, licence: str, revision: str, *files: File) -> "Card":
        """Card of a model on the Hub."""
        return cls(f"https://huggingface.co/{hub}", licence, files, hub=hub, revision=revision)

    @property
    def bytes(self) -> int:
        """Size of the download; 0 if it is unknown."""
        return sum(file.bytes for file in self.files) if all(file.bytes for file in self.files) else 0


def card_of(model: str, revision: str | None, known: dict[str, Card]) -> Card | None:
    """Card of the model that a setting names: one in `known`, another one of the Hub, or a folder.

    None for an untrained network. A card of another revision than the known one has no digests.
    """
    if model.startswith(RANDOM):
        return None
    source = model if Path(model).expanduser().is_dir() else f"https://huggingface.co/{model}"
    card = known.get(model) or Card(source, "see its page", hub=model)
    if not card.hub or revision in (None, card.revision):
        return card
    return replace(card, revision=str(revision), files=())


def config_of(recipe: str, model: str, card: Card | None, architecture: dict[str, Any]) -> Any:
    """Read the `transformers` configuration of the model that a setting names, from this machine only.

    Raises:
        UserError: the model is not on this machine, or unknown to `transformers`.
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
    """Return the local folder of a card's Hub model.

    Raises:
        UserError: the model is not on this machine.
    """
    local_folder = hub_folder(card.hub, card.revision)
    if local_folder is None:
        raise UserError(missing_message(card, recipe))
    return local_folder


def verified_folder(card: Card, recipe: str) -> Path:
    """Return the local folder of a card's Hub model after checking its files, which other programs may have changed.

    Raises:
        UserError: the model is not on this machine, or a file does not have the digest of the card.
    """
    local_folder = model_folder(card, recipe)
    for file in card.files:
        path = local_folder / file.name
        if path.is_file():
            remedy = f"remove {path.resolve()} and run: {_command(card, recipe)}"
            _verify(known_files.digest(path), file, path, f"{recipe}: {path}", remedy)
    return local_folder


def folder(recipe: str) -> Path:
    """Folder of the weights of a recipe."""
    return paths.home() / "weights" / recipe


def fetch(card: Card, recipe: str, source: Path | None = None) -> list[Path]:
    """Download the files of a card, or copy them from `source`, and verify them. Returns their paths.

    `source` is a folder or, if the card has only one file, that file. An interrupted download is continued.
    `HF_HUB_OFFLINE` applies to every download, not only to those from the Hub.

    Raises:
        UserError: there is no network, a file does not exist, or a file does not have the digest of the card.
    """
    if card.hub and source is not None:
        raise UserError(f"{recipe}: --from is not for a model of the Hub; set model={source}, if that is its folder.")
    if card.hub:
        return local_files(card, recipe) or [] if _is_folder(card) else _from_hub(card, recipe)
    return [_fetch_file(file, card, recipe, source) for file in card.files]


def _fetch_file(file: File, card: Card, recipe: str, source: Path | None) -> Path:
    """Fetch one file of a card. It is verified before it is moved to its path; a file that is refused is moved away."""
    path = folder(recipe) / file.name
    if source is not None:
        original = source / file.name if source.is_dir() or len(card.files) > 1 else source
        if not original.is_file():
            raise UserError(f"{recipe}: there is no {original}; --from takes the folder that holds {file.name}.")
        if original.resolve() != path.resolve():
            with files.atomic(path) as new:
                shutil.copyfile(original, new)
                remedy = "give that one, nothing was changed here"
                _verify(files.digest(new), file, path, f"{recipe}: {original}", remedy)
            return path
    new, origin = path, str(path)
    if not path.is_file():
        if not file.url:
            raise UserError(f"{recipe}: {file.name} cannot be downloaded unasked; {card.by_hand}")
        _require_online(recipe)
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


def local_files(card: Card, recipe: str) -> list[Path] | None:
    """Paths of the files of a card on this machine, or None if one of them is missing. They are not verified."""
    if not card.hub:
        names = [card.converted] if card.converted else [file.name for file in card.files]
        paths = [folder(recipe) / name for name in names]
        return paths if all(path.is_file() for path in paths) else None
    local_folder = hub_folder(card.hub, card.revision)
    return model_files(local_folder) if local_folder else None


def hub_folder(name: str, revision: str = "main") -> Path | None:
    """Return the folder of a model: `name` itself, if it is a folder, or the Hub's cache; None if not downloaded yet.

    Raises:
        UserError: `name` is neither a folder nor a Hub id.
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


def model_files(model: Path) -> list[Path] | None:
    """Files in a model's folder that `transformers` may open for the network; None without weights or config."""
    weights = [path for pattern in WEIGHT_FILES for path in sorted(model.glob(pattern))]
    if not weights or not (model / "config.json").is_file():
        return None
    return [model / "config.json", *sorted(model.glob("*.index.json")), *weights]


def missing_message(card: Card, recipe: str) -> str:
    """Error message for weights that are not on this machine: what to do about it."""
    if _is_folder(card):
        weights = " or ".join(WEIGHT_FILES)
        return f"{recipe}: {card.hub} lacks config.json or weights ({weights}); give a whole model's folder."
    size = f" ({card.bytes / 1e6:,.0f} MB)" if card.bytes else ""
    return f"{recipe}: its weights{size} are not here; {card.by_hand or f'run: {_command(card, recipe)}'}"


def _command(card: Card, recipe: str) -> str:
    """Command that fetches the weights of a card."""
    return f"dmlm fetch {recipe}{f' model={card.hub}' if card.hub else ''}"


def _is_folder(card: Card) -> bool:
    return bool(card.hub) and Path(card.hub).expanduser().is_dir()


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the digests of several files, in their order."""
    combined = hashlib.sha256()
    for path in paths:
        combined.update(known_files.digest(path).encode())
    return combined.hexdigest()


def _verify(actual: str, file: File, path: Path, origin: str, remedy: str) -> None:
    """Check the digest of a file that is at `path`, or is to be moved there.

    It must be the published digest or, for a file that is published without one, that of the first download.

    Raises:
        UserError: it is another one; the message names `origin`, and the `remedy`.
    """
    first = path.with_name(f"{path.name}.sha256")
    if file.sha256 is None and not first.is_file():
        print(f"{origin}: no digest is published; this one is recorded, and required from now on: {actual}")
        files.write_text(first, actual + "\n")
    wanted, whose = (file.sha256, "") if file.sha256 else (first.read_text("utf-8").strip(), f" as {first} says")
    if actual != wanted:
        raise UserError(
            f"{origin} is not the published file (SHA-256 {actual[:12]}..., wanted {wanted[:12]}...{whose}); {remedy}."
        )


def _require_online(recipe: str) -> None:
    """Raise if `HF_HUB_OFFLINE` is set."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise UserError(f"{recipe}: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or give --from FOLDER.")


def _download(file: File, target: Path) -> Path:
    """Download a file to NAME.part and return that path. After an interruption, only the rest is requested."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    offset = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={offset}-"} if offset else {})
    again = "run the same command again, it goes on from there"
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            content_range = response.headers.get("Content-Range", "")
            wrong_range = response.status == 206 and not content_range.startswith(f"bytes {offset}-")
            total = 0 if wrong_range else _receive(response, file, partial, offset if response.status == 206 else 0)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise UserError(
                f"{file.url} answered {error.code} {error.reason}; see whether the file has moved."
            ) from None
        total = offset  # nothing follows what was downloaded before
        wrong_range = error.headers.get("Content-Range") != f"bytes */{offset}"
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{file.url} cannot be read ({str(error).strip()}); {again}.") from None
    if wrong_range and not offset:
        raise UserError(f"{file.url} sent a part of it, where all was asked for; see whether the file has moved.")
    if wrong_range:  # the partial file cannot be continued: begin again
        partial.unlink()
        return _download(file, target)
    if (size := partial.stat().st_size) < total:
        raise UserError(f"{file.url}: the connection broke after {size:,} of {total:,} bytes; {again}.")
    return partial


def _receive(response: Any, file: File, partial: Path, offset: int) -> int:
    """Append the body of a response to the `offset` bytes of a partial file; returns the size of the complete file.

    Raises:
        UserError: the body is no file, or has no length, so that an interrupted download would look complete.
    """
    if response.headers.get_content_type() == "text/html":
        raise UserError(f"{file.url} answered with a page; see whether the file has moved.")
    if response.length is None and not response.chunked:
        raise UserError(f"{file.url} does not say how long it is; download it otherwise and give it with --from.")
    total = offset + (response.length or 0)
    with partial.open("ab" if offset else "wb") as part, progress.bar(file.name, total, "B", offset) as progress_bar:
        while block := response.read(CHUNK):
            part.write(block)
            progress_bar.update(len(block))
    if partial.stat().st_size == 0:
        raise UserError(f"{file.url} answered with nothing; see whether the file has moved.")
    return total


def _from_hub(card: Card, recipe: str) -> list[Path]:
    """Download the configuration of a Hub model, and its weights in the best format that it has."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    _require_online(recipe)
    try:
        names = HfApi().list_repo_files(card.hub, revision=card.revision)
        formats = [(pattern, pattern.replace("*", "")) for pattern in WEIGHT_FILES]
        weights = next((p for p, name in formats if name in names or f"{name}.index.json" in names), None)
        if weights is None:
            raise UserError(f"{recipe}: {card.hub} holds no weights that are read here ({' or '.join(WEIGHT_FILES)}).")
        snapshot_download(card.hub, revision=card.revision, allow_patterns=[*CONFIG_FILES, weights])
    except HFValidationError:
        raise UserError(f"{recipe}: {card.hub!r} is no Hub id like owner/name.") from None
    except (HTTPError, OSError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{recipe}: {card.hub} cannot be downloaded ({why}); run the same command again.") from None
    return model_files(verified_folder(card, recipe)) or []


def load_centroids(path: Path) -> Any:
    """Read centroids (K, D), float32, from an .npy file without pickled objects.

    Raises:
        UserError: the file is unreadable, or not a matrix of numbers that are finite in single precision.
    """
    import numpy as np

    try:
        array = np.lib.format.open_memmap(path, mode="r")  # mapped: a header with a huge shape must take no memory
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be read as an array of centroids ({error}); give an .npy file.") from None
    is_matrix = array.ndim == 2 and array.size and np.issubdtype(array.dtype, np.floating)
    if not is_matrix or not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise UserError(f"{path} holds {array.dtype} {array.shape}; centroids are a finite matrix (K, D).")
    return np.array(array, np.float32)
