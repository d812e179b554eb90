"""The reading side of a grid on disk: `grid.json`, the trials and evaluations that it names, and what is missing.

A folder that has no whole `result.json` yet is a missing cell, whatever else it holds. Nothing here imports torch.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dmlm.errors import UserError
from dmlm.score.wer import Counts
from dmlm.sequence.template import Template

SCHEMA = 1
CLEAN_DB = math.inf
MOST_DEVIATION_DB = 0.1  # a cell whose measured SNR is off by more is refused
COUNTS = ("substitutions", "deletions", "insertions", "reference_words")
SCORED = ("wer", *COUNTS, "utterances", "decode_s")  # what is read of the result of an evaluation,
TRAINED = ("parameters", "steps", "train_s")  # and of a training


@dataclass(frozen=True)
class Utterance:
    """One line of `utterances.jsonl`: what was said, what was recognised, and the edit operations between the two."""

    id: str
    reference: str
    hypothesis: str
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    snr_db_measured: float | None
    speaker: str | None

    @property
    def errors(self) -> int:
        """S + D + I."""
        return self.substitutions + self.deletions + self.insertions


def stored(path: Path, needed: Sequence[str]) -> dict[str, Any] | None:
    """The object in a JSON file; None where it is missing, torn or lacks a value: then it is to be written again."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and all(found.get(key) is not None for key in needed) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"There is no file {path}; run the grid first, or give the folder that holds its grid.json."
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); restore it or run the grid again.") from None


def _lines(path: Path, finished: bool) -> list[dict[str, Any]]:
    """Records of a JSONL file; a torn last line is forgiven only while the writer has not finished."""
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


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model under one condition: SNR (`math.inf` is clean), and which modality was permuted, in which draw."""

    snr_db: float
    permuted: str | None
    draw: int
    folder: Path

    @property
    def done(self) -> bool:
        """`result.json` is written last, so it is the only sign; a damaged one is none."""
        return stored(self.folder / "result.json", SCORED) is not None

    @cached_property
    def result(self) -> dict[str, Any]:
        """Totals and `decode_s`, as stored when it finished."""
        return dict(_json(self.folder / "result.json"))

    @cached_property
    def utterances(self) -> tuple[Utterance, ...]:
        """Every utterance of a finished evaluation; of an unfinished one those written so far.

        Raises:
            UserError: naming the file: a torn line, a missing field, a total that does not match, or an SNR that is
                off by more than 0.1 dB.
        """
        path, done = self.folder / "utterances.jsonl", self.done
        found = []
        for number, record in enumerate(_lines(path, done), start=1):
            try:
                found.append(Utterance(**{name: record[name] for name in Utterance.__dataclass_fields__}))
            except KeyError as error:
                raise UserError(
                    f"{path}, line {number}: {error} is missing; remove the folder and run the grid again."
                ) from None
        if done:
            self._check(found)
        return tuple(found)

    def _check(self, found: list[Utterance]) -> None:
        for name, sum_of in [("utterances", len(found)), *((n, sum(getattr(u, n) for u in found)) for n in COUNTS)]:
            if self.result[name] != sum_of:
                raise UserError(
                    f"{self.folder / 'result.json'} says {name} = {self.result[name]}, but utterances.jsonl beside it"
                    f" adds up to {sum_of}; remove the folder and run the grid again."
                )
        for utterance in found:
            if abs(self.deviation_db(utterance)) > MOST_DEVIATION_DB:
                raise UserError(
                    f"{self.folder / 'utterances.jsonl'}: utterance {utterance.id!r} was heard at"
                    f" {utterance.snr_db_measured:.2f} dB instead of {self.snr_db:g} dB; mix its noise again, this"
                    " evaluation cannot be used."
                )

    def deviation_db(self, utterance: Utterance) -> float:
        """Measured less nominal SNR; NaN where nothing was measured, as in clean speech."""
        measured = utterance.snr_db_measured
        return math.nan if measured is None or self.snr_db == CLEAN_DB else measured - self.snr_db

    @cached_property
    def counts(self) -> Counts:
        """Errors and reference words, one item an utterance."""
        return Counts(
            tuple(utterance.id for utterance in self.utterances),
            np.array([utterance.errors for utterance in self.utterances], dtype=float),
            np.array([utterance.reference_words for utterance in self.utterances], dtype=float),
        )


@dataclass(frozen=True, eq=False)
class Cell:
    """One trained model of the grid and its evaluations."""

    model: str
    template: str
    seed: int
    label: str
    variant: str  # what else sets the cell apart from one of the same model, template and seed; mostly empty
    trial: Path
    evaluations: tuple[Evaluation, ...]
    settings: dict[str, Any]  # of the whole cell; empty where an older version wrote the grid

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input modalities in order, by letter."""
        return Template.parse(self.template).letters

    @cached_property
    def training(self) -> dict[str, Any] | None:
        """Parameters, steps, time and speed of a finished training, else None."""
        return stored(self.trial / "result.json", TRAINED)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Lines of `train.jsonl`: step, loss, loss by modality, learning rate."""
        return _lines(self.trial / "train.jsonl", self.training is not None)


@dataclass(frozen=True, eq=False)
class GridResults:
    """A grid as it stands on disk, finished or not."""

    folder: Path
    name: str
    corpus: dict[str, Any]
    normaliser: str
    noise: dict[str, Any]
    readers: dict[str, str]
    baseline: str
    cells: tuple[Cell, ...]
    about: str = ""  # the question

    @property
    def models(self) -> list[str]:
        """In the order of the grid."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def snrs_db(self) -> list[float]:
        """Every condition of the grid from easy to hard: clean (`math.inf`) first, the lowest SNR last."""
        return sorted({evaluation.snr_db for cell in self.cells for evaluation in cell.evaluations}, reverse=True)

    def find(
        self, model: str, template: str, snr_db: float, permuted: str | None = None, variant: str | None = None
    ) -> list[Evaluation]:
        """Evaluations of a condition, finished or not: one for each training seed and each draw of the permutation."""
        return [
            evaluation
            for cell in self.cells
            if cell.model == model and cell.template == template and variant in (None, cell.variant)
            for evaluation in cell.evaluations
            if evaluation.snr_db == snr_db and evaluation.permuted == permuted
        ]

    @property
    def missing(self) -> list[tuple[Cell, Evaluation]]:
        """Evaluations that the grid asks for and that are not finished."""
        return [(cell, evaluation) for cell in self.cells for evaluation in cell.evaluations if not evaluation.done]

    @property
    def asked(self) -> int:
        """Evaluations that the grid asks for."""
        return sum(len(cell.evaluations) for cell in self.cells)


