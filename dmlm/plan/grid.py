"""A sweep file: plain data, checked on reading, and the cells that it asks for.

base:     what all cells share, as nested or dotted keys
zip:      keys whose values advance together, as one axis
axes:     every combination of these values
exclude:  combinations to leave out
include:  further blocks of this form, on top of `base`
search:   settings to search, instead of giving them: see dmlm/sweep/search.py
grids:    named blocks, on top of the file's own `base`: NAME:small is run by its own name, NAME_small
"""

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from dmlm import recipes, snr
from dmlm.errors import UserError, did_you_mean
from dmlm.plan.cell import Cell, Section, first_problem
from dmlm.plan.dotted import Lines, assign, dotted, looked_up, merged, parsed, read_yaml
from dmlm.plan.space import Search, check_space, overridden
from dmlm.sequence.template import Template

Values = Annotated[list[Any], Field(min_length=1)]
LONGEST_NAME = 200  # bytes; a file system has room for 255
OF_THE_GRID = ("name", "about", "baseline")  # what an override may name besides a setting of the cells


class Block(Section):
    """A part of a sweep file that yields cells."""

    base: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, Values] = Field(default_factory=dict)
    zip: Annotated[tuple[dict[str, Values], ...], BeforeValidator(lambda v: [v] if isinstance(v, dict) else v)] = ()
    include: tuple["Block", ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()


class Part(Block):
    """A block that is a grid."""

    search: Search | None = None


class GridFile(Part):
    """A whole sweep file."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    about: str = Field(default="", description="the question that it answers")
    baseline: str = "A -> T"
    grids: dict[str, Part] = Field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """One experiment: its cells in the order of the file, each once."""

    name: str
    baseline: str
    about: str
    cells: tuple[Cell, ...]
    variants: tuple[str, ...]  # for each cell what sets it apart from others of its backbone, template and seed
    search: Search | None = None

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
    values, lines = read_yaml(path)
    given = dict(map(parsed, assignments))
    values |= {key: given.pop(key) for key in OF_THE_GRID if key in given}
    try:
        file = GridFile(**values)
    except ValidationError as error:
        keys, sentence = first_problem(GridFile, error)
        raise UserError(f"{path}{lines.of(keys)}: {sentence}") from None
    chosen, title = _chosen(file, part, path)
    search = overridden(chosen.search, given)
    said = dict(given)
    block = _with_axes(chosen, given)
    given_axes = len(given) < len(said)  # fewer values may leave an exclusion without a cell
    used: set[int] = set()
    raw = list(_expanded(block, {} if block is file else merged({}, file.base), used))
    for cell in raw:
        for key, value in given.items():
            assign(cell, key, value)

    def where(keys: Sequence[str]) -> str:
        """The override that set a key, else the line of the file."""
        key = ".".join(keys)
        for name, value in said.items():
            if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
                return f"On the command line, {name}={_shown(value)}"
        return f"{path}{lines.of(keys)}"

    grid = _grid(file, title, raw, sorted(_keys(block)), where)
    if not given_axes:
        _refuse_idle(block, used, path, lines)
    if search:
        check_space(search, grid.cells, where)
    return replace(grid, search=search)


def _chosen(file: GridFile, part: str, path: Path) -> tuple[Part, str]:
    """The block that is asked for, and the name of its grid."""
    names = ", ".join(f"{path.stem}:{key}" for key in file.grids)
    if file.grids and (file.axes or file.zip or file.include or file.exclude or file.search):
        raise UserError(
            f"{path} has `grids`, so its axes, zip, include, exclude and search belong inside one of {names}."
        )
    if file.grids and not part:
        raise UserError(f"{path} holds several grids; choose one of {names}.")
    if part and part not in file.grids:
        raise UserError(f"{path} has no grid {part!r}; {did_you_mean(part, file.grids)}.")
    name = file.name or path.stem + (f"_{part}" if part else "")
    if name.startswith(".") or "/" in name or name.lower() == "trials" or len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"{path}: a grid called {name!r} cannot have a folder of its own in runs; give it another `name`, of at most"
            f" {LONGEST_NAME} bytes."
        )
    return (file.grids[part] if part else file), name


def _with_axes(block: Block, given: dict[str, Any]) -> Block:
    """Take overrides of axes out of `given` and put their values in place, also in included blocks."""
    known = _axes(block)
    fresh = {key.removeprefix("axes.") for key in given if key.startswith("axes.")}
    chosen = [key for key in given if key in known or key.startswith("axes.")]
    values = {key.removeprefix("axes."): given.pop(key) for key in chosen}
    values = {key: value if isinstance(value, list) else [value] for key, value in values.items()}

    def change(inner: Block) -> Block:
        axes = inner.axes | {key: value for key, value in values.items() if key in inner.axes or key in fresh}
        return inner.model_copy(update={"axes": axes, "include": tuple(map(change, inner.include))})

    return change(block)


def _axes(block: Block) -> set[str]:
    return set(block.axes).union(*map(_axes, block.include))


def _expanded(block: Block, inherited: dict[str, Any], used: set[int]) -> Iterator[dict[str, Any]]:
    """Settings of each cell, nested, not yet checked. Exclusions that met a cell are put into `used`, by `id`."""
    base = merged(inherited, block.base)
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
            excluding = [id(rule) for rule in block.exclude if _matches(cell, rule)]
            used.update(excluding)
            if not excluding:
                yield cell
    for inner in block.include:
        yield from _expanded(inner, base, used)


def _refuse_idle(block: Block, used: set[int], path: Path, lines: Lines) -> None:
    """Refuse an exclusion that excludes nothing: a key or a value of it is mistaken."""
    for rule in block.exclude:
        if id(rule) not in used:
            words = ", ".join(f"{key}: {_shown(value)}" for key, value in rule.items())
            known = _keys(block) | {*dotted(block.base)}
            near = "".join(f"; {did_you_mean(key, known)}" for key in rule if key not in known)
            line = lines.of(["exclude", *rule])
            raise UserError(f"{path}{line}: no cell has {words}, so nothing is excluded{near}.")
    for inner in block.include:
        _refuse_idle(inner, used, path, lines)


def _matches(cell: dict[str, Any], rule: dict[str, Any]) -> bool:
    """Whether a cell has all values of an exclusion; a list there names several."""

    def same(key: str, wanted: Any) -> bool:
        value = looked_up(cell, key)
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
    return own.union(*({*dotted(inner.base), *_keys(inner)} for inner in block.include))


def _grid(
    file: GridFile, name: str, raw: list[dict[str, Any]], keys: Sequence[str], where: Callable[[Sequence[str]], str]
) -> Grid:
    """Check every cell, drop those met before, and name what sets each apart."""
    met: dict[Cell | str, int] = {}
    cells: list[Cell] = []
    kept: list[dict[str, Any]] = []
    for values in raw:
        try:
            cell = Cell(**values)
        except ValidationError as error:
            at, sentence = first_problem(Cell, error)
            raise UserError(f"{where(at)}: {sentence}") from None
        except UserError as error:
            about = [key for key in ("backbone", "template", "permute") if repr(values.get(key)) in str(error)]
            raise UserError(f"{where(about)}: {error}") from None
        if met.setdefault(cell.model_dump_json(), len(cells)) == len(cells):
            cells.append(cell)
            kept.append(values)
    if not cells:
        raise UserError(f"{where([])} asks for no cell; give it axes, or exclude less.")
    baseline = Template.parse(file.baseline)
    for cell in cells:
        added = set(cell.letters) - set(baseline.letters)
        for snr_db in cell.perceptual.snr_db if added and not cell.permute else ():
            if snr_db not in cell.snr_db.test:
                raise UserError(
                    f"{where(['perceptual', 'snr_db'])}: perceptual.snr_db has {snr.text(snr_db)}, which snr_db.test lacks; add it there or take it out here."
                )
    return Grid(name, baseline.notation, file.about, tuple(cells), tuple(_variants(cells, kept, keys)))


def _variants(cells: Sequence[Cell], raw: Sequence[dict[str, Any]], keys: Sequence[str]) -> Iterator[str]:
    """`noise.placement whole`: the values of those keys that take several within one backbone, template and seed."""
    groups: dict[tuple[str, str, int], list[tuple[Cell, dict[str, Any]]]] = {}
    for cell, values in zip(cells, raw, strict=True):
        groups.setdefault((cell.backbone, cell.template, cell.seed), []).append((cell, values))

    def value(cell: Cell, values: dict[str, Any], key: str) -> Any:
        """What a cell has there; nothing if it is about a modality that the cell does not read."""
        section, _, rest = key.removeprefix("train.").partition(".")
        about = rest.partition(".")[0] if section in ("tokenizers", "lambdas") else ""
        return None if about and about not in (*cell.letters, "T") else looked_up(values, key)

    telling = [
        key
        for key in keys
        if key not in ("backbone", "template", "seed")
        and any(len({repr(value(*member, key)) for member in group}) > 1 for group in groups.values())
    ]
    shown = {
        key: {"permute": "permuted "}.get(key, "" if re.fullmatch(r"tokenizers\..", key) else f"{key} ")
        for key in telling
    }
    for cell, values in zip(cells, raw, strict=True):
        parts = [(key, value(cell, values, key)) for key in telling]
        yield ", ".join(f"{shown[key]}{_shown(found)}" for key, found in parts if found is not None)


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "recipe" in value:  # the sizes of an untrained network would fill the line
        settings = value.get("settings", {}).items()
        return " ".join(
            [value["recipe"], *(f"{k}={_shown(part)}" for k, part in settings if not isinstance(part, dict))]
        )
    if isinstance(value, dict):
        return " ".join(_shown(part) for part in value.values())
    return "/".join(map(_shown, value)) if isinstance(value, list) else str(value)
