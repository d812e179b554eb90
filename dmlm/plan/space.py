"""The `search` section of a sweep file: which settings may take which values, and how they are searched."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from dmlm.errors import UserError
from dmlm.plan.cell import Cell, Section, Snrs, first_problem, validated
from dmlm.plan.dotted import assign
from dmlm.snr import CLEAN_DB
from dmlm.training.settings import Lambdas


class Span(Section):
    """What may be tried of one setting: a range, in the file also `[low, high]`; `points` of it; or `choices`."""

    low: float = math.nan
    high: float = math.nan
    log: bool = Field(default=False, description="a tenfold of anything is equally likely")
    points: int | None = Field(default=None, ge=2, description="so many, evenly spaced, ends included; for a grid")
    choices: tuple[bool | int | float | str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if len(value) != 2:
            raise ValueError("a list is a range of two numbers; write {choices: [...]} for single values")
        return dict(zip(("low", "high"), value, strict=True))

    @model_validator(mode="after")
    def _fits(self) -> "Span":
        if self.choices and self.model_fields_set != {"choices"}:
            raise ValueError("give either `choices` or a range, not both")
        if not self.choices and not self.low < self.high:
            raise ValueError("give `choices`, or a range whose low is below its high")
        if self.log and self.low <= 0:
            raise ValueError("with `log`, low must be above 0")
        return self

    def __contains__(self, value: Any) -> bool:
        return value in self.choices or (isinstance(value, int | float) and self.low <= value <= self.high)

    def spaced(self, whole: bool = False) -> list[Any]:
        """The choices, or the evenly spaced points.

        >>> Span(low=0.1, high=10, log=True, points=3).spaced()
        [0.1, 1.0, 10.0]
        """
        if self.choices or not self.points:
            return list(self.choices)
        steps = [step / (self.points - 1) for step in range(self.points)]
        width = self.high / self.low if self.log else self.high - self.low
        values = [self.low * width**step if self.log else self.low + width * step for step in steps]
        return [round(value) if whole else float(f"{value:.12g}") for value in values]


class Search(Section):
    """Which settings to search, and how. Every point is a model of its own, chosen by its WER on split `val` alone."""

    space: dict[str, Span] = Field(min_length=1)
    sampler: Literal["tpe", "grid"] = "tpe"
    trials: int = Field(default=20, ge=1, description="points for each cell; tpe only, a grid has its own number")
    startup: int = Field(default=8, ge=1, description="points drawn at random before tpe learns from them")
    parallel: int = Field(default=1, ge=1, description="points proposed at a time, whatever the machine has room for")
    seed: int = Field(default=0, ge=0)
    snr_db: Snrs = Field(default=(CLEAN_DB, 0.0, -10.0), description="each point's WER is pooled over these")

    @model_validator(mode="after")
    def _fits(self) -> "Search":
        if own := {"split", "snr_db.test"} & set(self.space):
            raise ValueError(f"space: a search sets {own.pop()} itself")
        if self.sampler == "tpe" and (key := next((k for k, s in self.space.items() if s.points), None)):
            raise ValueError(f"space: `points` of {key} are for sampler grid; leave them out, or choose that sampler")
        if self.sampler == "grid":
            if key := next((k for k, s in self.space.items() if not s.choices and not s.points), None):
                raise ValueError(f"space: sampler grid needs `choices` or `points` for {key}")
            if unused := {"trials", "startup"} & self.model_fields_set:
                raise ValueError(f"{unused.pop()} is for sampler tpe; a grid has all the points of its space")
        return self

    def concerning(self, cell: Cell) -> dict[str, Span]:
        """The space of a cell: without the loss weights of modalities that it does not read."""
        unread = {f"train.lambdas.{letter}" for letter in Lambdas.model_fields if letter not in (*cell.letters, "T")}
        return {key: span for key, span in self.space.items() if key not in unread}

    def points(self, cell: Cell) -> int:
        """How many there are of a cell."""
        space = self.concerning(cell).values()
        return 0 if not space else self.trials if self.sampler == "tpe" else math.prod(len(s.spaced()) for s in space)


def changed(cell: Cell, values: dict[str, Any]) -> Cell:
    """A cell with other values of some dotted settings.

    Raises:
        UserError, ValidationError: they do not fit.
    """
    plain = cell.model_dump()
    for key, value in values.items():
        assign(plain, key, value)
    return Cell(**plain)


def overridden(search: Search | None, given: dict[str, Any]) -> Search | None:
    """Take overrides such as `search.trials=5` or `search.space.train.lr=[1.0e-4, 1.0e-2]` out of `given`."""
    keys = [key for key in given if key.startswith("search.")]
    values = search.model_dump(exclude_unset=True) if search else {}
    for key in keys:
        _, field, *rest = key.split(".", 2)
        target = values.setdefault(field, {}) if rest else values
        target[rest[0] if rest else field] = given.pop(key)
    return validated(Search, values, "search") if keys else search


def check_space(search: Search, cells: Sequence[Cell], where: Callable[[Sequence[str]], str]) -> None:
    """Refuse a space of which an end or a choice does not fit a cell; `where` names the file and the line of a key."""
    for key, span in search.space.items():
        for value, cell in itertools.product(span.choices or (span.low, span.high), cells):
            try:
                changed(cell, {key: value})
            except (ValidationError, UserError) as error:
                sentence = first_problem(Cell, error)[1] if isinstance(error, ValidationError) else str(error)
                place = where(("search", "space", *key.split(".")))
                raise UserError(f"{place}: search.space: {sentence}") from None
