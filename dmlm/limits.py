"""Limits of the numbers in settings that are plain dataclasses, so that training and decoding run without pydantic.

Where settings come from a file, pydantic checks them, these limits too.
"""

from dataclasses import dataclass, fields
from typing import Any

FORBID_UNKNOWN = {"extra": "forbid"}  # for `__pydantic_config__` of a dataclass: an unknown key is an error


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Annotation of a number: `steps: Annotated[int, Limits(ge=1)]`. The names are those of pydantic's `Field`."""

    ge: float | None = None
    gt: float | None = None
    lt: float | None = None
    le: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        schema = handler(source)
        number = schema.get("schema", schema)  # inside, if the number may be null
        number |= {name: limit for name, limit in limits.items() if limit is not None}
        return schema
