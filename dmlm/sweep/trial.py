"""What a trial is: one resolved, hashed setting. Training and evaluation have identities of their own.

A new test SNR evaluates an existing model and trains nothing; a changed default changes the hash, so that no old
checkpoint is ever reused for it. Fields that cannot change a result (device, workers, intervals) never enter.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dmlm import paths, snr
from dmlm.corpus.condition import Condition
from dmlm.model import pretrained
from dmlm.model.family import SIZES
from dmlm.plan.cell import Cell
from dmlm.plan.identity import identity
from dmlm.results.folders import EvaluationFolder, TrialFolder, trial_folder
from dmlm.sequence.template import Template
from dmlm.sweep.materials import Materials

SCHEMA = 4


@dataclass(frozen=True)
class Evaluation:
    """One condition in which a trained model is tested."""

    condition: Condition
    permuted: str | None = None  # letter of the modality that is exchanged between items
    draw: int = 0

    @property
    def snr_db(self) -> float:
        """Every utterance is heard at this SNR."""
        assert self.condition.snr_db is not None
        return self.condition.snr_db

    def spec(self, cell: Cell) -> dict[str, Any]:
        """Everything that decides its transcripts, besides the model."""
        return {
            "schema": SCHEMA,
            "split": cell.split,
            "condition": self.condition.key,
            "permuted": self.permuted,
            "draw": self.draw,
            "decode": cell.decode.model_dump(),
        }

    def title(self, cell: Cell) -> str:
        """`snr-10_permuted-L-0`, with the split where it is not the test split."""
        split = "" if cell.split == "test" else f"{cell.split}_"
        level = f"snr{snr.text(self.snr_db)}" if snr.noisy(self.snr_db) else "clean"
        permuted = f"_permuted-{self.permuted}-{self.draw}" if self.permuted else ""
        return f"{split}{level}{permuted}"

    def name(self, cell: Cell) -> str:
        """Of its folder: the title and its identity."""
        return f"{self.title(cell)}-{identity(self.spec(cell), 8)}"


@dataclass(frozen=True)
class Trial:
    """One model to train, and the conditions to test it in."""

    cell: Cell
    spec: dict[str, Any]
    folder: Path
    evaluations: tuple[Evaluation, ...]

    @property
    def id(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def stored(self) -> TrialFolder:
        """What is on disk of it."""
        return TrialFolder(self.folder)

    @property
    def trained(self) -> bool:
        """Whether it has its result, which is written last, and its model as long as an evaluation still needs it."""
        return self.stored.result is not None and (not self.pending or self.stored.has_model)

    def name_of(self, evaluation: Evaluation) -> str:
        """Name of the folder of an evaluation."""
        return self._names[evaluation]

    def folder_of(self, evaluation: Evaluation) -> EvaluationFolder:
        """Folder of an evaluation."""
        return self.stored.evaluation(self._names[evaluation])

    @cached_property
    def _names(self) -> dict[Evaluation, str]:
        return {evaluation: evaluation.name(self.cell) for evaluation in self.evaluations}

    @property
    def pending(self) -> list[Evaluation]:
        """Evaluations that have no result yet."""
        return [evaluation for evaluation in self.evaluations if not self.folder_of(evaluation).done]


def training_spec(
    cell: Cell, corpus_digest: str, text_digest: str, fingerprints: dict[str, str], conditions: list[Condition]
) -> dict[str, Any]:
    """Everything that decides the trained weights; no `conditions` where no modality hears them."""
    named = pretrained.is_named(cell.backbone)
    lambdas = cell.train.lambdas.model_dump().items()  # those of other modalities change nothing
    size = {"weights": pretrained.digest(cell.backbone)} if named else SIZES[cell.backbone].sizes[cell.backbone]
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
        "train": cell.train.model_dump() | {"lambdas": {k: v for k, v in lambdas if k in (*cell.letters, "T")}},
    }


def trial_name(cell: Cell, spec: dict[str, Any]) -> str:
    """`opt-tiny_A+L_seed0-1a2b3c4d5e6f`"""
    notation = cell.template.removesuffix(" -> T").replace("(", "-").replace(")", "").replace(",", "-")
    control = f"_permuted-{cell.permute}" if cell.permute else ""
    return f"{Path(cell.backbone).name}_{notation}{control}_seed{cell.seed}-{identity(spec)}"


def evaluations_of(cell: Cell, baseline: str, test: dict[float, Condition]) -> tuple[Evaluation, ...]:
    """Every test SNR; and, for each modality that the baseline lacks, its permutations (a control has none)."""
    known = Template.parse(baseline).letters
    added = [letter for letter in cell.letters if letter not in known] if not cell.permute else []
    plain = [Evaluation(test[snr_db]) for snr_db in cell.snr_db.test]
    permuted = [
        Evaluation(test[snr_db], letter, draw)
        for letter in added
        for snr_db in cell.perceptual.snr_db
        for draw in range(cell.perceptual.draws)
    ]
    return (*plain, *permuted)


def trial_of(cell: Cell, materials: Materials, baseline: str) -> Trial:
    """The trial of one cell."""
    hears = any(materials.sources[letter].encoder.depends_on_noise for letter in cell.letters)
    conditions = materials.train_conditions[: cell.train.draws] if hears else []
    spec = training_spec(cell, materials.corpus.digest, materials.text.digest, materials.fingerprints, conditions)
    evaluations = evaluations_of(cell, baseline, materials.test_conditions)
    return Trial(cell, spec, trial_folder(paths.runs(), trial_name(cell, spec)).path, evaluations)
