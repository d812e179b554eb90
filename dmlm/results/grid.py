"""A grid on disk: `grid.json` lists its trials and evaluations; their results are read on first access.

An evaluation without a valid `result.json` is missing, whatever else its folder holds. Nothing here imports torch.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import snr
from dmlm.corpus.faults import describe_left_out
from dmlm.errors import UserError
from dmlm.results.folders import EvaluationFolder, TrialFolder
from dmlm.results.json_files import read_object, write_object
from dmlm.results.records import EvaluationResult, TrainingStep, TrialResult, UtteranceResult
from dmlm.score.wer import Counts
from dmlm.sequence.template import Template

SCHEMA = 2
FILE = "grid.json"


@dataclass(frozen=True)
class CorpusCard:
    """The facts about a corpus that are stored with results."""

    name: str
    version: str
    licence: str
    digest: str
    utterances: dict[str, int]  # that are used, by split
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)  # that are not, by split and rule
    lacking: dict[str, dict[str, int]] = field(default_factory=dict)  # read with an empty segment, by split and field
    folds: int | None = None  # if its folds take turns as the test
    not_imported: dict[str, int] = field(default_factory=dict)  # clips of its source that an import left out, by rule

    @classmethod
    def of(cls, card: dict[str, Any]) -> "CorpusCard":
        """Take these facts from the card of a corpus; what it lacks is not recorded."""
        return cls(
            **{key: card.get(key, "not recorded") for key in ("name", "version", "licence", "digest")},
            utterances=card["utterances"],
            left_out=card.get("left_out", {}),
            lacking=card.get("lacking", {}),
            folds=card.get("folds"),
            not_imported=card.get("not_imported") or {},
        )

    @property
    def label(self) -> str:
        """A readable and unique name: `name-digest8`, and what is left out, if anything is: it is another test set then.

        It is the same for all folds of a corpus, each of which leaves out what its own splits hold.
        """
        without = f" without {describe_left_out(self.left_out)}" if self.left_out and not self.folds else ""
        return f"{self.name}-{self.digest[:8]}{without}"


@dataclass(frozen=True, eq=False)
class GridEvaluation:
    """One evaluation: its SNR (`snr.CLEAN_DB` for clean), the permuted modality if any, and the draw of the permutation."""

    snr_db: float
    permuted: str | None
    draw: int
    folder: EvaluationFolder

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return self.folder.done

    @cached_property
    def result(self) -> EvaluationResult:
        """Counts pooled over the utterances."""
        return self.folder.result

    @cached_property
    def utterances(self) -> tuple[UtteranceResult, ...]:
        """All utterances of a finished evaluation; of an unfinished one those written so far.

        Raises:
            UserError: a partial line, a missing field, totals that do not match, or a measured SNR that is off by
                more than 0.1 dB; names the file.
        """
        utterances = self.folder.utterances()
        for utterance in utterances if self.done else ():
            measured_db = utterance.snr_db_measured
            if measured_db is not None and snr.noisy(self.snr_db) and not snr.agrees(measured_db, self.snr_db):
                raise UserError(
                    f"{self.folder.path / 'utterances.jsonl'}: utterance {utterance.id!r} was heard at"
                    f" {measured_db:.2f} dB instead of {self.snr_db:g} dB; mix its noise again, this evaluation cannot"
                    " be used."
                )
        return utterances

    def deviation_db(self, utterance: UtteranceResult) -> float:
        """Return measured minus nominal SNR in dB; NaN if none was measured, as in clean speech."""
        measured_db = utterance.snr_db_measured
        return math.nan if measured_db is None or not snr.noisy(self.snr_db) else measured_db - self.snr_db

    @cached_property
    def counts(self) -> Counts:
        """Errors and reference words of each utterance of a finished evaluation."""
        return self._counts([(utterance.errors, utterance.reference_words) for utterance in self.utterances])

    @cached_property
    def character_counts(self) -> Counts | None:
        """Character errors and reference characters of each utterance; None if they are not recorded."""
        if self.result.characters is None:
            return None
        characters = [utterance.characters for utterance in self.utterances if utterance.characters]
        return self._counts([(counts.errors, counts.reference_characters) for counts in characters])

    def _counts(self, pairs: Sequence[tuple[int, int]]) -> Counts:
        errors, units = np.array(pairs, dtype=float).reshape(-1, 2).T
        return Counts(tuple(utterance.id for utterance in self.utterances), errors, units, self.result.normaliser)


@dataclass(frozen=True, eq=False, kw_only=True)
class GridCell:
    """One cell of a grid: a model, the settings of its training, and its evaluations."""

    model: str
    template: str
    seed: int
    label: str
    variant: str  # tells it from cells of the same model, template and seed; often empty
    corpus: CorpusCard
    normaliser: str  # of references and hypotheses, with its version
    tokenizers: dict[str, str]  # recipe by letter
    noise: dict[str, Any]
    steps: int | None
    settings: dict[str, Any]  # all settings of the cell; empty if an older version wrote the grid
    trial: TrialFolder
    evaluations: tuple[GridEvaluation, ...]

    @property
    def fold(self) -> int | None:
        """The fold of the corpus that it is tested on; None without folds."""
        fold = self.settings.get("corpus", {}).get("fold")
        return None if fold is None else int(fold)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input modalities in order, by letter."""
        return Template.parse(self.template).letters

    @cached_property
    def training(self) -> TrialResult | None:
        """Facts of a finished training, else None."""
        return self.trial.result

    @cached_property
    def log(self) -> list[TrainingStep]:
        """The logged steps of the training."""
        return self.trial.log()


