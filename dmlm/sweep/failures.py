"""What went wrong with a trial: its kind, a sentence, and when; kept in `failures.jsonl`, a line each, for good."""

import errno
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from dmlm.errors import NotFinite, OutOfMemory, UserError
from dmlm.sweep.engines import LostWorker


@dataclass(frozen=True)
class Failure:
    """One attempt that did not succeed."""

    kind: str  # user_error, not_finite, out_of_memory, disk_full, lost_worker, interrupted or error
    message: str
    when: str  # UTC
    again: bool  # whether it was started again at once
    trace: str = ""


def kind_of(error: BaseException | None) -> str:
    """Which kind of failure an exception is."""
    if isinstance(error, NotFinite):
        return "not_finite"
    if isinstance(error, OutOfMemory | MemoryError):
        return "out_of_memory"
    if isinstance(error, UserError):
        return "user_error"
    if isinstance(error, LostWorker):
        return "lost_worker"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    return "error"


def record(folder: Path, kind: str, message: str, trace: str, again: bool) -> Failure:
    """Append to the history of a trial; the whole trace too, if it was nobody's mistake."""
    message = " ".join(message.split())
    if kind == "disk_full":
        message = f"no space is left for {folder}; free some and run the same command again ({message})"
    trace = trace if kind == "error" else ""
    if trace:
        message += f" (see {folder / 'failures.jsonl'})"
    failure = Failure(kind, message, datetime.now(UTC).isoformat(timespec="seconds"), again, trace)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "failures.jsonl").open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # what a kill or a full disk has left of a line
            file.write(json.dumps(asdict(failure), ensure_ascii=False).encode() + b"\n")
    except OSError:
        pass  # the disk may be full: the message is printed in any case
    return failure


def history(folder: Path) -> list[Failure]:
    """Failures of a trial so far, the oldest first; a torn last line is left out."""
    try:
        *lines, _ = (folder / "failures.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Failure(**json.loads(line)))
        except (ValueError, TypeError):
            raise UserError(f"{folder / 'failures.jsonl'}, line {number} is damaged; remove the line.") from None
    return found
