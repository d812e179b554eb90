"""A sweep file: plain data, checked on reading, and the cells that it asks for.

base:     what all cells share, as nested or dotted keys
zip:      keys whose values advance together, as one axis
axes:     every combination of these values
exclude:  combinations to leave out
include:  further blocks of this form, on top of `base`
grids:    named blocks, on top of the file's own `base`: NAME:small is run by its own name, NAME_small
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from dmlm import recipes
from dmlm.errors import UserError, did_you_mean
from dmlm.sequence.template import Template
from dmlm.sweep.cell import Cell, Section, complaint

Values = Annotated[list[Any], Field(min_length=1)]
OF_THE_GRID = ("name", "about", "baseline")  # what an override may name besides a setting of the cells


class Block(Section):
    """A part of a sweep file that yields cells."""

    base: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, Values] = Field(default_factory=dict)
    zip: Annotated[tuple[dict[str, Values], ...], BeforeValidator(lambda v: [v] if isinstance(v, dict) else v)] = ()
    include: tuple["Block", ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()


class GridFile(Block):
    """A whole sweep file."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    about: str = Field(default="", description="the question that it answers")
    baseline: str = "A -> T"
    grids: dict[str, Block] = Field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """One experiment: its cells in the order of the file, each once."""

    name: str
    baseline: str
    about: str
    cells: tuple[Cell, ...]
    variants: tuple[str, ...]  # for each cell what sets it apart from others of its backbone, template and seed

    def letters(self) -> Iterator[str]:
        """Input modalities that any cell uses."""
        yield from dict.fromkeys(letter for cell in self.cells for letter in cell.letters)


def read_grid_file(name: str, assignments: Sequence[str] = ()) -> Grid:
    """Read `sweeps/NAME.yaml`, or any path, with dotted overrides; `NAME:small` chooses one of several grids.

    An override of an axis replaces its values; of a setting, it holds in every cell.

    Raises:
        UserError: no such file or grid, not YAML, or a value that does not fit; one sentence with file, line and key.
    """
    name, _, part = name.partition(":")
    path = recipes.find("sweeps", name)
    values, lines = _read(path)
    given = dict(map(parsed, assignments))
    values |= {key: given.pop(key) for key in OF_THE_GRID if key in given}
    try:
        file = GridFile(**values)
    except ValidationError as error:
        keys, sentence = complaint(GridFile, error)
        raise UserError(f"{path}{lines.of(keys)}: {sentence}") from None
    block, title = _chosen(file, part, path)
    block = _with_axes(block, given)
    raw = list(_expanded(block, {} if block is file else _merged({}, file.base)))
    for cell in raw:
        for key, value in given.items():
            assign(cell, key, value)
    return _grid(file, title, raw, sorted(_keys(block)), path, lines)


def _chosen(file: GridFile, part: str, path: Path) -> tuple[Block, str]:
    """The block that is asked for, and the name of its grid."""
    names = ", ".join(f"{path.stem}:{key}" for key in file.grids)
    if file.grids and (file.axes or file.zip or file.include or file.exclude):
        raise UserError(f"{path} has `grids`, so its axes, zip, include and exclude belong inside one of {names}.")
    if file.grids and not part:
        raise UserError(f"{path} holds several grids; choose one of {names}.")
    if part and part not in file.grids:
        raise UserError(f"{path} has no grid {part!r}; {did_you_mean(part, file.grids)}.")
    stem = path.stem + (f"_{part}" if part else "")
    return (file.grids[part] if part else file), file.name or stem


def _with_axes(block: Block, given: dict[str, Any]) -> Block:
    """Take overrides of axes out of `given` and put their values in place."""
    axes = dict(block.axes)
    for key in [key for key in given if key.removeprefix("axes.") in axes or key.startswith("axes.")]:
        value = given.pop(key)
        axes[key.removeprefix("axes.")] = value if isinstance(value, list) else [value]
    return block.model_copy(update={"axes": axes})