@dataclass(frozen=True, eq=False, kw_only=True)
class GridResults:
    """The results of a grid on disk, finished or not."""

    folder: Path
    name: str
    baseline: str
    cells: tuple[GridCell, ...]
    about: str = ""  # the question that the grid answers

    @property
    def models(self) -> list[str]:
        """Its models, in the order of the grid."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def snrs_db(self) -> list[float]:
        """All SNRs of the grid from easy to hard: clean first, the lowest SNR last."""
        return sorted({evaluation.snr_db for cell in self.cells for evaluation in cell.evaluations}, reverse=True)

    @property
    def normaliser(self) -> str:
        """The normalisers of its cells, with their versions."""
        return " and ".join(self.distinct(lambda cell: cell.normaliser))

    @property
    def finished(self) -> list[GridEvaluation]:
        """All finished evaluations."""
        return [evaluation for cell in self.cells for evaluation in cell.evaluations if evaluation.done]

    @property
    def has_characters(self) -> bool:
        """Whether character errors are recorded for any evaluation."""
        return any(evaluation.result.characters for evaluation in self.finished)

    def distinct(self, value: Callable[[GridCell], Any]) -> list[Any]:
        """Return the distinct values of `value(cell)`, in the order of the grid."""
        values: list[Any] = []
        for cell in self.cells:
            if (cell_value := value(cell)) not in values:
                values.append(cell_value)
        return values

    @property
    def corpora(self) -> list[CorpusCard]:
        """Every corpus of the grid; the folds of one are one, with the sizes of the first."""
        cards: dict[object, CorpusCard] = {}
        for cell in self.cells:
            of_all = repr(replace(cell.corpus, lacking={}))  # what is lacking depends on what a cell reads
            cards.setdefault(of_all if cell.fold is None else cell.corpus.label, cell.corpus)
        return list(cards.values())

    def tokenizers_of(self, letter: str) -> list[str]:
        """Return the tokenizer recipes that cells use for a modality."""
        recipes = self.distinct(lambda cell: cell.tokenizers.get(letter) if letter in cell.inputs else None)
        return [recipe for recipe in recipes if recipe]

    def find(
        self, model: str, template: str, snr_db: float, permuted: str | None = None, variant: str | None = None
    ) -> list[GridEvaluation]:
        """Find the evaluations of a condition, finished or not: one per training seed and draw of the permutation."""
        return [
            evaluation
            for cell in self.cells
            if cell.model == model and cell.template == template and variant in (None, cell.variant)
            for evaluation in cell.evaluations
            if evaluation.snr_db == snr_db and evaluation.permuted == permuted
        ]

    @property
    def missing(self) -> list[tuple[GridCell, GridEvaluation]]:
        """Evaluations of the grid that are not finished, each with its cell."""
        return [(cell, evaluation) for cell in self.cells for evaluation in cell.evaluations if not evaluation.done]

    @property
    def evaluation_count(self) -> int:
        """Number of evaluations of the grid, finished or not."""
        return sum(len(cell.evaluations) for cell in self.cells)


def grid_folders(runs: Path) -> list[Path]:
    """List the folders of the grids that were run."""
    return sorted(path.parent for path in runs.glob(f"*/{FILE}"))


def is_grid(folder: Path) -> bool:
    """Whether a folder contains a grid."""
    return (folder / FILE).is_file()


def write_grid(grid: GridResults) -> None:
    """Write `grid.json`, the file that `read_grid` reads."""

    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, grid.folder)).as_posix()

    cells = [
        {
            "model": cell.model,
            "template": cell.template,
            "seed": cell.seed,
            "label": cell.label,
            "variant": cell.variant,
            "corpus": asdict(cell.corpus),
            "normaliser": cell.normaliser,
            "tokenizers": cell.tokenizers,
            "noise": cell.noise,
            "steps": cell.steps,
            "settings": cell.settings,
            "trial": relative(cell.trial.path),
            "evaluations": [
                {
                    "snr_db": evaluation.snr_db if snr.noisy(evaluation.snr_db) else snr.text(evaluation.snr_db),
                    "permuted": evaluation.permuted,
                    "draw": evaluation.draw,
                    "folder": relative(evaluation.folder.path),
                }
                for evaluation in cell.evaluations
            ],
        }
        for cell in grid.cells
    ]
    facts = {"name": grid.name, "about": grid.about, "baseline": grid.baseline}
    write_object(grid.folder / FILE, {"schema": SCHEMA, **facts, "cells": cells})


def read_grid(folder: Path) -> GridResults:
    """Open the folder of a grid. Only `grid.json` is read now; results are read on first access.

    Raises:
        UserError: no such file, another schema, or a missing or invalid field.
    """
    path = folder.expanduser().resolve() / FILE
    grid = read_object(path)
    schema = grid.get("schema") if isinstance(grid, dict) else None
    if schema not in (1, SCHEMA):
        raise UserError(
            f"{path} has schema {schema!r}, this version reads schema {SCHEMA}; use the version that wrote it."
        )
    try:
        records = _upgraded(grid) if schema == 1 else grid["cells"]
        cells = _cells(records, path.parent, grid.get("normaliser", ""))
        about = str(grid.get("about", ""))  # older files have none
        return GridResults(folder=path.parent, cells=cells, about=about, name=grid["name"], baseline=grid["baseline"])
    except KeyError as error:
        raise UserError(f"{path}: the field {error} is missing; restore the file or run the grid again.") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not a grid file ({error}); restore it or run the grid again.") from None


def _upgraded(grid: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Convert the cells of schema 1, which stored corpus, noise and tokenizers once for the whole grid."""
    corpus, noise, readers = grid["corpus"], grid["noise"], grid["readers"]
    for cell in grid["cells"]:
        settings = cell.get("settings") or {}
        recipes = {letter: choice["recipe"] for letter, choice in settings.get("tokenizers", {}).items()} or readers
        letters = Template.parse(cell["template"]).letters
        tokenizers = {letter: recipes[letter] for letter in letters if letter in recipes}
        yield {"corpus": corpus, "noise": settings.get("noise", noise), "tokenizers": tokenizers, **cell}


