"""A cell: all settings that one model is trained and tested with, as validated plain data with every default filled in."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dmlm.corpus.faults import check_rules
from dmlm.corpus.noise import NoiseSettings
from dmlm.errors import UserError, did_you_mean
from dmlm.limits import taken_for_another_kind
from dmlm.model import pretrained
from dmlm.model.family import check_name
from dmlm.recognition.settings import DecodeSettings
from dmlm.score import normalisers
from dmlm.sequence.template import Template
from dmlm.snr import CLEAN_DB, Snr
from dmlm.training.settings import Execution, TrainSettings


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _known_rules(names: tuple[str, ...]) -> tuple[str, ...]:
    check_rules(names)
    return names


Snrs = Annotated[tuple[Snr, ...], BeforeValidator(_as_list), Field(min_length=1)]
DistinctSnrs = Annotated[Snrs, AfterValidator(lambda snrs_db: tuple(dict.fromkeys(snrs_db)))]
ALL_SNRS_DB = (CLEAN_DB, 20.0, 10.0, 5.0, 0.0, -5.0, -10.0, -20.0)


class Section(BaseModel):
    """Base class for sections of a sweep file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class CorpusChoice(Section):
    """Which corpus, which part of it, and how texts are compared; in the file, a name alone is enough.

    A corpus is a recipe, one of its presets and settings that replace single values of that preset; or an imported corpus,
    by its name or its folder.
    """

    recipe: str  # of an imported corpus its name or its folder
    preset: str = ""  # needed if a recipe has several
    settings: dict[str, Any] = {}
    fold: int | None = Field(default=None, ge=0, description="which fold of the corpus is tested; the others train")
    lacking: Literal["error", "empty"] = (
        "error"  # of a clip without a modality that is read: refused, or an empty segment
    )
    leave_out: Annotated[
        tuple[str, ...], BeforeValidator(_as_list), AfterValidator(_known_rules)
    ] = ()  # rules of `dmlm corpus check`
    # set by a run, so not among the keys of a sweep file: the id of each clip that broke one -> rule
    left_out: dict[str, str] = Field(default={}, repr=False)
    normaliser: normalisers.Name = "basic"  # of references and hypotheses, when they are compared

    @model_validator(mode="before")
    @classmethod
    def _expand_bare_name(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value


class TokenizerChoice(Section):
    """A tokenizer recipe and its settings; in the file, the name of the recipe alone is enough."""

    recipe: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _expand_bare_name(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value


class TextSettings(Section):
    """The text vocabulary: BPE learned on the training transcripts, or the vocabulary of a pretrained model."""

    vocab_size: int = Field(default=400, ge=256, le=10**6)
    tokenizer: str | None = None  # a folder or Hub id; required for pretrained backbones


class SnrChoice(Section):
    """SNRs in dB, or `clean`. Training draws one per utterance (a repeated value is more likely); testing uses each once."""

    train: Snrs = ALL_SNRS_DB
    test: DistinctSnrs = ALL_SNRS_DB


class PerceptualChoice(Section):
    """The SNRs of the perceptual score, and how many permutations of each added modality are drawn there."""

    snr_db: DistinctSnrs = (CLEAN_DB, -10.0)
    draws: int = Field(default=5, ge=1)


class ModelSettings(Section):
    """Settings that all backbones share."""

    context: int = Field(default=512, ge=8, le=10**7, description="longest sequence, in tokens")
    start: Literal["structured", "random"] = "structured"  # see start_at_centroids in dmlm.model.backbones


class Cell(Section):
    """One model of a grid. Cells that differ only in `execution` are the same model."""

    corpus: CorpusChoice
    tokenizers: dict[str, TokenizerChoice]
    text: TextSettings = TextSettings()
    noise: NoiseSettings = NoiseSettings()
    snr_db: SnrChoice = SnrChoice()
    model: ModelSettings = ModelSettings()
    backbone: str
    template: str
    permute: str | None = Field(default=None, description="control: take this modality from another utterance, always")
    seed: int = Field(default=0, ge=0, lt=2**63)  # the range that random generators accept
    train: TrainSettings = TrainSettings()
    decode: DecodeSettings = DecodeSettings()
    perceptual: PerceptualChoice = PerceptualChoice()
    split: Literal["test", "val"] = Field(default="test", description="split to score on; a search uses val")
    execution: Execution = Execution()

    @model_validator(mode="before")
    @classmethod
    def _normalise_template(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("template"), str):
            return {**values, "template": Template.parse(values["template"]).notation}
        return values

    @model_validator(mode="after")
    def _check_consistency(self) -> "Cell":
        check_name(self.backbone)
        for letter in self.letters:
            if letter not in self.tokenizers:
                raise UserError(
                    f"template {self.template!r} needs modality {letter}, but `tokenizers` names none for {letter}."
                )
        if self.permute is not None and self.permute not in self.letters:
            raise UserError(f"permute: {self.permute!r} is no input modality of template {self.template!r}.")
        if pretrained.is_named(self.backbone) and not self.text.tokenizer:
            raise UserError(
                f"backbone {self.backbone!r} is pretrained and reads its own text tokens; set text.tokenizer to it."
            )
        return self

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of the input modalities, in order."""
        return Template.parse(self.template).letters

    @property
    def label(self) -> str:
        """Name for people, such as `OPT A+L permuted L seed 1`."""
        family = pretrained.family_of(self.backbone).label
        control = f" permuted {self.permute}" if self.permute else ""
        run = (f" seed {self.seed}" if self.seed else "") + (
            "" if self.corpus.fold is None else f" fold {self.corpus.fold}"
        )
        return f"{family} {self.template.removesuffix(' -> T')}{control}{run}"


def validated(kind: type[BaseModel], values: dict[str, Any], where: str) -> Any:
    """Build a settings object of class `kind` from plain data; `where` starts the error sentence.

    Raises:
        UserError: the first problem as one sentence, with "did you mean" for an unknown key.
    """
    try:
        made = kind(**values)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(kind, error)[1]}") from None
    if found := taken_for_another_kind(values, made):
        raise UserError(f"{where}: {'.'.join(found[0])}: {found[1]}.")
    return made


def first_problem(kind: type[BaseModel], error: ValidationError) -> tuple[list[str], str]:
    """Return the key path of the first invalid value, and a sentence about it."""
    first = min(error.errors(), key=lambda e: e["type"] == "missing")  # last: a misspelt key also makes one missing
    path = [str(part) for part in first["loc"]]
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):  # of a model, of a dataclass
        near = did_you_mean(path[-1], _known_keys(kind, path[:-1])) + "."
        elsewhere = [key for key in _all_keys(kind) if key.split(".")[-1] == path[-1]]
        if elsewhere and near.startswith("known"):
            near = f"did you mean {elsewhere[0]!r}?"
        return path, f"there is no key {'.'.join(path)!r}; {near}"
    if first["type"] == "missing":
        return path, f"{'.'.join(path)} is missing; give it a value."
    if not path:  # of several values together
        return path, f"{first['msg'].removeprefix('Value error, ')}."
    return path, f"{'.'.join(path)}: {first['msg']} (got {first.get('input')!r})."


def _known_keys(kind: Any, path: Sequence[str]) -> list[str]:
    """Return the keys of the section at a validation path."""
    for part in path:
        kind = _annotations(kind).get(part, kind)
        while (arguments := getattr(kind, "__args__", None)) and not _annotations(kind):
            kind = next((argument for argument in reversed(arguments) if _annotations(argument)), None)
    return list(_annotations(kind))


def _all_keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every setting below a section."""
    for key, annotation in _annotations(kind).items():
        yield prefix + key
        yield from _all_keys(annotation, f"{prefix}{key}.")


def _annotations(kind: Any) -> dict[str, Any]:
    """Return the type of each key of a section, which is a pydantic model or a dataclass; empty for any other type.

    Fields of `repr=False`, which a run sets, are no keys.
    """
    if is_dataclass(kind):
        return {field.name: field.type for field in fields(kind)}
    model_fields = getattr(kind, "model_fields", {}).items()
    return {field.alias or name: field.annotation for name, field in model_fields if field.repr}
