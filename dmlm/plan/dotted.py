"""Nested plain data addressed by dotted keys, such as `train.lambdas.A`, and the line of a YAML file that a key is on."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dmlm.errors import UserError
from dmlm.plan.file_paths import absolute
from dmlm.plan.yaml_values import load, problem

OF_A_CORPUS = ("recipe", "preset", "settings")  # which corpus it is; other keys of `corpus` say how it is read


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Merge `more` into a copy of `values`, section by section. A value with a `recipe` replaces the old one entirely.

    Another corpus replaces the old one and its settings, but not how it is read: `fold`, `leave_out`, `normaliser`.
    """
    result = copy.deepcopy(values)
    for key, value in more.items():
        if value != {} or not isinstance(result.get(key), dict):  # an empty section says nothing
            assign(result, key, value)
    return result


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `train.lambdas.A` in nested values, in place. A section is merged into the old one, as by `merged`.

    Raises:
        UserError: a parent of the key is a plain value, not a section.
    """
    *parents, last = key.split(".")
    target: Any = values
    for part, following in zip(parents, [*parents[1:], last], strict=False):
        inner = target.get(part)
        if isinstance(inner, str) and (following in ("recipe", "settings") or part == "corpus"):  # given by name alone
            inner = target[part] = {"recipe": inner}
        target = target.setdefault(part, {}) if inner is None else inner
        if not isinstance(target, dict):
            raise UserError(
                f"There is no place {key!r}: {part} is a plain value; its settings are in dmlm/plan/cell.py."
            )
    old = target.get(last)
    if last == "corpus" and isinstance(old, str):
        old = {"recipe": old}
    if (
        last == "corpus"
        and isinstance(old, dict)
        and (isinstance(value, str) or (isinstance(value, dict) and "recipe" in value))
    ):
        kept = {name: setting for name, setting in old.items() if name not in OF_A_CORPUS}
        value = {**kept, **({"recipe": value} if isinstance(value, str) else value)}
    elif value and isinstance(value, dict) and isinstance(old, dict) and "recipe" not in value:
        value = merged(old, value)
    target[last] = copy.deepcopy(value)


def value_at(values: dict[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or None if there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None  # type: ignore[assignment]
    return values


def dotted_keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every value; a recipe with its settings counts as one value."""
    for key, value in values.items():
        if isinstance(value, dict) and "recipe" not in value:
            yield from dotted_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def parse_override(assignment: str) -> tuple[str, Any]:
    """Split an override such as `train.steps=200` or `snr_db.test=[clean, -10]` into its key and its value, read as YAML.

    Paths in the value are relative to the current folder; they become absolute.

    Raises:
        UserError: not of the form key=value, or the value is not YAML.

    >>> parse_override("snr_db.test=[clean, -5]")
    ('snr_db.test', ['clean', -5])
    """
    key, sign, text = assignment.partition("=")
    if not sign or not all(key.split(".")):
        raise UserError(f"Override {assignment!r} must read key=value, for example train.steps=200.")
    try:
        return key, absolute(load(text)[0], Path.cwd(), key.split("."))
    except yaml.YAMLError as error:
        raise UserError(f"Override {assignment!r} has not a YAML value: {problem(error)[1]}.") from None
    except ValueError as error:  # of a tag such as !!float
        raise UserError(f"Override {assignment!r} has not a YAML value: {error}.") from None


CELL_SECTIONS = ("base", "axes", "zip", "include")  # sections of a sweep file that hold settings of cells


class Lines:
    """The line number of every key in a YAML file."""

    def __init__(self, root: yaml.Node | None) -> None:
        self._entries: list[tuple[tuple[str, ...], int]] = []  # key path, line
        self._walk(root, ())
        self._grids = {path[1] for path, _ in self._entries if path[0] == "grids" and len(path) > 1}

    def _walk(self, node: yaml.Node | None, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                key_path = (*path, *str(key.value).split("."))
                self._entries.append((key_path, key.start_mark.line + 1))
                self._walk(value, key_path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._walk(item, (*path, str(index)))

    def locate(self, path: Sequence[str]) -> str:
        """Return `, line 7` for a key path, or for the longest part of it that the file has; empty if it has none.

        The path starts at the root of the file, or at the root of a cell: below `base`, `axes`, `zip` or `include`.
        """
        wanted = [part for part in path if not part.isdigit()]
        # axes and zip first: they override the value of `base`
        entries = sorted(self._entries, key=lambda entry: not {"axes", "zip"} & {*entry[0]})
        for length in range(len(wanted), 0, -1):
            for entry_path, line in entries:
                keys = [part for part in entry_path if not part.isdigit()]
                starts = [0, *(n + 1 for n, part in enumerate(keys) if part in CELL_SECTIONS or part in self._grids)]
                if any(keys[start : start + length] == wanted[:length] for start in starts):
                    return f", line {line}"
        return ""


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read a YAML file; return its values and their line numbers. Paths in it are relative to it; they become absolute.

    Raises:
        UserError: it cannot be read, is not YAML, or not a mapping.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend that or give another file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from None
    try:
        values, tree = load(text)
    except yaml.YAMLError as error:
        line, what = problem(error)
        raise UserError(f"{path}{f', line {line}' if line else ''} is not YAML: {what}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values; see sweeps/quickstart.yaml.")
    return absolute(values, path.parent), Lines(tree)
