"""A trial: one model to train, named by the hash of its settings, and its evaluations, each with a hash of its own.

A new test SNR evaluates an existing model and trains nothing. A changed default changes the hash, so old checkpoints
are never reused for it. Settings that cannot change a result (device, workers, intervals) are not hashed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dmlm import paths, snr
from dmlm.corpus.condition import CLEAN, Condition
from dmlm.model import pretrained
from dmlm.model.family import SIZES
from dmlm.plan.cell import Cell
from dmlm.plan.identity import identity
from dmlm.results.folders import EvaluationFolder, TrialFolder, trial_folder
from dmlm.score.normalisers import NORMALISERS
from dmlm.sequence.template import Template
from dmlm.sweep.materials import Materials

SCHEMA = 5


@dataclass(frozen=True)
class Evaluation:
    """One test of a trained model: a condition and, for the perceptual score, a permuted modality."""

    condition: Condition
    permuted: str | None = None  # letter of the modality that is exchanged between utterances
    draw: int = 0
    data: str = ""  # digest of the transcripts and of what is encoded

    @property
    def snr_db(self) -> float:
        """The SNR of every utterance; infinite for clean speech."""
        assert self.condition.snr_db is not None
        return self.condition.snr_db

    def spec(self, cell: Cell) -> dict[str, Any]:
        """Return everything besides the model that determines the transcripts and their errors."""
        return {
            "schema": SCHEMA,
            "split": cell.split,
            "data": self.data,
            "condition": self.condition.key,
            "permuted": self.permuted,
            "draw": self.draw,
            "decode": asdict(cell.decode),
            "normaliser": str(NORMALISERS[cell.corpus.normaliser]),
        }

    def title(self, cell: Cell) -> str:
        """Return a title such as `snr-10_permuted-L-0`; another split than `test` is put in front."""
        split = "" if cell.split == "test" else f"{cell.split}_"
        condition = f"snr{snr.text(self.snr_db)}" if snr.noisy(self.snr_db) else "clean"
        permuted = f"_permuted-{self.permuted}-{self.draw}" if self.permuted else ""
        return f"{split}{condition}{permuted}"

    def name(self, cell: Cell) -> str:
        """Return the name of its folder: title and identity."""
        return f"{self.title(cell)}-{identity(self.spec(cell), 8)}"


@dataclass(frozen=True)
class Trial:
    """One model to train, and the evaluations to run on it."""

    cell: Cell
    spec: dict[str, Any]
    folder: Path
    evaluations: tuple[Evaluation, ...]
    baseline: str = "A -> T"  # template that results are measured against; the modalities it lacks are permuted

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def stored(self) -> TrialFolder:
        """Its folder on disk, with what is written there so far."""
        return TrialFolder(self.folder)

    @property
    def trained(self) -> bool:
        """Whether the training has a result (written last) and, if evaluations are pending, the model that they need."""
        return self.stored.result is not None and (not self.pending or self.stored.has_model)

    def name_of(self, evaluation: Evaluation) -> str:
        """Return the name of the folder of an evaluation."""
        return self._names[evaluation]

    def folder_of(self, evaluation: Evaluation) -> EvaluationFolder:
        """Return the folder of an evaluation."""
        return self.stored.evaluation(self._names[evaluation])

    @cached_property
    def _names(self) -> dict[Evaluation, str]:
        return {evaluation: evaluation.name(self.cell) for evaluation in self.evaluations}

    @property
    def pending(self) -> list[Evaluation]:
        """Evaluations that have no result yet."""
        return [evaluation for evaluation in self.evaluations if not self.folder_of(evaluation).done]


def training_spec(
    cell: Cell, data: dict[str, str], text_digest: str, fingerprints: dict[str, str], conditions: list[Condition]
) -> dict[str, Any]:
    """Return everything that determines the trained weights.

    Args:
        cell: the settings.
        data: digest of what is encoded of the training split, by letter; of the transcripts under `T`.
        text_digest: of the text vocabulary.
        fingerprints: of the encoders, by letter.
        conditions: the noise conditions of training; empty if no encoder of the cell depends on the noise.
    """
    is_pretrained = pretrained.is_named(cell.backbone)
    lambdas = asdict(cell.train.lambdas).items()  # only those of the cell's modalities matter, see below
    size = {"weights": pretrained.digest(cell.backbone)} if is_pretrained else SIZES[cell.backbone].sizes[cell.backbone]
    return {
        "schema": SCHEMA,
        "data": data,
        "text": text_digest,
        "tokenizers": {letter: fingerprints[letter] for letter in cell.letters},
        "noise": [condition.key for condition in conditions],
        "template": cell.template,
        "permute": cell.permute,
        "backbone": {"name": Path(cell.backbone).name, **size},
        "model": cell.model.model_dump(),
        "seed": cell.seed,
        "train": asdict(cell.train) | {"lambdas": {k: v for k, v in lambdas if k in (*cell.letters, "T")}},
    }


def trial_name(cell: Cell, spec: dict[str, Any]) -> str:
    """Return the name of a trial's folder, such as `opt-tiny_A+L_seed0-1a2b3c4d5e6f`."""
    notation = cell.template.removesuffix(" -> T").replace("(", "-").replace(")", "").replace(",", "-")
    control = f"_permuted-{cell.permute}" if cell.permute else ""
    return f"{Path(cell.backbone).name}_{notation}{control}_seed{cell.seed}-{identity(spec)}"


def evaluations_of(
    cell: Cell, baseline: str, conditions: Mapping[float, Condition], data: Mapping[float, str]
) -> tuple[Evaluation, ...]:
    """Return one evaluation per test SNR, and the permutations of each modality that the baseline lacks.

    `conditions` and `data` (see `Evaluation`) are by SNR in dB.

    A cell that is itself a control (`permute`) has no permutations.
    """
    baseline_letters = Template.parse(baseline).letters
    added = [letter for letter in cell.letters if letter not in baseline_letters] if not cell.permute else []
    plain = [Evaluation(conditions[snr_db], data=data.get(snr_db, "")) for snr_db in cell.snr_db.test]
    permuted = [
        Evaluation(conditions[snr_db], letter, draw, data.get(snr_db, ""))
        for letter in added
        for snr_db in cell.perceptual.snr_db
        for draw in range(cell.perceptual.draws)
    ]
    return (*plain, *permuted)


def trial_of(cell: Cell, materials: Materials, baseline: str) -> Trial:
    """Return the trial of a cell; results are measured against the template `baseline`."""
    choice = cell.corpus.model_copy(update={"left_out": dict(materials.corpus.left_out)})
    cell = cell.model_copy(update={"corpus": choice})  # so that a worker leaves out the same
    hears_noise = any(materials.sources[letter].encoder.depends_on_noise for letter in cell.letters)
    conditions = materials.train_conditions[: cell.train.draws] if hears_noise else []
    data = materials.content(cell.letters, "train", conditions or [CLEAN])
    spec = training_spec(cell, data, materials.text.digest, materials.fingerprints, conditions)
    test = materials.test_conditions
    test_data = {k: materials.tested(cell.letters, cell.split, condition) for k, condition in test.items()}
    evaluations = evaluations_of(cell, baseline, test, test_data)
    folder = trial_folder(paths.runs(), trial_name(cell, spec)).path
    spec["corpus"] = materials.corpus.digest  # for people and `dmlm clean`; `data` is what the identity is of
    return Trial(cell, spec, folder, evaluations, baseline)
