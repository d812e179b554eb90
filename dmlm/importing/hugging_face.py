"""A dataset of Hugging Face: a folder of `save_to_disk`, a folder of Parquet, or `hf:ID[:CONFIG]` of the Hub.

Columns are those of a table (`dmlm.importing.table`); `audio`, `lips` or `video`, and `image` may hold files. Several splits
become train, val and test; one alone says nothing. Nothing is decoded here, so that no decoder of the package is needed.
"""

import hashlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmlm import files
from dmlm.errors import UserError
from dmlm.importing import table
from dmlm.importing.source import SAVED, Reading, Source, is_dataset, split_named

MEDIA = ("audio", "lips", "image")
HELD = ("Audio", "Video", "Image")  # types of columns that hold files
SUFFIXES = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}


def read(place: Path | str, reading: Reading) -> Source:
    """Read a dataset. Files that are embedded in it are written to `reading.extracted`.

    Raises:
        UserError: the package is missing, there is no such dataset, or a column is missing.
    """
    splits = _splits(place)
    source = Source("hugging_face")
    for name, rows in splits.items():
        split, named = split_named(name) if len(splits) > 1 else None, f"{place}, {name}"
        if len(splits) > 1 and split is None:
            what = f"its split {name!r} is none of train, validation and test"
            text = table.columns_of(list(rows.features), reading, named)["text"]
            for number, _ in enumerate(rows.select_columns([text]), start=1):
                source.lack("no_split", what, f"{named}, row {number}", f"{name} {number}")
            continue
        for where, row in _rows(rows, named, reading):
            table.add_row(source, where, row | ({"split": split} if split else {}), _start(place, reading))
    info = next(iter(splits.values())).info
    if licence := info.license or _licence(place):
        source.card["licence"] = licence
    return source


def _start(place: Path | str, reading: Reading) -> Path:
    return reading.media or (place if isinstance(place, Path) else Path.cwd())


def _splits(place: Path | str) -> dict[str, Any]:
    """Open the splits of a dataset, by name."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        datasets = None
    if not hasattr(datasets, "load_dataset"):  # our folder of that name is found where the package is missing
        raise UserError('Datasets of Hugging Face need a package; run: pip install -e ".[hf]"')
    assert datasets is not None
    if isinstance(place, Path) and not is_dataset(place):
        raise UserError(f"{place} holds no dataset; give a folder of `save_to_disk` or of .parquet files, or hf:ID.")
    try:
        if isinstance(place, str):
            name, _, config = place.removeprefix("hf:").partition(":")
            found = datasets.load_dataset(name, config or None)
        elif any((place / file).is_file() for file in SAVED):
            found = datasets.load_from_disk(str(place))
        else:  # streaming, because it is not copied to a cache then
            found = datasets.load_dataset("parquet", data_dir=str(place), streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{place} cannot be opened as a dataset ({reason}); see docs/own-data.md.") from None
    return dict(found) if isinstance(found, dict) else {"all": found}


def _rows(rows: Any, where: str, reading: Reading) -> Iterator[tuple[str, table.Row]]:
    """Yield every row with its place; its keys are our fields, and a file in it is its path."""
    features = rows.features
    names = table.columns_of(list(features), reading, where)
    for column, feature in features.items():
        if type(feature).__name__ in HELD:
            rows = rows.cast_column(column, type(feature)(decode=False))
    labels = {column: feature.int2str for column, feature in features.items() if hasattr(feature, "int2str")}
    rows = rows.select_columns(list(dict.fromkeys(names.values())))
    for number, row in enumerate(_undamaged(rows, where), start=1):
        fields: table.Row = {}
        for field, column in names.items():
            value = row[column]
            fields[field] = labels[column](value) if column in labels and value is not None else value
        for field in MEDIA:
            if isinstance(held := fields.get(field), dict):
                fields[field] = _file(held, reading)
                if field == "audio" and "id" not in fields:
                    fields["id"] = Path(held.get("path") or f"{number}").stem
        yield f"{where}, row {number}", fields


def _undamaged(rows: Any, where: str) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except (OSError, ValueError) as error:
        raise UserError(f"{where} is damaged ({' '.join(str(error).split())}); get it again.") from None


def _file(held: dict[str, Any], reading: Reading) -> str | None:
    """Return the path of a file in a column, written first if it is embedded; None if there is none."""
    content = held.get("bytes")
    if content is None:
        return held.get("path")
    assert reading.extracted is not None
    suffix = Path(held.get("path") or "").suffix
    suffix = suffix or next((end for start, end in SUFFIXES.items() if content.startswith(start)), "")
    path = reading.extracted / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
    if not path.is_file():
        with files.atomic(path) as temporary:
            temporary.write_bytes(content)
            os.utime(temporary, (0, 0))  # written again, it is the same file
    return str(path.absolute())


def _licence(place: Path | str) -> str | None:
    """Return the licence in the dataset's README, if it says one."""
    from huggingface_hub import DatasetCard
    from huggingface_hub.errors import EntryNotFoundError

    if isinstance(place, Path) and not (place / "README.md").is_file():
        return None
    name = str(place / "README.md") if isinstance(place, Path) else place.removeprefix("hf:").partition(":")[0]
    try:
        licence = DatasetCard.load(name).data.license
    except (EntryNotFoundError, ValueError):  # no README, or none with metadata
        return None
    return licence if isinstance(licence, str) or licence is None else ", ".join(licence)
