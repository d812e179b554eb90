"""Limits of the numbers in settings that are plain dataclasses, so that training and decoding run without pydantic.

Where settings come from a file, pydantic checks them, these limits too. `taken_for_another_kind` finds what pydantic lets pass.
"""

from dataclasses import dataclass
from typing import Any

# for `__pydantic_config__` of a dataclass: an unknown key is an error, and so is a number that is not finite
STRICT = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Annotation of a number: `steps: Annotated[int, Limits(ge=1)]`. The names are those of pydantic's `Field`."""

    ge: float | None = None
    gt: float | None = None
    lt: float | None = None
    le: float | None = None
    never: tuple[float, str] | None = None  # a value in between that is refused, and why

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        limits = {name: getattr(self, name) for name in ("ge", "gt", "lt", "le")}
        schema = handler(source)
        number = schema.get("schema", schema)  # inside, if the number may be null
        number |= {name: limit for name, limit in limits.items() if limit is not None}
        if self.never is None:
            return schema
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self._refuse, schema)

    def _refuse(self, value: float) -> float:
        if self.never and value == self.never[0]:
            raise ValueError(self.never[1])
        return value


def taken_for_another_kind(given: Any, made: Any, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], str] | None:
    """Return the path of the first value that pydantic took for another kind, and a sentence; None if there is none.

    It takes `true` for 1 where a number belongs, and 1 or `yes` for `true`.

    Args:
        given: plain data.
        made: what pydantic made of it: a model, a dataclass, a container or a value.
    """
    if isinstance(given, dict):
        pairs = [
            (key, value, made.get(key) if isinstance(made, dict) else getattr(made, key, value))
            for key, value in given.items()
        ]
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        pairs = list(zip(map(str, range(len(given))), given, made, strict=False))
    else:
        wrong = isinstance(made, int | float) and isinstance(given, bool) != isinstance(made, bool)
        expected = "true or false" if isinstance(made, bool) else "a number"
        return (path, f"Input should be {expected} (got {given!r})") if wrong else None
    found = (taken_for_another_kind(value, its, (*path, key)) for key, value, its in pairs)
    return next(filter(None, found), None)
