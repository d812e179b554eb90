"""Nested plain data addressed by dotted keys, such as `train.lambdas.A`; and the lines of a file that such keys stand in."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dmlm.errors import UserError


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`more` on top of `values`, section by section; a recipe brings its own settings."""
    result = copy.deepcopy(values)
    for key, value in more.items():
        if "." in key:
            assign(result, key, value)
        elif isinstance(value, dict) and isinstance(result.get(key), dict) and "recipe" not in value:
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `train.lambdas.A` in nested values, in place.

    Raises:
        UserError: the path leads through a plain value.
    """
    *parents, last = key.split(".")
    target: Any = values
    for part, following in zip(parents, [*parents[1:], last], strict=False):
        inner = target.get(part)
        if isinstance(inner, str) and following in ("recipe", "settings"):  # a bare name of a recipe
            inner = target[part] = {"recipe": inner}
        target = target.setdefault(part, {}) if inner is None else inner
        if not isinstance(target, dict):
            raise UserError(
                f"There is no place {key!r}: {part} is a plain value; its settings are in dmlm/plan/cell.py."
            )
    target[last] = copy.deepcopy(value)


def looked_up(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None  # type: ignore[assignment]
    return values


def dotted(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of nested values; a recipe with its settings is one value."""
    for key, value in values.items():
        if isinstance(value, dict) and "recipe" not in value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def parsed(assignment: str) -> tuple[str, Any]:
    """An override such as `train.steps=200` or `snr_db.test=[clean, -10]`; the value is YAML.

    Raises:
        UserError: not of the form key=value, or no YAML.

    >>> parsed("snr_db.test=[clean, -5]")
    ('snr_db.test', ['clean', -5])
    """
    key, sign, text = assignment.partition("=")
    if not sign or not key:
        raise UserError(f"Override {assignment!r} must read key=value, for example train.steps=200.")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"Override {assignment!r}: {text!r} is not a YAML value.") from None


OUTER = ("base", "axes", "zip", "include")  # what a setting of a cell stands below


class Lines:
    """In which line of a file each key stands."""

    def __init__(self, root: yaml.Node | None) -> None:
        self._known: list[tuple[tuple[str, ...], int]] = []
        self._walk(root, ())
        self._grids = {path[1] for path, _ in self._known if path[0] == "grids" and len(path) > 1}

    def _walk(self, node: yaml.Node | None, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, *str(key.value).split("."))
                self._known.append((here, key.start_mark.line + 1))
                self._walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self._walk(item, (*path, str(number)))

    def of(self, path: Sequence[str]) -> str:
        """`, line 7`, where a key path stands, or the section that it would stand in; nothing where it came from elsewhere.

        A path is one of a cell, which stands below `base`, `axes`, `zip` or `include`, or one of the file itself.
        """
        wanted = [part for part in path if not part.isdigit()]
        for length in range(len(wanted), 0, -1):
            for known, line in sorted(self._known, key=lambda found: not {"axes", "zip"} & {*found[0]}):  # these win
                bare = [part for part in known if not part.isdigit()]
                starts = [0, *(n + 1 for n, part in enumerate(bare) if part in OUTER or part in self._grids)]
                if any(bare[start : start + length] == wanted[:length] for start in starts):
                    return f", line {line}"
        return ""


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """Values of a YAML file and where they stand."""
    text = path.read_text("utf-8")
    try:
        values, lines = yaml.safe_load(text), Lines(yaml.compose(text, yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values; see sweeps/quickstart.yaml.")
    return values, lines
