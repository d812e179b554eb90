"""Export all results of a grid as one flat table: a row per evaluation, with its settings, training and scores."""

import csv
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dmlm import files, snr
from dmlm.errors import UserError
from dmlm.results.grid import read_grid
from dmlm.results.records import EvaluationResult

SCORES = ("wer", *(field.name for field in fields(EvaluationResult)))


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return one record per evaluation of a grid; the scores of an unfinished one are None."""
    records = []
    for cell in (grid := read_grid(folder)).cells:
        settings = {f"setting.{key}": value for key, value in _flat(cell.settings)}
        training = {f"training.{key}": value for key, value in _flat(asdict(cell.training) if cell.training else {})}
        for evaluation in cell.evaluations:
            scores = evaluation.result.stored() if evaluation.done else {}
            records.append(
                {
                    "grid": grid.name,
                    "label": cell.label,
                    "variant": cell.variant,
                    "model": cell.model,
                    "template": cell.template,
                    "seed": cell.seed,
                    "snr_db": snr.text(evaluation.snr_db),
                    "permuted": evaluation.permuted or "",
                    "draw": evaluation.draw,
                    "status": "measured" if evaluation.done else "missing",
                    **{name: scores.get(name) for name in SCORES},
                    "trial": cell.trial.path.name,
                    **training,
                    **settings,
                }
            )
    return records


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested values to pairs of a dotted key and a plain value; lists become JSON."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, json.dumps(value) if isinstance(value, list) else value))
    return pairs


def write_table(folder: Path, path: Path, parquet: bool) -> tuple[int, int]:
    """Write the table as CSV or Parquet; return the number of rows, and how many of them are missing.

    Raises:
        UserError: pyarrow, which Parquet needs, is not installed; or `path` is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file.")
    records = rows(folder)
    columns = list(dict.fromkeys(key for record in records for key in record))
    if parquet:
        _write_parquet(path, records, columns)
    else:
        with files.atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)
    return len(records), sum(record["status"] == "missing" for record in records)


def _write_parquet(path: Path, records: list[dict[str, Any]], columns: list[str]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError('Parquet needs the package pyarrow: pip install -e ".[parquet]"') from None
    by_column = {name: [record.get(name) for record in records] for name in columns}
    with files.atomic(path) as temporary:
        parquet.write_table(pyarrow.table(by_column), temporary)
