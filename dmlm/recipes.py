"""Find and load a recipe: a file of a recipe folder by its name, or any file by its path."""

import ast
import hashlib
import json
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dmlm import paths
from dmlm.errors import BrokenRecipe, UserError, did_you_mean

T = TypeVar("T")
DIGEST = "__digest__"  # attribute of a recipe's module: what `program_digest` gave for the source that was executed
# a source that has one of these may do something else with other docstrings or descriptions
READS_DOCSTRINGS = (b"__doc__", b"getdoc", b"getsource", b"co_consts", b"schema", b".description", b"model_fields")
PROGRAMS = ("run_grid", "make_figures")  # scripts in the recipe folders that are not recipes
SUFFIXES = {"tokenizers": ".py", "datasets": ".py", "analysis": ".py", "sweeps": ".yaml"}


def find(kind: str, name: str) -> Path:
    """Return the path of recipe `name` of `kind`; a name with a slash or the suffix of the kind is a path.

    Raises:
        UserError: there is no such recipe or file; the message names the nearest known recipe.
    """
    if is_path(kind, name):
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        raise UserError(
            f"{kind}: there is no file {name}; give a recipe's name or the path of a {SUFFIXES[kind]} file."
        )
    recipe_paths = _files(kind)
    if name not in recipe_paths:
        what = "grid" if kind == "sweeps" else "recipe"
        file = f"./{name}{SUFFIXES[kind]}"
        hint = f"the file in this folder is {file}" if Path(file).is_file() else did_you_mean(name, recipe_paths)
        raise UserError(f"{kind}: no {what} is named {name!r}; {hint}.")
    return recipe_paths[name]


def is_path(kind: str, name: str) -> bool:
    """Whether a recipe is named by its path.

    >>> is_path("tokenizers", "mine.py"), is_path("tokenizers", "audio_mfcc")
    (True, False)
    """
    return "/" in name or name.endswith(SUFFIXES[kind])


def names(kind: str) -> list[str]:
    """Names of all recipes of a kind, sorted."""
    return sorted(_files(kind))


def first_line(kind: str, name: str) -> str:
    """Return what a recipe says that it is: the first line of its docstring, or the question of a sweep file.

    >>> first_line("sweeps", "smoke")
    'Does every part work on this machine?'
    """
    text = find(kind, name).read_text("utf-8")
    if kind == "sweeps":
        return next(
            (line.removeprefix("about:").strip() for line in text.splitlines() if line.startswith("about:")), ""
        )
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


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
    sys.modules[name] = module  # pydantic and dataclasses look up the module of a class
    try:
        vars(module)[DIGEST] = program_digest(source)
        exec(compile(source, path, "exec"), vars(module))
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise BrokenRecipe(located(path, error)) from error
    return module


def program_digest(source: bytes) -> str:
    """SHA-256 of what a source does: of its syntax tree, in which comments and layout have no part.

    Docstrings and the `description` of a `Field` are left out too, unless the source reads docstrings. The digest is the
    same in every version of Python: fields of the tree that are empty, as those are that a version adds, are left out.

    >>> program_digest(b"def f(x):\\n  'Twice x.'\\n  return (2 *x)") == program_digest(b"def f(x): return 2 * x  # twice")
    True

    Raises:
        SyntaxError: it is not Python.
    """
    tree = ast.parse(source)
    try:
        program = json.dumps(_plain(tree, any(word in source for word in READS_DOCSTRINGS))).encode()
    except (RecursionError, ValueError):  # too deep a tree, too long a number: then every letter counts
        program = source
    return hashlib.sha256(program).hexdigest()


def _plain(node: Any, docstrings: bool) -> Any:
    """Return a part of a syntax tree as lists and strings, with or without docstrings."""
    if isinstance(node, list):
        return [_plain(inner, docstrings) for inner in node if docstrings or not _is_docstring(inner)]
    if isinstance(node, ast.Constant):
        return ["Constant", ascii(node.value)]  # ascii: which letters `repr` shows depends on the version
    if isinstance(node, ast.JoinedStr):
        return ["JoinedStr", [_plain(part, docstrings) for part in node.values if not _is_empty(part)]]
    if not isinstance(node, ast.AST):
        return node
    fields = {name: _plain(value, docstrings) for name, value in ast.iter_fields(node)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field" and not docstrings:
        fields["keywords"] = [_plain(word, docstrings) for word in node.keywords if word.arg != "description"]
    return [type(node).__name__, *([name, value] for name, value in fields.items() if value not in (None, []))]


def _is_docstring(node: Any) -> bool:
    """Whether a statement is a string alone, which does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_empty(part: ast.expr) -> bool:
    """Whether a part of an f-string is the empty text that some versions of Python put behind a format."""
    return isinstance(part, ast.Constant) and part.value == ""


def located(path: Path, error: BaseException) -> str:
    """A sentence about an error that arose in a recipe, or in what it called: file, line and message.

    >>> located(Path("mine.py"), ValueError("no"))
    'mine.py: ValueError: no'
    """
    return f"{path}{line_of(path, error)}: {type(error).__name__}: {error}"


def line_of(path: Path, error: BaseException) -> str:
    """Return `, line 7` for the line of a recipe in which an error arose; empty if it did not pass there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f", line {line}" if line else ""


def load(kind: str, name: str) -> ModuleType:
    """Load the module of a recipe.

    Raises:
        UserError: there is no such recipe, or its file cannot be loaded.
    """
    return _module(find(kind, name))


def digest(module: str) -> str:
    """Digest of what a recipe's module does, as it was loaded, even if its file has changed since: `program_digest`."""
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
