"""Find and load a recipe: a a file of a recipe folder by its name, or any file by its path."""

import hashlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from dmlm import paths
from dmlm.errors import UserError, did_you_mean

T = TypeVar("T")
DIGEST = "__digest__"  # where a recipe's module keeps that of the source that was executed
PROGRAMS = ("run_grid", "make_figures")  # scripts that stand among the recipes
SUFFIXES = {"tokenizers": ".py", "datasets": ".py", "analysis": ".py", "sweeps": ".yaml"}


def find(kind: str, name: str) -> Path:
    """Path of recipe `name` of `kind`; a name with a slash or the kind's suffix is taken as a path.

    Raises:
        UserError: no such file; the message names the nearest known recipe.
    """
    suffix = SUFFIXES[kind]
    if "/" in name or name.endswith(suffix):
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        raise UserError(f"{kind}: there is no file {name}; give a recipe's name or the path of a {suffix} file.")
    known = _files(kind)
    if name not in known:
        raise UserError(f"{kind}: no recipe is named {name!r}; {did_you_mean(name, names(kind))}.")
    return known[name]


def names(kind: str) -> list[str]:
    """Names of the recipes that a kind holds."""
    return sorted(_files(kind))


def _files(kind: str) -> dict[str, Path]:
    """Recipes of a kind by name; those of `analysis` may lie in folders of their own, one a paper."""
    pattern = f"{'**/' if kind == 'analysis' else ''}*{SUFFIXES[kind]}"
    found = sorted(paths.recipe_folder(kind).glob(pattern))
    return {path.stem: path for path in found if path.stem not in PROGRAMS}


@cache
def _module(path: Path) -> ModuleType:
    """Execute a recipe once per process. Never registered under the bare name of an installed package."""
    name = f"dmlm_recipe.{path.parent.name}.{path.stem}"
    source = path.read_bytes()
    module = ModuleType(name)
    module.__file__ = str(path)
    vars(module)[DIGEST] = hashlib.sha256(source).hexdigest()
    sys.modules[name] = module  # pydantic and dataclasses look their own module up
    try:
        exec(compile(source, path, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load(kind: str, name: str) -> ModuleType:
    """The module of a recipe."""
    return _module(find(kind, name))


def digest(module: str) -> str:
    """SHA-256 of the source that a recipe's module was made from, whatever its file holds by now."""
    return str(vars(sys.modules[module])[DIGEST])


def load_class(kind: str, name: str, base: type[T]) -> type[T]:
    """The one class in a recipe that derives from `base`.

    Raises:
        UserError: no such recipe, or the file does not define exactly one such class.
    """
    module = load(kind, name)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            f"{kind}: {module.__file__} must define exactly one class derived from {base.__name__}, it has {len(found)}."
        )
    return found[0]
