"""What a source holds: the clips that it describes, and what it lacks; and which of the known forms a source has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dmlm.corpus.faults import Fault
from dmlm.corpus.manifest import first_reason
from dmlm.errors import UserError, did_you_mean
from dmlm.importing.clip import Clip


@dataclass
class Source:
    """The clips of a source in its order, and faults of those that it does not describe fully."""

    form: str
    clips: list[Clip] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)  # what it says of itself, such as a licence

    def add(self, where: str, **fields: Any) -> None:
        """Add a clip that is described at a place, such as a line of a file.

        Raises:
            UserError: a field is wrong; names the place.
        """
        try:
            self.clips.append(Clip(source=where, **fields))
        except ValidationError as error:
            name, problem = first_reason(error)
            raise UserError(f"{where}: {name}: {problem}; correct it.") from None

    def lack(self, rule: str, what: str, file: object, clip_id: str) -> None:
        """Note that a clip lacks something, by a rule of `dmlm.corpus.faults`."""
        self.faults.append(Fault(rule, what, str(file), None, clip_id))


@dataclass(frozen=True)
class Reading:
    """How a source is read: names of columns, and the folder that relative paths of media start from."""

    columns: dict[str, str] = field(default_factory=dict)  # name in the source by field
    media: Path | None = None  # None: the folder of the file that names them


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
        if (path / "wav.scp").is_file():
            return "kaldi"
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
            return "hugging_face"
        return "folder"
    if path.is_file():
        return "lhotse" if _holds_cuts(path) else "table"
    raise UserError(f"There is no file or folder {source}; a dataset of the Hugging Face Hub is written hf:{source}.")


def _holds_cuts(path: Path) -> bool:
    """Whether a JSONL file, perhaps compressed, holds cuts of lhotse."""
    if path.name.endswith(".jsonl.gz"):
        return True
    with path.open("rb") as file:
        return path.suffix == ".jsonl" and b'"supervisions"' in file.readline()


def open_source(source: str, reading: Reading, form: str | None = None) -> Source:
    """Read what a source says of its clips; media files are not opened.

    Raises:
        UserError: there is no such source, or it cannot be read in this form.
    """
    from dmlm.importing import folder, table

    openers: dict[str, Opener] = {"folder": folder.read, "table": table.read}
    form = form or form_of(source)
    if form not in openers:
        raise UserError(f"--form {form}: {did_you_mean(form, openers)}.")
    where: Path | str = source.removeprefix("hf:") if source.startswith("hf:") else Path(source).expanduser()
    found = openers[form](where, reading)
    if not found.clips and not found.faults:
        raise UserError(f"{source} describes no clip; see docs/own-data.md for the forms that are read.")
    return found


def one_of(columns: Sequence[str], wanted: str) -> str:
    """Return the column that a user named; UserError if there is none of that name."""
    if wanted not in columns:
        raise UserError(f"--column: there is no column {wanted!r}; {did_you_mean(wanted, columns)}.")
    return wanted
