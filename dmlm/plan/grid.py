"""Read a sweep file and expand it to the cells of a grid. The file is plain data with these keys:

base:     settings that all cells share, as nested or dotted keys
zip:      keys whose values advance together, as one axis
axes:     keys whose values are combined in every way
exclude:  combinations to leave out
include:  further blocks with these keys, on top of `base`
search:   settings to search over instead of fixing them; see dmlm/sweep/search.py
grids:    named blocks, on top of the `base` of the file: NAME:small selects one, and its results are NAME_small
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from dmlm import recipes, snr
from dmlm.corpus.imported import imported_folder, names
from dmlm.errors import UserError, did_you_mean
from dmlm.limits import taken_for_another_kind
from dmlm.plan.cell import Cell, Section, first_problem
from dmlm.plan.dotted import Lines, assign, dotted_keys, merged, parse_override, read_yaml, value_at
from dmlm.plan.space import Search, check_space, pop_search_overrides
from dmlm.plan.variants import formatted, variants_of
from dmlm.sequence.template import Template

Settings = dict[str, Any]  # of one cell, nested, not validated
AxisValues = Annotated[list[Any], Field(min_length=1)]
MAX_NAME_BYTES = 200  # a file system has room for 255
COMMAND_LINE = "On the command line"
GRID_KEYS = ("name", "about", "baseline")  # keys of the whole grid that an override may set


class Block(Section):
    """A part of a sweep file that defines cells."""

    base: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, AxisValues] = Field(default_factory=dict)
    zip: Annotated[tuple[dict[str, AxisValues], ...], BeforeValidator(lambda v: [v] if isinstance(v, dict) else v)] = ()
    include: tuple["Block", ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()


class GridBlock(Block):
    """A block that defines all cells of one grid."""

    search: Search | None = None


class GridFile(GridBlock):
    """A sweep file."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    about: str = Field(default="", description="the question that the grid answers")
    baseline: str = "A -> T"
    grids: dict[str, GridBlock] = Field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """One experiment: its cells in the order of the file, without duplicates."""

    name: str
    baseline: str
    about: str
    cells: tuple[Cell, ...]
    variants: tuple[str, ...]  # per cell: what tells it from other cells of its backbone, template and seed
    search: Search | None = None
    notes: tuple[str, ...] = ()  # what was chosen for this machine, and why

    def letters(self) -> Iterator[str]:
        """Yield the input modalities that any cell uses."""
        yield from dict.fromkeys(letter for cell in self.cells for letter in cell.letters)


def read_grid_file(name: str, assignments: Sequence[str] = ()) -> Grid:
    """Read `sweeps/NAME.yaml`, or any path, with dotted overrides; `NAME:small` selects one of several grids.

    An override of an axis replaces the values of the axis; any other override holds in every cell.

    Raises:
        UserError: no such file or grid, not YAML, or an invalid value; one sentence with file, line and key.
    """
    file_name, _, block_name = name.partition(":")
    path = recipes.find("sweeps", file_name)
    values, lines = read_yaml(path)
    overrides = dict(map(parse_override, assignments))
    typed = {assignment.partition("=")[0]: assignment for assignment in assignments}

    def where(keys: Sequence[str]) -> str:
        """Return the override that set a key path, or else the file and line."""
        key = ".".join(keys)
        for override, assignment in typed.items():
            its = override.removeprefix("axes.")
            if key == its or key.startswith(f"{its}.") or its.startswith(f"{key}."):
                return f"{COMMAND_LINE}, {assignment}"
        return f"{path}{lines.locate(keys)}"

    for key in set(GRID_KEYS).intersection(overrides):
        if (value := overrides.pop(key)) is None:
            raise UserError(f"{where([key])}: {key} has no value; give it one or leave it out.")
        values[key] = value
    notes = _choose_precision(values, overrides)
    try:
        file = GridFile(**values)
    except ValidationError as error:
        keys, sentence = first_problem(GridFile, error)
        raise UserError(f"{where(keys)}: {sentence}") from None
    if found := taken_for_another_kind(values, file):
        raise UserError(f"{where(found[0])}: {'.'.join(found[0])}: {found[1]}.")
    grid_block, grid_name = _select_block(file, block_name, path)
    search = pop_search_overrides(grid_block.search, overrides, where)
    block, cell_overrides = _override_axes(grid_block, overrides)
    matched_rules: set[int] = set()
    inherited = {} if block is file else merged({}, file.base)
    try:
        cell_settings = list(_expand(block, inherited, matched_rules))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for settings in cell_settings:
        for key, value in cell_overrides.items():
            try:
                assign(settings, key, value)
            except UserError as error:
                raise UserError(f"{COMMAND_LINE}, {typed[key]}: {error}") from None

    grid = _build_grid(file, grid_name, cell_settings, sorted(_varied_keys(block)), where)
    if len(cell_overrides) == len(overrides):  # an axis with fewer values may leave a rule without a match
        _check_exclusions(block, matched_rules, path, lines)
    if search:
        check_space(search, grid.cells, where)
    return replace(grid, search=search, notes=notes)


