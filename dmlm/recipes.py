"""Find and load a recipe: a file of a wing, by its name, or any file of the user's own, by its path."""

import hashlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from dmlm import places
from dmlm.errors import UserError, did_you_mean

T = TypeVar("T")
DIGEST = "__digest__"  # where a recipe's module keeps that of the source that was executed
SUFFIXES = {"tokenizers": ".py", "datasets": ".py", "analysis": ".py", "sweeps": ".yaml"}


def find(wing: str, name: str) -> Path:
    """Path of recipe `name` of `wing`; a name with a slash or the wing's suffix is taken as a path.

    Raises:
        UserError: no such file; the message names the nearest known recipe.
    """
    suffix = SUFFIXES[wing]
    if "/" in name or name.endswith(suffix):
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        raise UserError(f"{wing}: there is no file {name}; give a recipe's name or the path of a {suffix} file.")
    path = places.wing(wing) / f"{name}{suffix}"
    if not path.is_file():
        raise UserError(f"{wing}: no recipe is named {name!r}; {did_you_mean(name, names(wing))}.")
    return path


def names(wing: str) -> list[str]:
    """Names of the recipes that a wing holds."""
    return sorted(path.stem for path in places.wing(wing).glob(f"*{SUFFIXES[wing]}") if path.stem != "run_grid")


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


def load(wing: str, name: str) -> ModuleType:
    """The module of a recipe."""
    return _module(find(wing, name))


def digest(module: str) -> str:
    """SHA-256 of the source that a recipe's module was made from, whatever its file holds by now."""
    return str(vars(sys.modules[module])[DIGEST])


def load_class(wing: str, name: str, base: type[T]) -> type[T]:
    """The one class in a recipe that derives from `base`.

    Raises:
        UserError: no such recipe, or the file does not define exactly one such class.
    """
    module = load(wing, name)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            f"{wing}: {module.__file__} must define exactly one class derived from {base.__name__}, it has {len(found)}."
        )
    return found[0]
