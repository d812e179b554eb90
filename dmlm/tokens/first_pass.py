"""First-pass transcripts: what a recogniser understood from the audio, in a folder that `dmlm grid transcribe` writes.

Any other recogniser can write the same files:

    FOLDER/CONDITION/SPLIT.jsonl   a line {"id": ..., "text": ...} for each utterance
    FOLDER/first_pass.json         optional card: which corpus and which model the transcripts are from

CONDITION is the key of the noise condition, `clean` or one such as `snr-10-1a2b3c4d`.
"""

import codecs
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlm import known_files
from dmlm.errors import UserError

CARD = "first_pass.json"


def transcripts_path(folder: Path, condition: str, split: str) -> Path:
    """Return the path of the transcripts of a split under a condition."""
    return folder.expanduser() / condition / f"{split}.jsonl"


def digest(folder: Path) -> str:
    """SHA-256 over the transcripts of a folder.

    Raises:
        UserError: the folder has no transcripts.
    """
    folder = folder.expanduser()
    paths = sorted(folder.glob("*/*.jsonl"))
    if not paths:
        raise UserError(
            f"first_pass: {folder} has no transcripts CONDITION/SPLIT.jsonl; run: dmlm grid transcribe GRID --to {folder}"
        )
    lines = [f"{path.relative_to(folder).as_posix()} {known_files.digest(path)}" for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check(folder: Path, corpus: str) -> None:
    """Check that the transcripts are of this corpus (a label), if the folder has a card.

    Raises:
        UserError: the card names another corpus.
    """
    card = read_card(folder.expanduser())
    if card and card.get("corpus") != corpus:
        raise UserError(
            f"first_pass: {folder} is about corpus {card.get('corpus')}, not {corpus}; transcribe this one."
        )


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of a folder; empty if there is none.

    Raises:
        UserError: the card is damaged.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return dict(card)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"first_pass: {path} is damaged ({error}); make the folder again.") from None


def read_transcripts(folder: Path, condition: str, split: str, ids: Sequence[str]) -> list[str]:
    """Read the transcripts of these utterances, in the order of `ids`.

    Raises:
        UserError: the file is missing, a line is malformed, or an utterance is not in the file.
    """
    path = transcripts_path(folder, condition, split)
    if not path.is_file():
        raise UserError(
            f"first_pass: there is no {path}; run dmlm grid transcribe for a grid of the same noise, levels and draws."
        )
    transcripts = _read(path, known_files.digest(path))
    for name in ids:
        if name not in transcripts:
            raise UserError(f"first_pass: {path} has no line of utterance {name!r}; make the file again.")
    return [transcripts[name] for name in ids]


def is_complete(path: Path, ids: Sequence[str]) -> bool:
    """Whether the file exists and has exactly these utterances, in this order."""
    try:
        return path.is_file() and list(_read(path, known_files.digest(path))) == list(ids)
    except UserError:
        return False  # a damaged file is written again


@functools.lru_cache(maxsize=2)  # the shards of a split are encoded one after the other
def _read(path: Path, digest: str) -> dict[str, str]:
    """Transcripts by utterance id; `digest` is that of the file, so that a changed file is read again."""
    transcripts: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            record = json.loads(line)
            name, text = record["id"], record["text"]
        except (ValueError, KeyError, TypeError):
            name, text = None, None
        if not isinstance(name, str) or not isinstance(text, str) or name in transcripts:
            raise UserError(
                f'first_pass: {path}, line {number} is not {{"id": "...", "text": "..."}}, or repeats an id.'
            )
        transcripts[name] = text
    return transcripts
