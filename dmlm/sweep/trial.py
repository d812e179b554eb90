"""What a trial is: one resolved, hashed setting. Training and evaluation have identities of their own.

A new test SNR evaluates an existing model and trains nothing; a changed default changes the hash, so that no old
checkpoint is ever reused for it. Fields that cannot change a result (device, workers, intervals) never enter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlm.corpus.condition import Condition
from dmlm.model import pretrained
from dmlm.model.sizes import MAMBA, OPT
from dmlm.sequence.template import Template
from dmlm.sweep.grid import Cell, Grid
from dmlm.sweep.identity import identity

SCHEMA = 1


@dataclass(frozen=True)
class Evaluation:
    """One condition in which a trained model is tested."""

    condition: Condition
    permuted: str | None = None  # letter of the modality that is exchanged between items
    draw: int = 0

    def spec(self, grid: Grid) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "split": "test",
            "condition": self.condition.key,
            "permuted": self.permuted,
            "draw": self.draw,
            "decode": grid.decode.model_dump(),
        }

    def folder_name(self, grid: Grid) -> str:
        level = "clean" if self.condition.clean else f"snr{self.condition.snrs_db[0]:g}"
        permuted = f"_permuted-{self.permuted}-{self.draw}" if self.permuted else ""
        return f"{level}{permuted}-{identity(self.spec(grid), 8)}"


@dataclass(frozen=True)
class Trial:
    """One model to train, and the conditions to test it in."""

    cell: Cell
    spec: dict[str, Any]
    folder: Path
    evaluations: tuple[Evaluation, ...]

    @property
    def id(self) -> str:
        return self.folder.name


def training_spec(
    cell: Cell,
    grid: Grid,
    corpus_digest: str,
    text_digest: str,
    fingerprints: dict[str, str],
    conditions: list[Condition],
) -> dict[str, Any]:
    """Everything that decides the trained weights."""
    named = pretrained.is_named(cell.backbone)
    size = {"weights": pretrained.digest(cell.backbone)} if named else (OPT | MAMBA)[cell.backbone]
    return {
        "schema": SCHEMA,
        "corpus": corpus_digest,
        "text": text_digest,
        "tokenizers": {letter: fingerprints[letter] for letter in cell.template.letters},
        "noise": [condition.key for condition in conditions] if "A" in cell.template.letters else [],
        "template": cell.template.notation,
        "backbone": {"name": cell.backbone, **size},
        "model": grid.model.model_dump(),
        "seed": cell.seed,
        "train": cell.train.model_dump(),
    }


def trial_folder(runs: Path, cell: Cell, spec: dict[str, Any]) -> Path:
    """`trials/opt-tiny_A+L_seed0-1a2b3c4d5e6f`"""
    notation = cell.template.notation.removesuffix(" -> T").replace("(", "-").replace(")", "").replace(",", "-")
    return runs / "trials" / f"{Path(cell.backbone).name}_{notation}_seed{cell.seed}-{identity(spec)}"


def evaluations_of(cell: Cell, grid: Grid, test: dict[float, Condition]) -> tuple[Evaluation, ...]:
    """Every test SNR; and, for each modality that the baseline lacks, its permutations."""
    added = [letter for letter in cell.template.letters if letter not in Template.parse(grid.baseline).letters]
    plain = [Evaluation(test[level]) for level in grid.snr_db.test]
    permuted = [
        Evaluation(test[level], letter, draw)
        for letter in added
        for level in grid.perceptual.snr_db
        for draw in range(grid.perceptual.draws)
    ]
    return (*plain, *permuted)
