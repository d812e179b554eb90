"""Export all results of a grid as one flat table: a row per evaluation, with its settings, training and scores."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dmlm import snr
from dmlm.errors import UserError
from dmlm.results.grid import read_grid
from dmlm.results.records import EvaluationResult
from dmlm.score.wer import CharacterCounts

CHARACTERS = tuple(f"characters.{field.name}" for field in fields(CharacterCounts))
APART = ("characters", "left_out")  # fields of a result that are columns of another form
SCORES = ("wer", "cer", *(f.name for f in fields(EvaluationResult) if f.name not in APART), *CHARACTERS)
LEVELS = ("snr_db.train", "snr_db.test", "perceptual.snr_db")  # settings that are lists of SNRs


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return one record per evaluation of a grid; the scores of an unfinished one are None.

    What is left out is what the grid leaves out of the split that is scored: `left_out` utterances, by rule as JSON.
    """
    records = []
    for cell in (grid := read_grid(folder)).cells:
        settings = {f"setting.{key}": _levels(value) if key in LEVELS else value for key, value in _flat(cell.settings)}
        training = {f"training.{key}": value for key, value in _flat(asdict(cell.training) if cell.training else {})}
        left_out = cell.corpus.left_out.get(cell.settings.get("split", "test"), {})
        for evaluation in cell.evaluations:
            scores = dict(_flat(evaluation.result.stored())) if evaluation.done else {}
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
                    "left_out": sum(left_out.values()),
                    "left_out_by_rule": json.dumps(left_out),
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


def _levels(stored: str) -> str:
    """Write a JSON list of SNRs with `clean` for clean speech, which settings in JSON call `Infinity`."""
    return json.dumps(
        [item if isinstance(item, int | float) else snr.text(snr.parse(item)) for item in json.loads(stored)]
    )


def table(records: Sequence[dict[str, Any]], parquet: bool) -> bytes:
    """Return the content of a CSV or Parquet file with these records.

    Raises:
        UserError: pyarrow, which Parquet needs, is not installed.
    """
    columns = list(dict.fromkeys(key for record in records for key in record))
    if parquet:
        return _parquet(records, columns)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def _parquet(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError('Parquet needs the package pyarrow: pip install -e ".[parquet]"') from None
    content = io.BytesIO()
    parquet.write_table(pyarrow.table({name: [record.get(name) for record in records] for name in columns}), content)
    return content.getvalue()
