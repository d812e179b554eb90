"""The manifest, one utterance per line (JSONL), and the corpus card beside it. Errors give the line number.

manifest.jsonl    the utterances
media.sha256      the digest of every media file when the corpus was made, as `sha256sum --check` reads it
corpus.json       the card: name, version, licence, digests; written last, it marks the corpus as complete
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dmlm import files, known_files
from dmlm.errors import UserError
from dmlm.modalities import FILES

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
NonEmpty = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
FilePath = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00-\x1f\x7f]+$")]
CARD_KEYS = ("name", "version", "licence")  # what a recipe must say of its corpus


class Utterance(BaseModel):
    """One line of the manifest. Media are paths relative to the manifest; noise may be added inside `spans`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: NonEmpty
    split: Split
    text: NonEmpty
    audio: FilePath
    lips: FilePath | None = None
    image: FilePath | None = None
    ocr: str | None = None  # text known to be on the image; a reader recipe may use or ignore it
    speaker: str | None = None
    category: str | None = None  # such as the kind of thing that is spoken of
    translations: dict[str, str] | None = None  # the same sentence in other languages, by language code
    fold: int | None = Field(default=None, ge=0)  # of a corpus that is tested part by part, see `in_fold`
    duration_s: float = Field(gt=0)
    spans: tuple[tuple[float, float], ...] = ()  # start and end of each spoken sentence, in seconds

    @property
    def media(self) -> dict[str, str]:
        """Its files as the manifest names them, by field: `audio`, and `lips` and `image` if it has them."""
        return {kind: name for kind in FILES if (name := getattr(self, kind))}


@dataclass(frozen=True)
class Line:
    """A line of a manifest: its number, and either an utterance or what is wrong with it."""

    number: int
    utterance: Utterance | None
    id: str | None = None  # as far as it can be read
    field: str = ""  # the first wrong one
    problem: str = ""


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: utterances in manifest order, and the card (`name, version, licence, digest, settings`)."""

    folder: Path
    utterances: tuple[Utterance, ...]
    card: dict[str, Any]
    unused: tuple[tuple[Utterance, str], ...] = ()  # utterances that are left out, each with the rule that it breaks

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest lines and every media file."""
        return str(self.card["digest"])

    @property
    def label(self) -> str:
        """Readable and unique name: `name-digest8`."""
        return f"{self.card['name']}-{self.digest[:8]}"

    @property
    def left_out(self) -> dict[str, str]:
        """The rule of each utterance that is left out, by its id."""
        return {utterance.id: rule for utterance, rule in self.unused}

    @property
    def left_out_counts(self) -> dict[str, dict[str, int]]:
        """How many utterances are left out, by split and rule."""
        counts: dict[str, dict[str, int]] = {}
        for utterance, rule in self.unused:
            of_split = counts.setdefault(utterance.split, {})
            of_split[rule] = of_split.get(rule, 0) + 1
        return counts

    def lacking_counts(self, fields: Iterable[str]) -> dict[str, dict[str, int]]:
        """Return how many utterances lack each of some fields, such as `lips`, by split and field; none where all have it."""
        counts = {
            split: {field: sum(getattr(u, field) is None for u in self.split(split)) for field in fields}
            for split in SPLITS
        }
        some = {split: {field: n for field, n in of_split.items() if n} for split, of_split in counts.items()}
        return {split: of_split for split, of_split in some.items() if of_split}

    @property
    def counts(self) -> dict[str, int]:
        """How many utterances are used, by split."""
        return {split: sum(utterance.split == split for utterance in self.utterances) for split in SPLITS}

    @cached_property
    def media_digests(self) -> dict[str, str]:
        """SHA-256 of each media file when the corpus was made, by its path in the manifest.

        Raises:
            UserError: `media.sha256` is missing or was changed.
        """
        path = self.folder / "media.sha256"
        if "media" not in self.card:  # an earlier version recorded none: take those of now
            names = dict.fromkeys(name for utterance in self.utterances for name in utterance.media.values())
            of_now = known_files.digests(self.folder / name for name in names)
            return {name: of_now[self.folder / name] for name in names if self.folder / name in of_now}
        if not path.is_file() or files.digest(path) != self.card["media"]:
            raise UserError(
                f"{path} is missing or was changed; restore it, or remove {self.folder / 'corpus.json'} and run the same"
                " command, which makes both again."
            )
        lines = path.read_bytes().decode("utf-8").split("\n")
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines if line)}

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


def first_reason(error: ValidationError) -> tuple[str, str]:
    """Return the field of the first validation error, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    name, problem = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    if name == "split":
        problem += f" (got {first['input']!r})"
    if name == "text" and first["type"] == "string_too_short":
        problem = "the text is empty"
    return name, problem


def read_lines(path: Path) -> Iterator[Line]:
    """Yield every line of a manifest that is not blank.

    Raises:
        UserError: there is no such file, or it is not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"There is no manifest at {path}; prepare the corpus first.")
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:  # a transcript may hold U+2028, or a lone \r
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    utterance = Utterance.model_validate_json(line)
                except ValidationError as error:
                    yield Line(number, None, _id_of(line), *first_reason(error))
                else:
                    yield Line(number, utterance, utterance.id)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from None


def _id_of(line: str) -> str | None:
    try:
        return str(json.loads(line)["id"])
    except (ValueError, TypeError, KeyError):
        return None


