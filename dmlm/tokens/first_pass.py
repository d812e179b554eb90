"""What a first pass over the audio understood, in a folder that `dmlm grid transcribe` or any other recogniser writes.

    FOLDER/CONDITION/SPLIT.jsonl   a line {"id": ..., "text": ...} for each utterance
    FOLDER/first_pass.json         whose transcripts these are, if the recogniser says so

CONDITION is the key of the hearing condition, `clean` or one such as `snr-10-1a2b3c4d`.
"""

import codecs
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlm.errors import UserError
from dmlm.weights import published

CARD = "first_pass.json"


def place(folder: Path, condition: str, split: str) -> Path:
    """Where the transcripts of a split under a condition are."""
    return folder.expanduser() / condition / f"{split}.jsonl"


def digest(folder: Path) -> str:
    """SHA-256 over the transcripts of a folder.

    Raises:
        UserError: there are none.
    """
    folder = folder.expanduser()
    paths = sorted(folder.glob("*/*.jsonl"))
    if not paths:
        raise UserError(
            f"first_pass: {folder} has no transcripts CONDITION/SPLIT.jsonl; run: dmlm grid transcribe GRID --to {folder}"
        )
    named = [f"{path.relative_to(folder).as_posix()} {published.file_digest(path)}" for path in paths]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def check(folder: Path, corpus: str) -> None:
    """See that the transcripts are of this corpus, as far as they say.

    Raises:
        UserError: they are of another.
    """
    card = read_card(folder.expanduser())
    if card and card.get("corpus") != corpus:
        raise UserError(
            f"first_pass: {folder} is about corpus {card.get('corpus')}, not {corpus}; transcribe this one."
        )


def read_card(folder: Path) -> dict[str, Any]:
    """What a folder says of itself, if anything.

    Raises:
        UserError: it is damaged.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return dict(card)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"first_pass: {path} is damaged ({error}); make the folder again.") from None


def said(folder: Path, condition: str, split: str, ids: Sequence[str]) -> list[str]:
    """The transcript of each of these utterances.

    Raises:
        UserError: no such file, a line that is none, or an utterance that is not in it.
    """
    path = place(folder, condition, split)
    if not path.is_file():
        raise UserError(
            f"first_pass: there is no {path}; run dmlm grid transcribe for a grid of the same noise, levels and draws."
        )
    found = _read(path, published.file_digest(path))
    for name in ids:
        if name not in found:
            raise UserError(f"first_pass: {path} has no line of utterance {name!r}; make the file again.")
    return [found[name] for name in ids]


def whole(path: Path, ids: Sequence[str]) -> bool:
    """Whether a file is there and has exactly these utterances."""
    try:
        return path.is_file() and list(_read(path, published.file_digest(path))) == list(ids)
    except UserError:
        return False  # a damaged one is made again


@functools.lru_cache(maxsize=2)  # shards of one split come one after the other
def _read(path: Path, digest: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            record = json.loads(line)
            name, text = record["id"], record["text"]
        except (ValueError, KeyError, TypeError):
            name, text = None, None
        if not isinstance(name, str) or not isinstance(text, str) or name in found:
            raise UserError(
                f'first_pass: {path}, line {number} is not {{"id": "...", "text": "..."}} of an utterance of its own.'
            )
        found[name] = text
    return found
