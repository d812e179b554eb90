"""A sweep file: plain data, checked on reading; and the cells that it asks for."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dmlm import recipes
from dmlm.corpus.noise import NoiseSettings
from dmlm.errors import UserError, did_you_mean
from dmlm.model import pretrained
from dmlm.model.sizes import check_name
from dmlm.run.settings import DecodeSettings, Execution, TrainSettings
from dmlm.sequence.template import Template


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Level = Annotated[float, BeforeValidator(lambda value: math.inf if value == "clean" else value)]  # dB
Levels = Annotated[tuple[Level, ...], BeforeValidator(_listed), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
ALL_LEVELS = (math.inf, 20.0, 10.0, 5.0, 0.0, -5.0, -10.0, -20.0)


class Section(BaseModel):
    """A part of a sweep file: immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class CorpusChoice(Section):
    """`preset` names a size of the recipe; `settings` change single values of it."""

    recipe: str
    preset: str
    settings: dict[str, Any] = {}


class TokenizerChoice(Section):
    """A recipe and its settings; in the file a bare name will do."""

    recipe: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value


class TextSettings(Section):
    """The BPE vocabulary: learned on the transcripts of the training split, or that of a pretrained model."""

    vocab_size: int = Field(default=400, ge=256)
    tokenizer: str | None = None  # a folder or Hub id; the backbones that start from pretrained weights need theirs


class LevelChoice(Section):
    """SNRs in dB, or `clean`. Training draws one for each utterance; evaluation runs them all."""

    train: Levels = ALL_LEVELS
    test: Levels = ALL_LEVELS


class CellRow(Section):
    """Every backbone x template x seed of the row; `train` changes training values for this row only."""

    backbone: Names
    template: Names
    seed: Annotated[tuple[int, ...], BeforeValidator(_listed)] = (0,)
    train: dict[str, Any] = {}


class PerceptualChoice(Section):
    """At which SNRs, and how often, each added modality is permuted across the test items."""

    snr_db: Levels = (math.inf, -10.0)
    draws: int = Field(default=5, ge=1)


class ModelSettings(Section):
    """What all backbones have in common."""

    context: int = Field(default=512, ge=8, description="longest sequence, in tokens")
    start: Literal["structured", "random"] = "structured"  # see dmlm.model.backbones.structured_start


@dataclass(frozen=True)
class Cell:
    """One model of the grid."""

    backbone: str
    template: Template
    seed: int
    train: TrainSettings

    @property
    def label(self) -> str:
        family = {"opt": "OPT", "mamba": "Mamba"}[pretrained.family_of(self.backbone)]
        return f"{family} {self.template.notation.removesuffix(' -> T')}" + (f" seed {self.seed}" if self.seed else "")


class Grid(Section):
    """One experiment."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    corpus: CorpusChoice
    tokenizers: dict[str, TokenizerChoice]
    text: TextSettings = TextSettings()
    noise: NoiseSettings = NoiseSettings()
    snr_db: LevelChoice = LevelChoice()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    rows: tuple[CellRow, ...] = Field(min_length=1, alias="cells")
    perceptual: PerceptualChoice = PerceptualChoice()
    baseline: str = "A -> T"
    decode: DecodeSettings = DecodeSettings()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _cells_fit(self) -> "Grid":
        for cell in self.cells:
            for letter in cell.template.letters:
                if letter not in self.tokenizers:
                    raise UserError(
                        f"Grid {self.name}: template {cell.template.notation!r} needs modality {letter}, but `tokenizers` names none for {letter}."
                    )
            if pretrained.is_named(cell.backbone) and not self.text.tokenizer:
                raise UserError(
                    f"Grid {self.name}: backbone {cell.backbone!r} is pretrained and reads its own text tokens; set text.tokenizer to it."
                )
        permuting = any(set(cell.template.letters) - set(Template.parse(self.baseline).letters) for cell in self.cells)
        for level in self.perceptual.snr_db if permuting else ():
            if level not in self.snr_db.test:
                shown = "clean" if level == math.inf else f"{level:g}"
                raise UserError(
                    f"Grid {self.name}: perceptual.snr_db has {shown}, which snr_db.test lacks; add it there or take it out here."
                )
        return self

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Cells in the order of the file, each once."""
        found: dict[Cell, None] = {}
        for row in self.rows:
            merged = self.train.model_dump()
            for key, value in row.train.items():
                merged[key] = {**merged[key], **value} if isinstance(value, dict) else value
            settings = validated(TrainSettings, merged, f"Grid {self.name}: cells.train")
            for backbone, notation, seed in itertools.product(row.backbone, row.template, row.seed):
                found[Cell(check_name(backbone), Template.parse(notation), seed, settings)] = None
        return tuple(found)

    def letters(self) -> Iterator[str]:
        """Input modalities that any cell uses."""
        yield from dict.fromkeys(letter for cell in self.cells for letter in cell.template.letters)


def validated(kind: type[BaseModel], values: dict[str, Any], where: str) -> Any:
    """Build settings from plain data.

    Raises:
        UserError: the first complaint as one sentence, with "did you mean" for an unknown key.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{where}: there is no key {'.'.join(path)!r}; {did_you_mean(path[-1], _known_keys(kind, path[:-1]))}."
            ) from None
        raise UserError(f"{where}: {'.'.join(path)}: {first['msg']} (got {first.get('input')!r}).") from None


def _known_keys(kind: Any, path: Sequence[str]) -> list[str]:
    """Keys of the section that a validation path leads to."""
    for part in path:
        fields = getattr(kind, "model_fields", {})
        named = {field.alias or name: field.annotation for name, field in fields.items()}
        if part in named:
            kind = named[part]
        while (arguments := getattr(kind, "__args__", None)) and not hasattr(kind, "model_fields"):
            kind = next((a for a in reversed(arguments) if hasattr(a, "model_fields")), None)
    return [field.alias or name for name, field in getattr(kind, "model_fields", {}).items()]


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply dotted overrides such as `train.steps=200` or `snr_db.test=[0,-10]` (values are YAML), on a copy.

    Raises:
        UserError: not of the form key=value, or a path that leads through a plain value.
    """
    changed = copy.deepcopy(values)
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key:
            raise UserError(f"Override {assignment!r} must read key=value, for example train.steps=200.")
        *parents, last = key.split(".")
        target: Any = changed
        try:
            for part in parents:
                target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
            target[int(last) if isinstance(target, list) else last] = yaml.safe_load(text)
        except (AttributeError, IndexError, TypeError, ValueError):
            raise UserError(f"Override {assignment!r}: the sweep file has no place {key!r}; see its layout.") from None
        except yaml.YAMLError:
            raise UserError(f"Override {assignment!r}: {text!r} is not a YAML value.") from None
    return changed


def read_grid_file(name: str, assignments: Sequence[str] = ()) -> Grid:
    """Read `sweeps/NAME.yaml`, or any path, with dotted overrides.

    Raises:
        UserError: no such file, not YAML, or a value that does not fit; one sentence with file and key.
    """
    path = recipes.find("sweeps", name)
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values; see sweeps/quickstart.yaml.")
    values.setdefault("name", Path(path).stem)
    return validated(Grid, override(values, assignments), str(path))