def _evaluation(record: dict[str, Any], folder: Path) -> Evaluation:
    snr_db = CLEAN_DB if record["snr_db"] == "clean" else float(record["snr_db"])
    return Evaluation(snr_db, record["permuted"], int(record["draw"]), (folder / record["folder"]).resolve())


def _cells(records: list[dict[str, Any]], folder: Path) -> tuple[Cell, ...]:
    """Cells in order. Unnamed variants of one model, template and seed are numbered, so that they are never pooled."""
    cells: list[Cell] = []
    met: dict[tuple[str, str, int, str], int] = {}
    for record in records:
        model, template, seed = record["model"], record["template"], int(record["seed"])
        variant = record.get("variant") or ""
        number = met[model, template, seed, variant] = met.get((model, template, seed, variant), 0) + 1
        if number > 1:
            variant = f"{variant} setting {number}".strip()
        evaluations = tuple(_evaluation(evaluation, folder) for evaluation in record["evaluations"])
        trial = (folder / record["trial"]).resolve()
        cells.append(
            Cell(model, template, seed, record["label"], variant, trial, evaluations, record.get("settings") or {})
        )
    return tuple(cells)


def read_grid(folder: Path) -> GridResults:
    """Open the folder of a grid. Only `grid.json` is read now; results are read when asked for.

    Raises:
        UserError: no such file, another schema, or a field that is missing or not what it should be.
    """
    path = folder.expanduser().resolve() / "grid.json"
    grid = _json(path)
    if not isinstance(grid, dict) or grid.get("schema") != SCHEMA:
        found = grid.get("schema") if isinstance(grid, dict) else None
        raise UserError(
            f"{path} has schema {found!r}, this version reads schema {SCHEMA}; use the version that wrote it."
        )
    try:
        cells = _cells(grid["cells"], path.parent)
        fields: Sequence[str] = ("name", "corpus", "normaliser", "noise", "readers", "baseline")
        about = str(grid.get("about", ""))  # of no grid before it was kept
        return GridResults(folder=path.parent, cells=cells, about=about, **{field: grid[field] for field in fields})
    except KeyError as error:
        raise UserError(f"{path}: the field {error} is missing; restore the file or run the grid again.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a grid file ({error}); restore it or run the grid again.") from None
