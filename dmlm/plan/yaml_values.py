"""The YAML of sweep files and overrides: the core schema of version 1.2, without what two readers read differently.

PyYAML reads YAML 1.1, where `1e-3` and `0o17` are texts, and `no`, `1:30` and `2024-01-01` are not. Here a value is what
it looks like. A number that the versions take for different ones, such as `010`, is refused, as is a key that stands twice.
"""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with other rules for what a plain value is; the first that fits holds."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- as in the class above


TAG = "tag:yaml.org,2002:"
UNCLEAR = "!unclear"
DIGITS = "-+.0123456789"
for _tag, _pattern, _first in (
    (
        UNCLEAR,
        r"[-+]?0[0-9_]+|[-+]?[0-9.]+_[0-9_.]*(e[-+]?[0-9]+)?|[-+]?[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?|0b[01_]+",
        DIGITS,
    ),
    (TAG + "int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", DIGITS),
    (
        TAG + "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        DIGITS,
    ),
    (TAG + "bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (TAG + "null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (TAG + "merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), list(_first))


def _refuse(loader: _Loader, node: yaml.ScalarNode) -> None:
    text = node.value
    readings = [str(value) for value in (yaml.safe_load(text),) if not isinstance(value, str)]  # as YAML 1.1 reads it
    readings += [str(int(text))] if re.fullmatch("[-+]?[0-9]+", text) else []
    meant = " or ".join(dict.fromkeys([*readings, f'"{text}" in quotes']))
    raise yaml.MarkedYAMLError(
        problem=f"{text} is not the same to all readers of YAML; write {meant}", problem_mark=node.start_mark
    )


_Loader.add_constructor(UNCLEAR, _refuse)


def load(text: str) -> tuple[Any, yaml.Node | None]:
    """Read YAML; return the value, and the tree that it was made from, which knows lines.

    Raises:
        yaml.YAMLError: not YAML, an unclear number, a key that stands twice or is no text, or a value inside itself.

    >>> load("[1e-3, no, 1_0x, ~, 0o17]")[0]
    [0.001, 'no', '1_0x', None, 15]
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _check(node, ())
        return loader.construct_document(node), node
    finally:
        loader.dispose()


def problem(error: yaml.YAMLError) -> tuple[int | None, str]:
    """Return the line of an error, if it has one, and what is wrong there, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        what = ", ".join(filter(None, (error.context, error.problem)))
        return error.problem_mark.line + 1, " ".join(what.split())
    return None, " ".join(str(error).split())


def _check(node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
    """Check the keys of a tree.

    Raises:
        yaml.MarkedYAMLError: see `load`.
    """

    def wrong(what: str, place: yaml.Node) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=what, problem_mark=place.start_mark)

    if any(node is outer for outer in above):
        raise wrong("this value contains itself", node)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if key.tag not in (f"{TAG}str", f"{TAG}merge"):
                shown = key.value if isinstance(key, yaml.ScalarNode) else "this"
                raise wrong(f"a key is a word, and {shown} is none", key)
            if key.value in lines:
                raise wrong(f"the key {key.value!r} stands in line {lines[key.value]} already", key)
            lines[key.value] = key.start_mark.line + 1
            _check(value, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, (*above, node))
