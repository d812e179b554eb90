"""A table of clips: JSONL, CSV or TSV with a header. A column is called as the field, or as a user says.

    id text audio | lips image ocr speaker category split fold start_s end_s spans translations

Only `text` and `audio` are needed: without `id`, it is the name of the recording, with its times if there are any. `start_s`
and `end_s` (or `duration`) cut a longer recording, and the video with it. `spans` and `translations` are JSON in a table of
text. Names that other tables use are known too (ALSO). Other columns are passed over.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmlm.errors import UserError, did_you_mean
from dmlm.importing.source import SPLIT_NAMES, Reading, Source, lines_of, one_of, text_of

PLAIN = ("ocr", "speaker", "category", "fold")
JSON_FIELDS = ("spans", "translations")
KNOWN = ("id", "text", "audio", "lips", "image", "split", *PLAIN, "start_s", "end_s", "duration", *JSON_FIELDS)
ALSO = {  # other names of a field, in order
    "audio": ("file_name", "path", "audio_path", "audio_filepath", "wav"),
    "text": ("sentence", "transcription", "transcript", "normalized_text"),
    "speaker": ("client_id", "speaker_id"),
    "start_s": ("start", "offset"),
    "end_s": ("end",),
    "lips": ("video",),
}
Row = dict[str, Any]


def read(path: Path | str, reading: Reading) -> Source:
    """Read a table.

    Raises:
        UserError: the file is none of these, a line cannot be read, or a column is missing.
    """
    path = Path(path)
    source = Source("table")
    rows = list(_rows(path))
    names = columns_of(list(dict.fromkeys(key for _, row in rows for key in row)), reading, str(path)) if rows else {}
    source.unread = [column for _, row in rows[:1] for column in row if column not in names.values()]
    for where, row in rows:
        fields = {name: row.get(column) for name, column in names.items()}
        add_row(source, where, fields, reading.media or path.parent)
    return source


def columns_of(columns: list[str], reading: Reading, where: str) -> dict[str, str]:
    """Return which column holds which field.

    Raises:
        UserError: a column that the user names is not there, or is for no field; or none is for the text, or the audio.
    """
    if unknown := next((name for name in reading.columns if name not in KNOWN), None):
        raise UserError(f"--column: there is no field {unknown!r}; {did_you_mean(unknown, KNOWN)}.")
    names = {field: one_of(columns, named) for field, named in reading.columns.items()}
    for name in KNOWN:
        if found := next((column for column in (name, *ALSO.get(name, ())) if column in columns), None):
            names.setdefault(name, found)
    if lacking := [name for name in ("audio", "text") if name not in names]:
        have, options = ", ".join(columns) or "none", " ".join(f"--column {name}=NAME" for name in lacking)
        raise UserError(f"{where} has no {' and no '.join(lacking)}; name the column: {options} (there are: {have}).")
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
        times = _times(row)
        for name in JSON_FIELDS:
            if name in row:
                fields[name] = json.loads(row[name]) if isinstance(row[name], str) else row[name]
    except ValueError as error:
        source.lack("line", str(error), where, clip_id)
        return
    for name in (*PLAIN, "text", "audio", "lips", "image"):
        if not isinstance(row.get(name, ""), str | int | float):
            source.lack("line", f"{name} is {row[name]!r:.50}, and must be text", where, clip_id)
            return
    fields |= {name: str(row[name]) for name in PLAIN if name in row}
    fields |= {"split": SPLIT_NAMES.get(str(row["split"]), str(row["split"]))} if "split" in row else {}
    if "image" in row:
        fields["image"] = folder / str(row["image"])
    if "lips" in row:
        fields["lips"] = {"path": folder / str(row["lips"])} | times
    audio = {"path": folder / str(row["audio"])} | times
    source.add(where, id=clip_id, text=" ".join(str(row["text"]).split()), audio=(audio,), **fields)


def _times(row: Row) -> dict[str, float]:
    """Return start and end of a stretch, as far as they are given; the end may be given as a duration.

    Raises:
        ValueError: one is not a number.
    """
    times: dict[str, float] = {}
    for name in ("start_s", "end_s", "duration"):
        if name in row and (name != "duration" or ("start_s" in times and "end_s" not in times)):
            if not _is_number(row[name]):
                raise ValueError(f"{name} is {row[name]!r}, and no number of seconds")
            times[name] = float(row[name])
    if "duration" in times:
        times["end_s"] = times["start_s"] + times.pop("duration")
    return times


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
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        for where, line in lines_of(path):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where} is not JSON ({error}); write one clip a line: {{...}}.") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} is no JSON object; write one clip a line: {{...}}.")
            yield where, row
        return
    if suffix not in (".csv", ".tsv"):
        raise UserError(f"{path} is no table that is read; give .jsonl, .csv or .tsv, or choose --form.")
    text = text_of(path)
    if suffix == ".tsv":  # a text in it may hold a lone "
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        header = text.partition("\n")[0]
        delimiter = ";" if header.count(";") > header.count(",") else ","  # as spreadsheets write where 1,5 is a number
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or ()
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{path} has two columns {repeated!r}; rename one of them.")
        for row in reader:
            if None in row:
                raise UserError(f"{path}, line {reader.line_num} has more columns than the header; correct the line.")
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; correct the line.") from None
