"""Run a grid: `python sweeps/run_grid.py` runs sweeps/quickstart.yaml; `--help` shows the rest."""

import typer

from dmlm import cli
from dmlm.sweep import commands

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(commands.run)
    cli.run(app)
