"""The `search` section of a sweep file: which settings are searched, over which values, and how."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from dmlm.errors import UserError
from dmlm.limits import taken_for_another_kind
from dmlm.modalities import MODALITIES
from dmlm.plan.cell import Cell, Section, Snrs, first_problem, validated
from dmlm.plan.dotted import assign
from dmlm.snr import CLEAN_DB


class Span(Section):
    """The values to search for one setting: a range (`[low, high]` in the file), a number of `points` in it, or `choices`."""

    low: float = math.nan
    high: float = math.nan
    log: bool = Field(default=False, description="sample the range uniformly in its logarithm")
    points: int | None = Field(
        default=None, ge=2, description="number of evenly spaced values, ends included; for sampler grid"
    )
    choices: tuple[bool | int | float | str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _expand_pair(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if len(value) != 2:
            raise ValueError("a list is a range of two numbers; write {choices: [...]} for single values")
        return dict(zip(("low", "high"), value, strict=True))

    @model_validator(mode="after")
    def _check_range(self) -> "Span":
        if self.choices and self.model_fields_set != {"choices"}:
            raise ValueError("give either `choices` or a range, not both")
        if not self.choices and not self.low < self.high:
            raise ValueError("give `choices`, or a range whose low is below its high")
        if self.log and self.low <= 0:
            raise ValueError("with `log`, low must be above 0")
        return self

    def __contains__(self, value: Any) -> bool:
        return value in self.choices or (isinstance(value, int | float) and self.low <= value <= self.high)

    def grid_values(self, integer: bool = False) -> list[Any]:
        """Return the choices, or the evenly spaced points; with `integer`, rounded to integers.

        >>> Span(low=0.1, high=10, log=True, points=3).grid_values()
        [0.1, 1.0, 10.0]
        """
        if self.choices or not self.points:
            return list(self.choices)
        steps = [step / (self.points - 1) for step in range(self.points)]
        width = self.high / self.low if self.log else self.high - self.low
        values = [self.low * width**step if self.log else self.low + width * step for step in steps]
        return [round(value) if integer else float(f"{value:.12g}") for value in values]


class Search(Section):
    """Which settings to search, and how. Each point is a separate model; its WER on split `val` alone decides."""

    space: dict[str, Span] = Field(min_length=1)
    sampler: Literal["tpe", "grid"] = "tpe"
    trials: int = Field(default=20, ge=1, description="points per cell; tpe only, as a grid has all its combinations")
    startup: int = Field(default=8, ge=1, description="points drawn at random before tpe uses the results")
    parallel: int = Field(default=1, ge=1, description="points proposed at a time; the same on every machine")
    seed: int = Field(default=0, ge=0)
    snr_db: Snrs = Field(default=(CLEAN_DB, 0.0, -10.0), description="SNRs over which the WER of a point is pooled")

    @model_validator(mode="after")
    def _check_sampler(self) -> "Search":
        if fixed := {"split", "snr_db.test"} & set(self.space):
            raise ValueError(f"space: a search sets {fixed.pop()} itself")
        if self.sampler == "tpe" and (key := next((k for k, s in self.space.items() if s.points), None)):
            raise ValueError(f"space: `points` of {key} are for sampler grid; leave them out, or choose that sampler")
        if self.sampler == "grid":
            if key := next((k for k, s in self.space.items() if not s.choices and not s.points), None):
                raise ValueError(f"space: sampler grid needs `choices` or `points` for {key}")
            if unused := {"trials", "startup"} & self.model_fields_set:
                raise ValueError(f"{unused.pop()} is for sampler tpe; a grid has all the points of its space")
        return self

    def space_of(self, cell: Cell) -> dict[str, Span]:
        """Return the space of a cell, without the loss weights of modalities that the cell does not read."""
        unread = {f"train.lambdas.{letter}" for letter in MODALITIES if letter not in (*cell.letters, "T")}
        return {key: span for key, span in self.space.items() if key not in unread}

    def point_count(self, cell: Cell) -> int:
        """Return the number of points that are searched for a cell; 0 if its space is empty."""
        spans = self.space_of(cell).values()
        if not spans:
            return 0
        return self.trials if self.sampler == "tpe" else math.prod(len(span.grid_values()) for span in spans)


def with_settings(cell: Cell, values: dict[str, Any]) -> Cell:
    """Return a copy of a cell with new values for some settings, by dotted key.

    Raises:
        UserError, ValidationError: a value is invalid.
    """
    settings = cell.model_dump()
    for key, value in values.items():
        assign(settings, key, value)
    made = Cell(**settings)
    if found := taken_for_another_kind(settings, made):
        raise UserError(f"{'.'.join(found[0])}: {found[1]}.")
    return made


def pop_search_overrides(
    search: Search | None, overrides: dict[str, Any], where: Callable[[Sequence[str]], str]
) -> Search | None:
    """Apply overrides such as `search.trials=5` or `search.space.train.lr=[1.0e-4, 1.0e-2]`; removes them from `overrides`.

    Args:
        where: returns the override that set a key path, for the error sentence.

    Raises:
        UserError: an unknown key or an invalid value.
    """
    keys = [key for key in overrides if key.startswith("search.")]
    values = search.model_dump(exclude_unset=True) if search else {}
    for key in keys:
        _, field, *rest = key.split(".", 2)
        target = values.setdefault(field, {}) if rest else values
        if not isinstance(target, dict):
            raise UserError(f"{where(['search', field])}: there is no key {key!r}.")
        target[rest[0] if rest else field] = overrides.pop(key)
    return validated(Search, values, where(["search"])) if keys else search


def check_space(search: Search, cells: Sequence[Cell], where: Callable[[Sequence[str]], str]) -> None:
    """Check that the ends and choices of every span are valid in every cell.

    Args:
        where: returns the file and line of a key path, for the error sentence.

    Raises:
        UserError: a value is invalid.
    """
    for key, span in search.space.items():
        for value, cell in itertools.product(span.choices or (span.low, span.high), cells):
            try:
                with_settings(cell, {key: value})
            except (ValidationError, UserError) as error:
                sentence = first_problem(Cell, error)[1] if isinstance(error, ValidationError) else str(error)
                location = where(("search", "space", *key.split(".")))
                raise UserError(f"{location}: search.space: {sentence}") from None
