"""The failures of a trial, one per line of its `failures.jsonl`: kind, sentence and time. Lines are never removed."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from dmlm.errors import UserError

NAME = "failures.jsonl"


@dataclass(frozen=True)
class Failure:
    """A failed attempt to train or evaluate a trial."""

    kind: str  # user_error, not_finite, out_of_memory, disk_full, lost_worker, interrupted or error
    message: str
    when: str  # UTC
    again: bool  # whether the task was started again at once
    trace: str = ""  # traceback, of kind `error` only


def record_failure(folder: Path, kind: str, message: str, trace: str, again: bool) -> Failure:
    """Append a failure to the file in a trial's folder, and return it. The traceback is kept only for kind `error`."""
    message = " ".join(message.split())
    if kind == "disk_full":
        message = f"no space is left for {folder}; free some and run the same command again ({message})"
    trace = trace if kind == "error" else ""
    if trace:
        message += f" (see {folder / NAME})"
    failure = Failure(kind, message, datetime.now(UTC).isoformat(timespec="seconds"), again, trace)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / NAME).open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # cut a partial last line, left by a kill or a full disk
            file.write(json.dumps(asdict(failure), ensure_ascii=False).encode() + b"\n")
    except OSError:
        pass  # the disk may be full: the message is printed in any case
    return failure


def read_failures(folder: Path) -> list[Failure]:
    """Read the failures of a trial, the oldest first; a partial last line is ignored.

    Raises:
        UserError: another line is damaged.
    """
    try:
        *lines, _ = (folder / NAME).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    failures = []
    for number, line in enumerate(lines, start=1):
        try:
            failures.append(Failure(**json.loads(line)))
        except (ValueError, TypeError):
            raise UserError(f"{folder / NAME}, line {number} is damaged; remove the line.") from None
    return failures
