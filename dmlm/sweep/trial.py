"""What a trial is: one resolved, hashed setting. Training and evaluation have identities of their own.

A new test SNR evaluates an existing model and trains nothing; a changed default changes the hash, so that no old
checkpoint is ever reused for it. Fields that cannot change a result (device, workers, intervals) never enter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dmlm import places
from dmlm.corpus.condition import Condition
from dmlm.model import pretrained
from dmlm.model.sizes import MAMBA, OPT
from dmlm.sequence.template import Template
from dmlm.sweep.cell import Cell
from dmlm.sweep.identity import identity
from dmlm.sweep.materials import Materials
from dmlm.sweep.store import SCORED, TRAINED, stored

SCHEMA = 3


@dataclass(frozen=True)
class Evaluation:
    """One condition in which a trained model is tested."""

    condition: Condition
    permuted: str | None = None  # letter of the modality that is exchanged between items
    draw: int = 0

    def spec(self, cell: Cell) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "split": cell.split,
            "condition": self.condition.key,
            "permuted": self.permuted,
            "draw": self.draw,
            "decode": cell.decode.model_dump(),
        }

    def folder_name(self, cell: Cell) -> str:
        split = "" if cell.split == "test" else f"{cell.split}_"
        level = "clean" if self.condition.clean else f"snr{self.condition.snrs_db[0]:g}"
        permuted = f"_permuted-{self.permuted}-{self.draw}" if self.permuted else ""
        return f"{split}{level}{permuted}-{identity(self.spec(cell), 8)}"


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

    @property
    def trained(self) -> bool:
        """Whether it has its result, which is written last, and its model as long as an evaluation still needs it."""
        return done(self.folder, TRAINED) and (not self.pending or whole(self.folder / "model"))

    def scores(self, evaluation: Evaluation) -> Path:
        """Folder of an evaluation."""
        return self._scores[evaluation]

    @cached_property
    def _scores(self) -> dict[Evaluation, Path]:
        return {e: self.folder / "evals" / e.folder_name(self.cell) for e in self.evaluations}

    @property
    def pending(self) -> list[Evaluation]:
        """Evaluations that have no result yet."""
        return [evaluation for evaluation in self.evaluations if not done(self.scores(evaluation))]


def done(folder: Path, needed: Sequence[str] = SCORED) -> bool:
    """Whether the evaluation (or, with TRAINED, the training) in this folder has its result; a damaged one is none."""
    return stored(folder / "result.json", needed) is not None


def whole(model: Path) -> bool:
    """Whether a model has its files, as long as their headers say: cheaper than to read them, and it shows a cut."""
    weights = list(model.glob("*.safetensors"))
    try:
        for path in weights:
            with safe_open(path, "np"):
                pass
    except (SafetensorError, FileNotFoundError):
        return False
    return bool(weights) and stored(model / "config.json", ["model_type"]) is not None


def training_spec(
    cell: Cell, corpus_digest: str, text_digest: str, fingerprints: dict[str, str], conditions: list[Condition]
) -> dict[str, Any]:
    """Everything that decides the trained weights; no `conditions` where no modality hears them."""
    named = pretrained.is_named(cell.backbone)
    weights = cell.train.lambdas.model_dump().items()  # those of other modalities change nothing
    size = {"weights": pretrained.digest(cell.backbone)} if named else (OPT | MAMBA)[cell.backbone]
    return {
        "schema": SCHEMA,
        "corpus": corpus_digest,
        "text": text_digest,
        "tokenizers": {letter: fingerprints[letter] for letter in cell.letters},
        "noise": [condition.key for condition in conditions],
        "template": cell.template,
        "permute": cell.permute,
        "backbone": {"name": cell.backbone, **size},
        "model": cell.model.model_dump(),
        "seed": cell.seed,
        "train": cell.train.model_dump() | {"lambdas": {k: v for k, v in weights if k in (*cell.letters, "T")}},
    }


def trial_folder(runs: Path, cell: Cell, spec: dict[str, Any]) -> Path:
    """`trials/opt-tiny_A+L_seed0-1a2b3c4d5e6f`"""
    notation = cell.template.removesuffix(" -> T").replace("(", "-").replace(")", "").replace(",", "-")
    control = f"_permuted-{cell.permute}" if cell.permute else ""
    return runs / "trials" / f"{Path(cell.backbone).name}_{notation}{control}_seed{cell.seed}-{identity(spec)}"


def evaluations_of(cell: Cell, baseline: str, test: dict[float, Condition]) -> tuple[Evaluation, ...]:
    """Every test SNR; and, for each modality that the baseline lacks, its permutations (a control has none)."""
    known = Template.parse(baseline).letters
    added = [letter for letter in cell.letters if letter not in known] if not cell.permute else []
    plain = [Evaluation(test[level]) for level in cell.snr_db.test]
    permuted = [
        Evaluation(test[level], letter, draw)
        for letter in added
        for level in cell.perceptual.snr_db
        for draw in range(cell.perceptual.draws)
    ]
    return (*plain, *permuted)


def trial_of(cell: Cell, materials: Materials, baseline: str) -> Trial:
    """The trial of one cell."""
    hears = any(materials.sources[letter].encoder.hears for letter in cell.letters)
    conditions = materials.train_conditions[: cell.train.draws] if hears else []
    spec = training_spec(cell, materials.corpus.digest, materials.text.digest, materials.fingerprints, conditions)
    evaluations = evaluations_of(cell, baseline, materials.test_conditions)
    return Trial(cell, spec, trial_folder(places.home() / "runs", cell, spec), evaluations)
