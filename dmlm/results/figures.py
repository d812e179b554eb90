"""Draw every figure and table of a grid with the recipes of `analysis/`; one that fails does not stop the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlm import recipes
from dmlm.errors import BrokenRecipe
from dmlm.results.exhibit import Exhibit, Table
from dmlm.results.grid import GridResults
from dmlm.results.tables import terminal_tables

LAST = 1000  # position of a figure without ORDER


@dataclass(frozen=True)
class Figures:
    """The files that were written, and what failed."""

    files: tuple[Path, ...]
    failures: tuple[str, ...]  # a sentence for each figure that failed, with its file and line


def make_figures(results: GridResults, more: Sequence[str] = ()) -> Figures:
    """Draw every figure of `analysis/`, those in `more` (names or paths of recipes), and the report.

    Raises:
        UserError: stored results are inconsistent, which is not the fault of a figure; or `more` names no recipe.
    """
    terminal_tables(results)  # raises if stored results are inconsistent; a figure that fails afterwards fails alone
    requested = {recipes.find("analysis", name) for name in more}
    shipped = [recipes.find("analysis", name) for name in recipes.names("analysis")]
    exhibits: list[tuple[float, Exhibit]] = []
    failures: list[str] = []
    for path in (*shipped, *sorted(requested.difference(shipped))):
        try:
            recipe = recipes.load("analysis", str(path))
            if hasattr(recipe, "draw") or path in requested:
                exhibits.append((float(getattr(recipe, "ORDER", LAST)), _draw(recipe, results)))
        except (Exception, SystemExit) as error:
            failures.append(str(error) if isinstance(error, BrokenRecipe) else recipes.located(path, error))
            exhibits.append((LAST, Exhibit(title=path.stem, caption=f"This figure failed. {failures[-1]}")))
    exhibits.sort(key=lambda item: item[0])
    files = [file for _, exhibit in exhibits for file in exhibit.files]
    try:
        write = recipes.load("analysis", "report").write
        files.append(write(results, results.folder / "report.html", [exhibit for _, exhibit in exhibits]))
    except Exception as error:
        failures.append(recipes.located(recipes.find("analysis", "report"), error))
    return Figures(tuple(files), tuple(failures))


def _draw(recipe: Any, results: GridResults) -> Exhibit:
    if not hasattr(recipe, "draw"):
        raise AttributeError("it defines no function draw(results, folder)")
    exhibit = recipe.draw(results, results.folder / "figures")
    if not isinstance(exhibit, Exhibit):
        raise TypeError(f"draw gave a {type(exhibit).__name__}, not a dmlm.results.exhibit.Exhibit")
    if absent := [file for file in exhibit.files if not (isinstance(file, Path) and file.is_file())]:
        raise TypeError(f"files names {absent[0]!r}, which is not the Path of a file that it wrote")
    if strange := [table for table in exhibit.tables if not isinstance(table, Table)]:
        raise TypeError(f"tables has a {type(strange[0]).__name__}, not a dmlm.results.exhibit.Table")
    return exhibit
