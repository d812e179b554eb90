"""What a first pass over the audio understood: FOLDER/CONDITION/SPLIT.jsonl, a line {"id": ..., "text": ...} for each
utterance. `dmlm grid transcribe` writes such a folder; any other recogniser may.

CONDITION is the key of the hearing condition, `clean` or one such as `snr-10-1a2b3c4d`, so what was heard in noise is told
from what was heard without.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from dmlm.errors import UserError
from dmlm.tokens import weights


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
        raise UserError(f"first_pass: {folder} has no transcripts CONDITION/SPLIT.jsonl; run: dmlm grid transcribe")
    named = [f"{path.relative_to(folder).as_posix()} {weights.file_digest(path)}" for path in paths]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


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
    found = _read(path, weights.file_digest(path))
    for name in ids:
        if name not in found:
            raise UserError(f"first_pass: {path} has no line of utterance {name!r}; make the file again.")
    return [found[name] for name in ids]


@functools.lru_cache(maxsize=2)  # shards of one split come one after the other
def _read(path: Path, digest: str) -> dict[str, str]:
    found = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            found[record["id"]] = str(record["text"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f'first_pass: {path}, line {number} is not {{"id": ..., "text": ...}}.') from None
    return found
