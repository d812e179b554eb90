"""The end of a grid: tables on the terminal, figures and report through the analysis wing."""

from pathlib import Path

from dmlm import recipes
from dmlm.sweep.tables import terminal_tables


def finish(folder: Path) -> str:
    """Draw every figure and the report of a grid folder; the text to print, which ends by naming the files."""
    made, results = recipes.load("analysis", "make_figures").make(folder)
    listing = "\n".join(f"  {path}" for path in made)
    return f"{terminal_tables(results)}\n\nFigures and report:\n{listing}"
