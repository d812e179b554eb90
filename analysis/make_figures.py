"""Draw every figure and table of a grid again from its stored results, and write the report.

    python analysis/make_figures.py quickstart

Nothing is trained, decoded or downloaded. The figures are the files of this folder that have a function `draw`, so a
new one only has to be put here; `--figure PATH` adds one from elsewhere.
"""

import sys
from typing import Annotated

import typer

from dmlm.cli.main import run
from dmlm.results.figures import make_figures
from dmlm.results.tables import terminal_tables
from dmlm.sweep.api import load_results


def main(
    name: Annotated[str, typer.Argument(help="name of a grid that was run, or the folder that holds its grid.json")],
    tables: Annotated[bool, typer.Option(help="also print WER and relative benefit by SNR")] = False,
    figure: Annotated[list[str] | None, typer.Option(help="a further figure: the path of its file")] = None,
) -> None:
    """Draw every figure and table of a grid again from its stored results, and write the report."""
    results = load_results(name)
    if tables:
        print(terminal_tables(results) + "\n", flush=True)
    figures = make_figures(results, figure or [])
    for file in figures.files:
        print(file)
    for failure in figures.failures:
        print(f"figure failed: {failure}", file=sys.stderr)
    if missing := len(results.missing):
        verb = "evaluation is" if missing == 1 else "evaluations are"
        print(f"{missing} {verb} missing and shown as missing; run the grid to finish.", file=sys.stderr)
    if results.missing or figures.failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
