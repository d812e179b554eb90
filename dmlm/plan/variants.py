"""The variant of a cell: what tells it from others of its backbone, template, seed and fold, in the words of the sweep file."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dmlm.plan.cell import Cell
from dmlm.plan.dotted import value_at


def variants_of(
    cells: Sequence[Cell], settings_of_cells: Sequence[dict[str, Any]], varied_keys: Sequence[str]
) -> Iterator[str]:
    """Yield for each cell a name such as `noise.placement whole`; empty where nothing needs to be said.

    It lists the settings that differ between cells of equal backbone, template, seed and fold anywhere in the grid.
    """
    groups: dict[tuple[object, ...], list[tuple[Cell, dict[str, Any]]]] = {}
    for cell, settings in zip(cells, settings_of_cells, strict=True):
        groups.setdefault((cell.backbone, cell.template, cell.seed, cell.corpus.fold), []).append((cell, settings))

    def value(cell: Cell, settings: dict[str, Any], key: str) -> Any:
        """The value of a key; None if the key is about a modality that the cell does not read."""
        section, _, rest = key.removeprefix("train.").partition(".")
        letter = rest.partition(".")[0] if section in ("tokenizers", "lambdas") else ""
        return None if letter and letter not in (*cell.letters, "T") else value_at(settings, key)

    distinguishing = [
        key
        for key in varied_keys
        if key not in ("backbone", "template", "seed", "corpus.fold")
        and any(len({repr(value(*member, key)) for member in group}) > 1 for group in groups.values())
    ]
    prefixes = {
        key: {"permute": "permuted "}.get(key, "" if re.fullmatch(r"tokenizers\..", key) else f"{key} ")
        for key in distinguishing
    }
    for cell, settings in zip(cells, settings_of_cells, strict=True):
        values = [(key, value(cell, settings, key)) for key in distinguishing]
        yield ", ".join(f"{prefixes[key]}{formatted(item)}" for key, item in values if item is not None)


def formatted(value: Any) -> str:
    """Write a value on one line; of a recipe its name and its plain settings, of a path the name of the file."""
    if isinstance(value, dict) and "recipe" in value:  # nested settings, such as layer sizes, would fill the line
        settings = value.get("settings", {}).items()
        return " ".join(
            [
                formatted(value["recipe"]),
                *(f"{k}={formatted(item)}" for k, item in settings if not isinstance(item, dict)),
            ]
        )
    if isinstance(value, dict):
        return " ".join(formatted(item) for item in value.values())
    if isinstance(value, str) and os.path.isabs(value):
        return Path(value).name
    return "/".join(map(formatted, value)) if isinstance(value, list) else str(value)