def _choose_precision(*trees: Any) -> tuple[str, ...]:
    """Replace `train.precision: auto` by what is fastest on this machine; return a sentence about it, if it occurs."""
    found = [place for tree in trees for place in _automatic(tree, ())]
    if not found:
        return ()
    from dmlm.model.precision import chosen  # loads torch

    precision, why = chosen()
    for container, key in found:
        container[key] = precision
    return (f"train.precision=auto: {precision}, because {why}.",)


def _automatic(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    """Yield container and key of each `auto` below a `train.precision`, in nested or dotted keys."""
    is_precision = ("train", "precision") in itertools.pairwise(path)
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        inner = (*path, *key.split(".")) if isinstance(key, str) else path
        if value == "auto" and (is_precision or inner[-2:] == ("train", "precision")):
            yield tree, key
        yield from _automatic(value, inner)


def _select_block(file: GridFile, block_name: str, path: Path) -> tuple[GridBlock, str]:
    """Return the block of the requested grid, and the name of that grid.

    Raises:
        UserError: no such block, a missing choice between several, or a name that cannot be a folder.
    """
    names = ", ".join(f"{path.stem}:{key}" for key in file.grids)
    if file.grids and (file.axes or file.zip or file.include or file.exclude or file.search):
        raise UserError(
            f"{path} has `grids`, so its axes, zip, include, exclude and search belong inside one of {names}."
        )
    if file.grids and not block_name:
        raise UserError(f"{path} holds several grids; choose one of {names}.")
    if block_name and block_name not in file.grids:
        raise UserError(f"{path} has no grid {block_name!r}; {did_you_mean(block_name, file.grids)}.")
    name = file.name or path.stem + (f"_{block_name}" if block_name else "")
    if name.startswith(".") or "/" in name or name.lower() == "trials" or len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"{path}: a grid called {name!r} cannot have a folder of its own in runs; give it another `name`, of at most"
            f" {MAX_NAME_BYTES} bytes."
        )
    return (file.grids[block_name] if block_name else file), name


def _override_axes(block: Block, overrides: dict[str, Any]) -> tuple[Block, dict[str, Any]]:
    """Apply the overrides of axes, also in included blocks; return the new block and the other overrides.

    `axes.KEY` adds an axis that the block does not have; the name of an existing axis replaces its values.
    """
    existing = _axes(block)
    added = {key.removeprefix("axes.") for key in overrides if key.startswith("axes.")}
    axis_keys = [key for key in overrides if key in existing or key.startswith("axes.")]
    new_values = {key.removeprefix("axes."): overrides[key] for key in axis_keys}
    new_values = {key: value if isinstance(value, list) else [value] for key, value in new_values.items()}

    def override(inner: Block) -> Block:
        axes = inner.axes | {k: values for k, values in new_values.items() if k in inner.axes or k in added}
        return inner.model_copy(update={"axes": axes, "include": tuple(map(override, inner.include))})

    return override(block), {key: value for key, value in overrides.items() if key not in axis_keys}


def _axes(block: Block) -> set[str]:
    return set(block.axes).union(*map(_axes, block.include))


