"""Read and write the JSON and JSONL files of a run, with clear errors for missing and partially written ones."""

import json
from pathlib import Path
from typing import Any

from dmlm import files
from dmlm.errors import UserError


def write_object(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    files.write_text(path, json.dumps(values, indent=1) + "\n")


def read_object(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"There is no file {path}; run the grid first, or give the folder that holds its grid.json."
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); restore it or run the grid again.") from None


def read_object_if_written(path: Path) -> dict[str, Any] | None:
    """Read the object in a JSON file; None if the file is missing, cut off or not an object."""
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def read_lines(path: Path, finished: bool) -> list[dict[str, Any]]:
    """Read the records of a JSONL file. While its writer has not finished, a partial last line is ignored.

    Raises:
        UserError: another line is damaged, or the file is missing although its writer has finished.
    """
    if not path.is_file():
        if finished:
            raise UserError(
                f"{path} is missing although {path.parent / 'result.json'} says that it was finished; remove the folder and run the grid again."
            )
        return []
    text = path.read_text("utf-8", errors="replace")
    lines = text.removesuffix("\n").split("\n") if text else []  # not splitlines: a transcript may hold U+2028
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
            records.append(record)
        except ValueError:
            if number == len(lines) and not finished:
                break
            raise UserError(
                f"{path}, line {number}: this is not a JSON object; remove the folder and run the grid again."
            ) from None
    return records
