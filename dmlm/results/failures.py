"""What went wrong with a trial: its kind, a sentence, and when; kept in `failures.jsonl`, a line each, for good."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from dmlm.errors import UserError

NAME = "failures.jsonl"


@dataclass(frozen=True)
class Failure:
    """One attempt that did not succeed."""

    kind: str  # user_error, not_finite, out_of_memory, disk_full, lost_worker, interrupted or error
    message: str
    when: str  # UTC
    again: bool  # whether it was started again at once
    trace: str = ""


def record_failure(folder: Path, kind: str, message: str, trace: str, again: bool) -> Failure:
    """Append to the history of a trial; the whole trace too, if it was nobody's mistake."""
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
            file.truncate(file.read().rfind(b"\n") + 1)  # what a kill or a full disk has left of a line
            file.write(json.dumps(asdict(failure), ensure_ascii=False).encode() + b"\n")
    except OSError:
        pass  # the disk may be full: the message is printed in any case
    return failure


def read_failures(folder: Path) -> list[Failure]:
    """Failures of a trial so far, the oldest first; a torn last line is left out.

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