def _expand(block: Block, inherited: Settings, matched_rules: set[int]) -> Iterator[Settings]:
    """Yield the settings of each cell. The `id` of each `exclude` rule that matches a cell is added to `matched_rules`."""
    base = merged(inherited, block.base)
    columns = []
    for group in block.zip:
        if len({len(values) for values in group.values()}) > 1:
            sizes = ", ".join(f"{key} {len(values)}" for key, values in group.items())
            raise UserError(f"zip: values that advance together must be equally many, but there are {sizes}.")
        columns.append([dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)])
    columns += [[{key: value} for value in values] for key, values in block.axes.items()]
    if columns or not block.include:
        for combination in itertools.product(*columns):
            settings = copy.deepcopy(base)
            for key, value in (item for assignments in combination for item in assignments.items()):
                assign(settings, key, value)
            matching = [id(rule) for rule in block.exclude if _matches(settings, rule)]
            matched_rules.update(matching)
            if not matching:
                yield settings
    for inner in block.include:
        yield from _expand(inner, base, matched_rules)


def _check_exclusions(block: Block, matched_rules: set[int], path: Path, lines: Lines) -> None:
    """Raise if an `exclude` rule matches no cell; it is probably a typo.

    Raises:
        UserError: naming the rule and its line.
    """
    for rule in block.exclude:
        if id(rule) not in matched_rules:
            words = ", ".join(f"{key}: {formatted(value)}" for key, value in rule.items())
            known_keys = _varied_keys(block) | {*dotted_keys(block.base)}
            near = "".join(f"; {did_you_mean(key, known_keys)}" for key in rule if key not in known_keys)
            line = lines.locate(["exclude", *rule])
            raise UserError(f"{path}{line}: no cell has {words}, so nothing is excluded{near}.")
    for inner in block.include:
        _check_exclusions(inner, matched_rules, path, lines)


def _matches(settings: Settings, rule: dict[str, Any]) -> bool:
    """Whether a cell has every value of an `exclude` rule; a list in the rule stands for any of its items."""

    def has_value(key: str, wanted: Any) -> bool:
        value = value_at(settings, key)
        if key == "template" and isinstance(value, str):
            value, wanted = (_normalise_notation(item) for item in (value, wanted))
        return bool(value == wanted or (isinstance(wanted, list) and value in wanted))

    return all(has_value(key, wanted) for key, wanted in rule.items())


def _normalise_notation(value: Any) -> Any:
    if isinstance(value, list):
        return [_normalise_notation(item) for item in value]
    return Template.parse(value).notation if isinstance(value, str) else value


def _varied_keys(block: Block) -> set[str]:
    """Return the keys that can differ between the cells of a block."""
    axis_keys = {*block.axes, *(key for group in block.zip for key in group)}
    return axis_keys.union(*({*dotted_keys(inner.base), *_varied_keys(inner)} for inner in block.include))


def _build_grid(
    file: GridFile,
    name: str,
    cell_settings: list[Settings],
    varied_keys: Sequence[str],
    where: Callable[[Sequence[str]], str],
) -> Grid:
    """Validate every cell, drop duplicates, and name the variants.

    Args:
        where: returns the file and line (or the override) that set a key path, for error sentences.

    Raises:
        UserError: an invalid cell, no cell at all, or a perceptual score at an SNR that is not tested.
    """
    index_by_json: dict[str, int] = {}
    cells: list[Cell] = []
    settings_of_cells: list[Settings] = []
    for settings in cell_settings:
        cell = _build_cell(settings, where)
        if index_by_json.setdefault(cell.model_dump_json(), len(cells)) == len(cells):
            cells.append(cell)
            settings_of_cells.append(settings)
    if not cells:
        raise UserError(f"{where([])} asks for no cell; give it axes, or exclude less.")
    try:
        baseline = Template.parse(file.baseline)
    except UserError as error:
        raise UserError(f"{where(['baseline'])}: {error}") from None
    for cell in cells:
        added = set(cell.letters) - set(baseline.letters)
        for snr_db in cell.perceptual.snr_db if added and not cell.permute else ():
            if snr_db not in cell.snr_db.test:
                raise UserError(_untested(cell, snr_db, where))
    variants = tuple(variants_of(cells, settings_of_cells, varied_keys))
    return Grid(name, baseline.notation, file.about, tuple(cells), variants)


