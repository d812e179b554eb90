"""Draw every figure and table of a grid again from its stored results, and write the report.

    python analysis/make_figures.py RUNS/quickstart

Nothing is trained, decoded or downloaded. The figures are the files beside this one that have a function `draw`; a new
one takes part as soon as it stands there.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dmlm import recipes
from dmlm.errors import UserError
from dmlm.sweep.exhibit import Exhibit
from dmlm.sweep.store import GridResults, read_grid
from dmlm.sweep.tables import terminal_tables


def make(grid: Path) -> tuple[list[Path], GridResults]:
    """Write `figures/` and `report.html` into the folder of a grid; returns the files and what they were drawn from.

    Raises:
        UserError: the folder holds no grid, or its files contradict one another.
    """
    results = read_grid(grid)
    modules = [recipes.load("analysis", name) for name in recipes.names("analysis") if name != Path(__file__).stem]
    drawing = sorted((module for module in modules if hasattr(module, "draw")), key=lambda module: module.ORDER)
    exhibits: list[Exhibit] = [module.draw(results, results.folder / "figures") for module in drawing]
    report = recipes.load("analysis", "report").write(results, results.folder / "report.html", exhibits)
    return [*(file for exhibit in exhibits for file in exhibit.files), report], results


def main(
    folder: Annotated[Path, typer.Argument(help="folder of a grid: the one that holds grid.json")],
    tables: Annotated[bool, typer.Option(help="also print WER and relative benefit by SNR")] = False,
) -> None:
    """Draw every figure and table of a grid again from its stored results, and write the report."""
    try:
        files, results = make(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if tables:
        print(terminal_tables(results) + "\n")
    for file in files:
        print(file)
    if missing := len(results.missing):
        said = "evaluation is" if missing == 1 else "evaluations are"
        print(f"{missing} {said} missing and shown as missing; run the grid to finish.", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
