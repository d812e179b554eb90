"""A table of clips: JSONL, CSV or TSV with a header. A column is called as the field, or as a user says.

    id text audio | lips image ocr speaker category split fold start_s end_s spans translations

Only `text` and `audio` are needed: without `id`, it is the name of the recording, with its times if there are any. `start_s` and
`end_s` cut a longer recording, and the video with it. `spans` and `translations` are JSON in a table of text. Names that other
tables use are known too: `file_name`, `path` (audio), `sentence`, `transcription`, `transcript` (text), `client_id` (speaker).
Other columns are passed over.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmlm.errors import UserError
from dmlm.importing.source import Reading, Source, one_of

FIELDS = ("id", "text", "audio", "lips", "image", "ocr", "speaker", "category", "split", "fold", "start_s", "end_s")
JSON_FIELDS = ("spans", "translations")
ALSO = {  # other names of a field, in order
    "audio": ("file_name", "path", "audio_path", "audio_filepath", "wav"),
    "text": ("sentence", "transcription", "transcript", "normalized_text"),
    "speaker": ("client_id", "speaker_id"),
    "start_s": ("start",),
    "end_s": ("end",),
    "lips": ("video",),
}
SPLITS = {"dev": "val", "valid": "val", "validation": "val", "eval": "test"}
DELIMITERS = {".csv": ",", ".tsv": "\t"}
Row = dict[str, Any]


def read(path: Path | str, reading: Reading) -> Source:
    """Read a table.

    Raises:
        UserError: the file is none of these, a line cannot be read, or a column is missing.
    """
    path = Path(path)
    source = Source("table")
    folder = reading.media or path.parent
    for where, row in _rows(path):
        names = columns_of(list(row), reading)
        if lacking := next((name for name in ("text", "audio") if name not in names), None):
            have = ", ".join(row) or "none"
            raise UserError(f"{where} has no {lacking}; name its column: --column {lacking}=NAME (there are: {have}).")
        add_row(source, where, {name: row[column] for name, column in names.items()}, folder)
    return source


def columns_of(columns: list[str], reading: Reading) -> dict[str, str]:
    """Return which column holds which field."""
    names = {field: one_of(columns, named) for field, named in reading.columns.items()}
    for name in (*FIELDS, *JSON_FIELDS):
        if found := next((column for column in (name, *ALSO.get(name, ())) if column in columns), None):
            names.setdefault(name, found)
    return names


def add_row(source: Source, where: str, row: Row, folder: Path) -> None:
    """Add the clip of a row, whose keys are our fields; relative paths start from a folder."""
    row = {name: value for name, value in row.items() if value is not None and value != ""}
    clip_id = str(row.get("id") or _id_of(row))
    for name, rule in (("audio", "no_audio"), ("text", "no_text")):
        if name not in row:
            source.lack(rule, f"its {name} is empty", where, clip_id)
            return
    fields: Row = {}
    try:
        times = {name: float(row[name]) for name in ("start_s", "end_s") if name in row}
        for name in JSON_FIELDS:
            if name in row:
                fields[name] = json.loads(row[name]) if isinstance(row[name], str) else row[name]
    except ValueError as error:
        raise UserError(f"{where}: {error}; correct it.") from None
    fields |= {name: str(row[name]) for name in ("ocr", "speaker", "category", "fold") if name in row}
    fields |= {"split": SPLITS.get(str(row["split"]), str(row["split"]))} if "split" in row else {}
    if "image" in row:
        fields["image"] = folder / str(row["image"])
    if "lips" in row:
        fields["lips"] = {"path": folder / str(row["lips"])} | times
    audio = {"path": folder / str(row["audio"])} | times
    source.add(where, id=clip_id, text=" ".join(str(row["text"]).split()), audio=(audio,), **fields)


def _id_of(row: Row) -> str:
    """Return an id for a row without one: the path of its recording without suffix, and its times if it is a stretch."""
    name = Path(str(row.get("audio", ""))).with_suffix("").as_posix()
    times = [f"{float(row[key]):.2f}" for key in ("start_s", "end_s") if _is_number(row.get(key))]
    return "-".join([name, *times])


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield every row with its place, file and line."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from None
    if path.suffix in (".jsonl", ".json"):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}, line {number} is not JSON ({error}); correct the line.") from None
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number} is no JSON object; write one clip a line: {{...}}.")
                yield f"{path}, line {number}", row
        return
    if path.suffix not in DELIMITERS:
        raise UserError(f"{path} is no table that is read; give .jsonl, .csv or .tsv, or choose --form.")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=DELIMITERS[path.suffix])
    if path.suffix == ".tsv":  # a text in it may hold a lone "
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    for row in reader:
        if None in row:
            raise UserError(f"{path}, line {reader.line_num} has more columns than the header; correct the line.")
        yield f"{path}, line {reader.line_num}", row
