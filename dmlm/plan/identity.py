"""The identity of settings: the hash of their canonical JSON."""

import hashlib
import json
import math
from typing import Any


def canonical(value: Any) -> str:
    """Return JSON that is the same string for equal settings: sorted keys, whole floats as integers, infinity as text.

    >>> canonical({"b": 1.0, "a": -0.0}) == canonical({"a": 0, "b": 1})
    True
    """

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): plain(member) for key, member in item.items()}
        if isinstance(item, list | tuple):
            return [plain(member) for member in item]
        item = item.item() if hasattr(item, "item") else item  # a numpy scalar
        if isinstance(item, float):
            if not math.isfinite(item):
                return str(item)
            return int(item) if item == int(item) else item
        return item

    return json.dumps(plain(value), sort_keys=True, ensure_ascii=False)


def identity(spec: dict[str, Any], digits: int = 12) -> str:
    """Return the first hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:digits]