def _untested(cell: Cell, snr_db: float, where: Callable[[Sequence[str]], str]) -> str:
    """Return the sentence about an SNR of the perceptual score that is not tested: whose value it is, and what to write."""
    level, scored, tests = snr.text(snr_db), ["perceptual", "snr_db"], ["snr_db", "test"]
    blamed = _overridden((tests, scored), where) or scored
    origin = ""
    if "snr_db" not in cell.perceptual.model_fields_set:
        origin = f" ({level} is the default of perceptual.snr_db)"
    elif blamed is tests and not _overridden([scored], where):
        origin = f" ({level} is of {where(scored)})"
    tested = sorted(cell.snr_db.test, reverse=True)
    written = ", ".join(map(snr.text, dict.fromkeys((tested[0], tested[-1]))))
    return (
        f"{where(blamed)}: perceptual.snr_db has {level}, which snr_db.test lacks{origin}; add it to snr_db.test, or write"
        f" perceptual.snr_db=[{written}]."
    )


def _build_cell(settings: Settings, where: Callable[[Sequence[str]], str]) -> Cell:
    """Validate the settings of a cell.

    Raises:
        UserError: an unknown key, a wrong value, or a recipe that does not exist.
    """
    try:
        cell = Cell(**settings)
    except ValidationError as error:
        keys, sentence = first_problem(Cell, error)
        raise UserError(f"{where(keys)}: {sentence}{_hint(settings, keys, sentence)}") from None
    except UserError as error:
        keys = [key for key in ("backbone", "template", "permute") if repr(settings.get(key)) in str(error)]
        candidates = [[key] for key in reversed([*keys, *(["tokenizers"] if "`tokenizers`" in str(error) else [])])]
        raise UserError(f"{where(_overridden(candidates, where) or keys)}: {error}") from None
    if found := taken_for_another_kind(settings, cell):
        raise UserError(f"{where(found[0])}: {'.'.join(found[0])}: {found[1]}.")
    if cell.corpus.left_out:
        raise UserError(f"{where(['corpus', 'left_out'])}: a run writes this; name rules in corpus.leave_out.")
    try:
        is_imported = imported_folder(cell.corpus.recipe) is not None
    except UserError as error:
        raise UserError(f"{where(['corpus', 'recipe'])}: {error}") from None
    choices = {} if is_imported else {("corpus", "recipe"): ("datasets", cell.corpus.recipe)}
    choices |= {("tokenizers", letter): ("tokenizers", cell.tokenizers[letter].recipe) for letter in cell.letters}
    for place, (kind, recipe) in choices.items():
        try:
            recipes.find(kind, recipe)
        except UserError as error:
            reason = str(error)
            if kind == "datasets" and recipe.endswith(".jsonl"):
                reason = (
                    f"{recipe} is a manifest; import it once: dmlm corpus import {recipe} --to NAME, then corpus: NAME."
                )
            elif kind == "datasets" and (imported := names()):
                reason += f" Imported corpora: {', '.join(imported)}."
            raise UserError(f"{where(place)}: {reason}") from None
    return cell


def _overridden(places: Iterable[Sequence[str]], where: Callable[[Sequence[str]], str]) -> Sequence[str] | None:
    """Return the first of some key paths that an override set."""
    return next((place for place in places if where(place).startswith(COMMAND_LINE)), None)


def _hint(settings: Settings, keys: Sequence[str], sentence: str) -> str:
    """Return how several values are written, where several stand for one, or one for several; else nothing."""
    key = ".".join(part for part in keys if not part.isdigit())
    value = value_at(settings, key)
    wants_list = "valid tuple" in sentence or keys[-1].isdigit()
    if isinstance(value, str) and ("," in value or wants_list):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list) or not value or (wants_list and value == value_at(settings, key)):
        return ""
    written = f"[{', '.join(map(formatted, value))}]"
    return f" A list is written {key}={written}" if wants_list else f" Several values are an axis: axes.{key}={written}"
