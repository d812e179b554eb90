"""Find and load a recipe: a file of a recipe folder by its name, or any file by its path."""

import hashlib
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from dmlm import paths
from dmlm.errors import BrokenRecipe, UserError, did_you_mean

T = TypeVar("T")
DIGEST = "__digest__"  # attribute of a recipe's module: SHA-256 of the source that was executed
PROGRAMS = ("run_grid", "make_figures")  # scripts in the recipe folders that are not recipes
SUFFIXES = {"tokenizers": ".py", "datasets": ".py", "analysis": ".py", "sweeps": ".yaml"}


def find(kind: str, name: str) -> Path:
    """Return the path of recipe `name` of `kind`; a name with a slash or the suffix of the kind is a path.

    Raises:
        UserError: there is no such recipe or file; the message names the nearest known recipe.
    """
    suffix = SUFFIXES[kind]
    if "/" in name or name.endswith(suffix):
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        raise UserError(f"{kind}: there is no file {name}; give a recipe's name or the path of a {suffix} file.")
    recipe_paths = _files(kind)
    if name not in recipe_paths:
        raise UserError(f"{kind}: no recipe is named {name!r}; {did_you_mean(name, names(kind))}.")
    return recipe_paths[name]


def names(kind: str) -> list[str]:
    """Names of all recipes of a kind, sorted."""
    return sorted(_files(kind))


def _files(kind: str) -> dict[str, Path]:
    """Paths of the recipes of a kind, by name. Those of `analysis` may also lie in sub-folders, one per paper."""
    pattern = f"{'**/' if kind == 'analysis' else ''}*{SUFFIXES[kind]}"
    recipe_paths = sorted(paths.recipe_folder(kind).glob(pattern))
    files: dict[str, Path] = {}
    for path in recipe_paths:
        if path.stem not in PROGRAMS and files.setdefault(path.stem, path) != path:
            raise UserError(f"{kind}: {files[path.stem]} and {path} have one name; rename one of them.")
    return files


@cache
def _module(path: Path) -> ModuleType:
    """Execute a recipe once per process. Its module name has a prefix, so that it hides no installed package."""
    name = f"dmlm_recipe.{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.{path.stem}"
    source = path.read_bytes()
    module = ModuleType(name)
    module.__file__ = str(path)
    vars(module)[DIGEST] = hashlib.sha256(source).hexdigest()
    sys.modules[name] = module  # pydantic and dataclasses look up the module of a class
    try:
        exec(compile(source, path, "exec"), vars(module))
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise BrokenRecipe(located(path, error)) from error
    return module


def located(path: Path, error: BaseException) -> str:
    """A sentence about an error that arose in a recipe, or in what it called: file, line and message.

    >>> located(Path("mine.py"), ValueError("no"))
    'mine.py: ValueError: no'
    """
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{path}{f', line {line}' if line else ''}: {type(error).__name__}: {error}"


def load(kind: str, name: str) -> ModuleType:
    """Load the module of a recipe.

    Raises:
        UserError: there is no such recipe, or its file cannot be loaded.
    """
    return _module(find(kind, name))


def digest(module: str) -> str:
    """SHA-256 of the source that a recipe's module was loaded from, even if its file has changed since."""
    return str(vars(sys.modules[module])[DIGEST])


def load_class(kind: str, name: str, base: type[T]) -> type[T]:
    """Load the one class of a recipe that derives from `base`.

    Raises:
        UserError: there is no such recipe, or its file does not define exactly one such class.
    """
    module = load(kind, name)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UserError(
            f"{kind}: {module.__file__} must define exactly one class derived from {base.__name__}, not {len(classes)}."
        )
    return classes[0]