def _cells(records: Iterable[dict[str, Any]], folder: Path, normaliser: str) -> tuple[GridCell, ...]:
    """Build the cells. Cells of equal model, template, seed, variant and fold are numbered, so that they are never pooled.

    `normaliser` is that of cells that name none: earlier versions stored it once for the whole grid.
    """
    cells: list[GridCell] = []
    counts: dict[tuple[str, str, int, str, int | None], int] = {}
    for record in records:
        variant = record.get("variant") or ""
        fold = ((record.get("settings") or {}).get("corpus") or {}).get("fold")
        key = record["model"], record["template"], int(record["seed"]), variant, fold
        number = counts[key] = counts.get(key, 0) + 1
        cells.append(
            GridCell(
                model=record["model"],
                template=record["template"],
                seed=int(record["seed"]),
                label=record["label"],
                variant=f"{variant} setting {number}".strip() if number > 1 else variant,
                corpus=CorpusCard.of(record["corpus"]),
                normaliser=record.get("normaliser", normaliser),
                tokenizers=record["tokenizers"],
                noise=record["noise"],
                steps=record.get("steps"),
                settings=record.get("settings") or {},
                trial=TrialFolder((folder / record["trial"]).resolve()),
                evaluations=_evaluations(record["evaluations"], folder),
            )
        )
    return tuple(cells)


def _evaluations(records: Sequence[dict[str, Any]], folder: Path) -> tuple[GridEvaluation, ...]:
    return tuple(
        GridEvaluation(
            snr.parse(record["snr_db"]),
            record["permuted"],
            int(record["draw"]),
            EvaluationFolder((folder / record["folder"]).resolve()),
        )
        for record in records
    )