def read_utterances(path: Path) -> tuple[Utterance, ...]:
    """Read a manifest; every line must be right. Media files are not looked at (see `dmlm.corpus.check`).

    Raises:
        UserError: a line is not JSON, a field is wrong, or an id is repeated. The message names the file and the line.
    """
    utterances: list[Utterance] = []
    lines_by_id: dict[str, int] = {}
    for line in read_lines(path):
        if line.utterance is None:
            problem = f"{line.field}: {line.problem}" if line.field else line.problem
            raise UserError(f"{path}, line {line.number}: {problem}; correct the line.")
        first = lines_by_id.setdefault(line.utterance.id, line.number)
        if first != line.number:
            raise UserError(
                f"{path}, line {line.number}: id {line.id!r} is already used on line {first}; ids must differ."
            )
        utterances.append(line.utterance)
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


def read_corpus(folder: Path, left_out: Mapping[str, str] | None = None, fold: int | None = None) -> Corpus:
    """Open a prepared corpus (a folder with `manifest.jsonl` and `corpus.json`), without the utterances `left_out`.

    Args:
        folder: of the corpus
        left_out: rule by id of the utterance
        fold: which fold is tested, see `in_fold`; None: the splits of the manifest

    Raises:
        UserError: a file is missing or damaged, the manifest has changed, or the corpus has no such fold.
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
    corpus = Corpus(folder, read_utterances(manifest), card)
    return without(corpus if fold is None else in_fold(corpus, fold), left_out or {})


def in_fold(corpus: Corpus, fold: int) -> Corpus:
    """Return a corpus of K folds with one of them as test split, the next one as val, and the others to train on.

    Over all folds, each utterance is tested once, by a model that has not seen it.

    Raises:
        UserError: the corpus has no such fold, or an utterance without one.
    """
    count = len({utterance.fold for utterance in corpus.utterances})
    if any(utterance.fold is None for utterance in corpus.utterances):
        raise UserError(
            f"corpus.fold={fold}: {corpus.folder} has no folds; import it with --folds K, or leave fold out."
        )
    if not fold < count:
        raise UserError(f"corpus.fold={fold}: {corpus.folder} has folds 0 to {count - 1}; give one of them.")
    split_of: dict[int | None, Split] = {(fold + 1) % count: "val", fold: "test"}
    split = [u.model_copy(update={"split": split_of.get(u.fold, "train")}) for u in corpus.utterances]
    counts = {name: sum(u.split == name for u in split) for name in SPLITS}
    return Corpus(corpus.folder, tuple(split), {**corpus.card, "utterances": counts})


def without(corpus: Corpus, left_out: Mapping[str, str]) -> Corpus:
    """Return a corpus without some utterances; `left_out` gives the rule for each by its id."""
    kept = tuple(utterance for utterance in corpus.utterances if utterance.id not in left_out)
    unused = tuple((utterance, left_out[utterance.id]) for utterance in corpus.utterances if utterance.id in left_out)
    return Corpus(corpus.folder, kept, corpus.card, corpus.unused + unused)


def write_corpus(folder: Path, utterances: Iterable[Utterance], card: Mapping[str, Any]) -> Corpus:
    """Write the manifest and the digests of the media, then the card with the content digest.

    Raises:
        UserError: the card says no name, version or licence, an id is repeated, or a media file is missing.
    """
    if lacking := [key for key in CARD_KEYS if not card.get(key)]:
        raise UserError(f"The card of the corpus in {folder} has no {lacking[0]}; give {', '.join(CARD_KEYS)}.")
    lines = [utterance.model_dump_json(exclude_none=True) for utterance in utterances]
    files.write_text(folder / "manifest.jsonl", "\n".join(lines) + "\n")
    checked = read_utterances(folder / "manifest.jsonl")
    digests = _digests_of(folder, checked)
    files.write_text(folder / "media.sha256", "".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    full_card = {
        **card,
        "utterances": {split: sum(u.split == split for u in checked) for split in SPLITS},
        "digest": content_digest(lines, checked, digests),
        "manifest": files.digest(folder / "manifest.jsonl"),
        "media": files.digest(folder / "media.sha256"),
    }
    files.write_text(folder / "corpus.json", json.dumps(full_card, indent=2, ensure_ascii=False) + "\n")
    return Corpus(folder, checked, full_card)


def content_digest(lines: Iterable[str], utterances: Iterable[Utterance], digests: Mapping[str, str]) -> str:
    """Return the SHA-256 over the lines of a manifest and the digests of the media that each names."""
    combined = hashlib.sha256()
    for line, utterance in zip(lines, utterances, strict=True):
        combined.update(line.encode())
        for name in utterance.media.values():
            combined.update(bytes.fromhex(digests[name]))
    return combined.hexdigest()


def _digests_of(folder: Path, utterances: Iterable[Utterance]) -> dict[str, str]:
    """Return the SHA-256 of every media file as it is now, by its path in the manifest.

    Raises:
        UserError: a file is missing or empty; the message names it, its utterance and how many there are.
    """
    owners = {name: utterance.id for utterance in utterances for name in utterance.media.values()}
    digests = known_files.digests(folder / name for name in owners)
    bad = [name for name in owners if digests.get(folder / name) in (None, EMPTY)]
    if bad:
        raise UserError(
            f"{folder / bad[0]}, of utterance {owners[bad[0]]!r}, is missing or empty ({len(bad)} such files in all);"
            " restore it, or leave the utterance out of the manifest."
        )
    return {name: digests[folder / name] for name in owners}


EMPTY = hashlib.sha256().hexdigest()
