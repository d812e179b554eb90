"""Limits of the numbers in settings that are plain dataclasses, so that training and decoding run without pydantic.

Where settings come from a file, pydantic checks them, these limits too.
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
