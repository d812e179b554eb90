"""Run a grid: `python sweeps/run_grid.py` runs sweeps/quickstart.yaml; `--help` shows the rest."""

import typer

from dmlm.cli import grid, main

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(grid.run)
    main.run(app)