def _expanded(block: Block, inherited: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings of each cell, nested, not yet checked."""
    base = _merged(inherited, block.base)
    columns = []
    for group in block.zip:
        if len({len(values) for values in group.values()}) > 1:
            sizes = ", ".join(f"{key} {len(values)}" for key, values in group.items())
            raise UserError(f"zip: values that advance together must be equally many, but there are {sizes}.")
        columns.append([dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)])
    columns += [[{key: value} for value in values] for key, values in block.axes.items()]
    if columns or not block.include:
        for choices in itertools.product(*columns):
            cell = copy.deepcopy(base)
            for key, value in (pair for choice in choices for pair in choice.items()):
                assign(cell, key, value)
            if not any(_matches(cell, rule) for rule in block.exclude):
                yield cell
    for inner in block.include:
        yield from _expanded(inner, base)


def _merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`more` on top of `values`, section by section; a recipe brings its own settings."""
    result = copy.deepcopy(values)
    for key, value in more.items():
        if "." in key:
            assign(result, key, value)
        elif isinstance(value, dict) and isinstance(result.get(key), dict) and "recipe" not in value:
            result[key] = _merged(result[key], value)
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
    for part in parents:
        inner = target.get(part)
        if isinstance(inner, str) and part == parents[-1] and last in ("recipe", "settings"):
            inner = target[part] = {"recipe": inner}
        target = target.setdefault(part, {}) if inner is None else inner
        if not isinstance(target, dict):
            raise UserError(f"There is no place {key!r}: {part} is a plain value; see docs in dmlm/sweep/cell.py.")
    target[last] = copy.deepcopy(value)


def _looked_up(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None  # type: ignore[assignment]
    return values


def _matches(cell: dict[str, Any], rule: dict[str, Any]) -> bool:
    """Whether a cell has all values of an exclusion; a list there names several."""

    def same(key: str, wanted: Any) -> bool:
        value = _looked_up(cell, key)
        if key == "template" and isinstance(value, str):
            value, wanted = (_notation(item) for item in (value, wanted))
        return bool(value == wanted or (isinstance(wanted, list) and value in wanted))

    return all(same(key, wanted) for key, wanted in rule.items())


def _notation(value: Any) -> Any:
    if isinstance(value, list):
        return [_notation(item) for item in value]
    return Template.parse(value).notation if isinstance(value, str) else value


def _keys(block: Block) -> set[str]:
    """Settings that a block lets vary."""
    own = {*block.axes, *(key for group in block.zip for key in group)}
    return own.union(*({*_dotted(inner.base), *_keys(inner)} for inner in block.include))


def _dotted(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and "recipe" not in value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _grid(
    file: GridFile, name: str, raw: list[dict[str, Any]], keys: Sequence[str], path: Path, lines: "_Lines"
) -> Grid:
    """Check every cell, drop those met before, and name what sets each apart."""
    met: dict[Cell | str, int] = {}
    cells: list[Cell] = []
    kept: list[dict[str, Any]] = []
    for values in raw:
        try:
            cell = Cell(**values)
        except ValidationError as error:
            at, sentence = complaint(Cell, error)
            raise UserError(f"{path}{lines.of(at)}: {sentence}") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if met.setdefault(cell.model_dump_json(), len(cells)) == len(cells):
            cells.append(cell)
            kept.append(values)
    if not cells:
        raise UserError(f"{path} asks for no cell; give it axes, or exclude less.")
    baseline = Template.parse(file.baseline)
    for cell in cells:
        added = set(cell.letters) - set(baseline.letters)
        for level in cell.perceptual.snr_db if added and not cell.permute else ():
            if level not in cell.snr_db.test:
                shown = "clean" if level == math.inf else f"{level:g}"
                raise UserError(
                    f"{path}: perceptual.snr_db has {shown}, which snr_db.test lacks; add it there or take it out here."
                )
    return Grid(name, baseline.notation, file.about, tuple(cells), tuple(_variants(cells, kept, keys)))


def _variants(cells: Sequence[Cell], raw: Sequence[dict[str, Any]], keys: Sequence[str]) -> Iterator[str]:
    """`noise.placement whole`: the values of those keys that take several within one backbone, template and seed."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for cell, values in zip(cells, raw, strict=True):
        groups.setdefault((cell.backbone, cell.template, cell.seed), []).append(values)
    telling = [
        key
        for key in keys
        if key not in ("backbone", "template", "seed")
        and any(len({repr(_looked_up(v, key)) for v in group}) > 1 for group in groups.values())
    ]
    for values in raw:
        parts = [(key, _looked_up(values, key)) for key in telling]
        shown = {key: "permuted" if key == "permute" else key for key in telling}
        yield ", ".join(f"{shown[key]} {_shown(value)}" for key, value in parts if value is not None)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(_shown(part) for part in value.values())
    return "/".join(map(_shown, value)) if isinstance(value, list) else str(value)


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


class _Lines:
    """In which line of a file each key stands."""

    def __init__(self, root: yaml.Node | None) -> None:
        self._known: list[tuple[tuple[str, ...], int]] = []
        self._walk(root, ())

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
        """`, line 7`, where a key path that ends so stands; nothing where it came from elsewhere."""
        wanted = [part for part in path if not part.isdigit()]
        for length in range(len(wanted), 0, -1):
            for known, line in self._known:
                bare = [part for part in known if not part.isdigit()]
                if bare[-length:] == wanted[:length]:
                    return f", line {line}"
        return ""


def _read(path: Path) -> tuple[dict[str, Any], _Lines]:
    """Values of a YAML file and where they stand."""
    text = path.read_text("utf-8")
    try:
        values, lines = yaml.safe_load(text), _Lines(yaml.compose(text, yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values; see sweeps/quickstart.yaml.")
    return values, lines
