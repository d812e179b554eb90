"""The manifest, one utterance per line (JSONL), and the corpus card beside it. Errors give the line number."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dmlm import files
from dmlm.errors import UserError
from dmlm.modalities import FILES

Split = Literal["train", "val", "test"]
NonEmpty = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Utterance(BaseModel):
    """One line of the manifest. Media are paths relative to the manifest; noise may be added inside `spans`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: NonEmpty
    split: Split
    text: NonEmpty
    audio: NonEmpty
    lips: NonEmpty | None = None
    image: NonEmpty | None = None
    ocr: str | None = None  # text known to be on the image; a reader recipe may use or ignore it
    speaker: str | None = None
    duration_s: float = Field(gt=0)
    spans: tuple[tuple[float, float], ...] = ()  # start and end of each spoken sentence, in seconds

    @model_validator(mode="after")
    def _spans_lie_inside(self) -> "Utterance":
        for start_s, end_s in self.spans:
            if not 0 <= start_s < end_s <= self.duration_s + 1e-6:
                raise ValueError(f"span [{start_s}, {end_s}] does not lie inside the clip of {self.duration_s} s")
        return self


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: utterances in manifest order, and the card (`name, version, licence, digest, settings`)."""

    folder: Path
    utterances: tuple[Utterance, ...]
    card: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest lines and every media file."""
        return str(self.card["digest"])

    @property
    def label(self) -> str:
        """Readable and unique name: `name-digest8`."""
        return f"{self.card['name']}-{self.digest[:8]}"

    def split(self, split: str) -> list[Utterance]:
        return [utterance for utterance in self.utterances if utterance.split == split]

    def media(self, utterance: Utterance, kind: str) -> Path:
        """Return the path of the `audio`, `lips` or `image` file of an utterance.

        Raises:
            UserError: the utterance has no such file.
        """
        name = getattr(utterance, kind)
        if name is None:
            raise UserError(
                f"{self.folder}/manifest.jsonl: utterance {utterance.id!r} has no {kind}; add it or drop that modality."
            )
        return self.folder / name


def _reason(error: ValidationError) -> str:
    """Return the first validation error as `field: what is wrong`."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {first['msg']}" if field else str(first["msg"])


def read_utterances(path: Path) -> tuple[Utterance, ...]:
    """Read and check a manifest.

    Raises:
        UserError: a line is not JSON, a field is wrong, an id is repeated, or a media file is missing or empty. The
            message names the file and the line.
    """
    if not path.is_file():
        raise UserError(f"There is no manifest at {path}; prepare the corpus first.")
    utterances: list[Utterance] = []
    lines_by_id: dict[str, int] = {}
    lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: a transcript may hold U+2028
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            utterance = Utterance.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {_reason(error)}; correct the line.") from None
        if utterance.id in lines_by_id:
            raise UserError(
                f"{path}, line {number}: id {utterance.id!r} is already used on line {lines_by_id[utterance.id]}; ids must differ."
            )
        for kind in FILES:
            name = getattr(utterance, kind)
            if name and not ((file := path.parent / name).is_file() and file.stat().st_size):
                raise UserError(
                    f"{path}, line {number}: {kind} file {file} is missing or empty; restore it,"
                    " or remove it and corpus.json and run the same command, which makes it again."
                )
        lines_by_id[utterance.id] = number
        utterances.append(utterance)
    if not utterances:
        raise UserError(f"{path} holds no utterance.")
    return tuple(utterances)


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_bytes())
    except ValueError:
        card = None
    if not isinstance(card, dict) or not {"name", "digest", "utterances"} <= card.keys():
        raise UserError(f"{path} is damaged; remove it and run the same command, which makes it again.")
    return card


def read_corpus(folder: Path) -> Corpus:
    """Open a prepared corpus (a folder with `manifest.jsonl` and `corpus.json`).

    Cached tokens are looked up by the digest in `corpus.json` and the position of an utterance, so the manifest must be
    the one that `corpus.json` was written for.

    Raises:
        UserError: a file is missing or damaged, or the manifest has changed.
    """
    path, manifest = folder / "corpus.json", folder / "manifest.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} has no corpus.json, so its preparation did not finish; run the same command again.")
    card = _card(path)
    # an earlier version wrote no "manifest" digest
    if not manifest.is_file() or card.get("manifest") not in (None, files.digest(manifest)):
        raise UserError(
            f"{manifest} is missing, or was changed after the corpus was made; restore it, or remove {path} and run the"
            " same command, which makes both again."
        )
    return Corpus(folder, read_utterances(manifest), card)


def write_corpus(folder: Path, utterances: Iterable[Utterance], card: dict[str, Any]) -> Corpus:
    """Write the manifest, then the card with the content digest. The card comes last: it marks the corpus as complete."""
    lines = [utterance.model_dump_json(exclude_none=True) for utterance in utterances]
    files.write_text(folder / "manifest.jsonl", "\n".join(lines) + "\n")
    checked = read_utterances(folder / "manifest.jsonl")
    digest = hashlib.sha256()
    for line, utterance in zip(lines, checked, strict=True):
        digest.update(line.encode())
        for kind in FILES:
            if name := getattr(utterance, kind):
                digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    counts = {split: sum(u.split == split for u in checked) for split in ("train", "val", "test")}
    manifest = files.digest(folder / "manifest.jsonl")
    full_card = {**card, "utterances": counts, "digest": digest.hexdigest(), "manifest": manifest}
    files.write_text(folder / "corpus.json", json.dumps(full_card, indent=2, ensure_ascii=False) + "\n")
    return Corpus(folder, checked, full_card)
