"""What a source holds: the clips that it describes, and what it lacks; and which of the known forms a source has."""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dmlm.corpus.faults import Fault
from dmlm.corpus.manifest import first_reason
from dmlm.errors import UserError, did_you_mean
from dmlm.importing.clip import Clip

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "dev": "val", "valid": "val", "validation": "val"}
SPLIT_NAMES |= {"test": "test", "eval": "test"}
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")  # one is in every folder of `save_to_disk`
CUT = re.compile(rb'"type": ?"(Mono|Multi|Mixed|Padding)Cut"')


@dataclass
class Source:
    """The clips of a source in its order, and faults of those that it does not describe fully."""

    form: str
    clips: list[Clip] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)  # what it says of itself, such as a licence
    unread: list[str] = field(default_factory=list)  # columns that hold no field

    def add(self, where: str, **fields: Any) -> None:
        """Add a clip that is described at a place, such as a line of a file; a wrong field is a fault of it."""
        try:
            self.clips.append(Clip(source=where, **fields))
        except ValidationError as error:
            name, problem = first_reason(error)
            self.lack("line", f"{name.replace('audio.0', 'audio')}: {problem}", where, str(fields.get("id", "")))

    def lack(self, rule: str, what: str, file: object, clip_id: str) -> None:
        """Note that a clip lacks something, by a rule of `dmlm.corpus.faults`."""
        self.faults.append(Fault(rule, what, str(file), None, clip_id))


@dataclass(frozen=True)
class Reading:
    """How a source is read: names of columns, and the folder that relative paths of media start from."""

    columns: dict[str, str] = field(default_factory=dict)  # name in the source by field
    media: Path | None = None  # None: the folder of the file that names them
    extracted: Path | None = None  # gets the files of media that are embedded in a source, each named by its digest


Opener = Callable[[Path | str, Reading], Source]


def form_of(source: str) -> str:
    """Return the form of a source: `folder`, `table`, `kaldi`, `lhotse` or `hugging_face`.

    Raises:
        UserError: there is no such file or folder.
    """
    path = Path(source).expanduser()
    if source.startswith("hf:"):
        return "hugging_face"
    if path.is_dir():
        if (path / "wav.scp").is_file() or any(path.glob("*/wav.scp")):
            return "kaldi"
        if is_dataset(path):
            return "hugging_face"
        return "lhotse" if any(map(holds_cuts, path.glob("*.jsonl*"))) else "folder"
    if path.is_file():
        return "lhotse" if holds_cuts(path) else "table"
    raise UserError(f"There is no file or folder {source}; a dataset of the Hugging Face Hub is written hf:{source}.")


def is_dataset(folder: Path) -> bool:
    """Whether a folder is one of Hugging Face's `save_to_disk`, or holds Parquet."""
    return any((folder / name).is_file() for name in SAVED) or next(folder.rglob("*.parquet"), None) is not None


def holds_cuts(path: Path) -> bool:
    """Whether a file is JSONL, perhaps compressed, whose first line is a cut of lhotse."""
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return CUT.search(file.readline()) is not None
    except (OSError, EOFError, zlib.error):  # a damaged file, which the reader of cuts names
        return path.suffix == ".gz"


def open_source(source: str, reading: Reading, form: str | None = None) -> Source:
    """Read what a source says of its clips, which come in the order of their ids; media files are not opened.

    Raises:
        UserError: there is no such source, or it cannot be read in this form.
    """
    from dmlm.importing import folder, hugging_face, kaldi, lhotse, table

    openers: dict[str, Opener] = {"folder": folder.read, "table": table.read, "kaldi": kaldi.read}
    openers |= {"lhotse": lhotse.read, "hugging_face": hugging_face.read}
    form = form or form_of(source)
    if form not in openers:
        raise UserError(f"--form {form}: {did_you_mean(form, openers)}.")
    where = source if source.startswith("hf:") else Path(os.path.abspath(Path(source).expanduser()))
    found = openers[form](where, reading)
    if not found.clips and not found.faults:
        raise UserError(f"{source} describes no clip; see docs/own-data.md for the forms that are read.")
    found.clips.sort(key=lambda clip: clip.id)
    return found


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a text file that are not blank, each with its place: file and line.

    Raises:
        UserError: the file is not UTF-8.
    """
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.removesuffix("\r")


def text_of(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        UserError: the file is missing, or is not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from None


def split_named(name: str) -> str | None:
    """Return the split that a name speaks of; None if it speaks of none, or of several.

    >>> split_named("cuts_train-clean-100.jsonl.gz"), split_named("validation"), split_named("train_dev"), split_named("a")
    ('train', 'val', None, None)
    """
    found = {SPLIT_NAMES[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def one_of(columns: Sequence[str], wanted: str) -> str:
    """Return the column that a user named; UserError if there is none of that name."""
    if wanted not in columns:
        raise UserError(f"--column: there is no column {wanted!r}; {did_you_mean(wanted, columns)}.")
    return wanted
