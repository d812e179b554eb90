"""The command line: thin verbs over the engine. A user's mistake prints one sentence and exits with code 2."""

import sys
import time
from typing import Annotated

import typer

from dmlm import places, recipes
from dmlm.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
INTERRUPTED = 130


def run(application: typer.Typer) -> None:
    """Run an application with the project's manners: one sentence for a mistake, a hint after Ctrl-C."""
    try:
        application()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues from here.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def grid(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as train.steps=200", metavar="KEY=VALUE")
    ] = None,
    grid: Annotated[str, typer.Option("--grid", "-g", help="A file of sweeps/ by name, or a path.")] = "quickstart",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells, what is done, the time left; do nothing.")
    ] = False,
    checkpoint_every_s: Annotated[
        float, typer.Option("--checkpoint-every", help="Seconds between checkpoints.")
    ] = 30.0,
) -> None:
    """Train and evaluate every cell of a grid, then print tables and draw figures. Run again to continue."""
    from dmlm.sweep.grid import read_grid_file
    from dmlm.sweep.materials import prepare
    from dmlm.sweep.preview import describe
    from dmlm.sweep.report import finish
    from dmlm.sweep.run import plan, run_trials, write_index

    chosen = read_grid_file(grid, overrides or [])
    if dry_run:
        print(describe(chosen))
        return
    started = time.monotonic()
    materials = prepare(chosen, print)
    trials = plan(chosen, materials)
    folder = write_index(chosen, materials, trials)
    run_trials(chosen, materials, trials, print, checkpoint_every_s)
    print(finish(folder))
    print(f"\nGrid {chosen.name}: {len(trials)} models in {time.monotonic() - started:.0f} s.")


app.command()(grid)


@app.command()
def names(wing: Annotated[str, typer.Argument(help="tokenizers, datasets, sweeps or analysis")]) -> None:
    """List the recipes of a wing."""
    if wing not in recipes.SUFFIXES:
        raise UserError(f"There is no wing {wing!r}; choose one of {', '.join(recipes.SUFFIXES)}.")
    print("\n".join(recipes.names(wing)))


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, devices, optional parts, and where things are kept."""
    import importlib.metadata as metadata

    import torch

    from dmlm.model import scan_choice

    print(f"python     {sys.version.split()[0]}")
    for package in ("torch", "transformers", "espeakng-loader", "rapidocr", "av"):
        try:
            print(f"{package:<16} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package:<16} missing: pip install {package}")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"CUDA device      {cuda}")
    print(f"scan of Mamba    {scan_choice.chosen('cuda' if torch.cuda.is_available() else 'cpu')[0]}")
    print(f"home             {places.home()}")


def main() -> None:
    """Entry point of the `dmlm` command."""
    run(app)
