"""The command line: thin verbs over the engine. A user's mistake prints one sentence and exits with code 2."""

import errno
import multiprocessing
import os
import signal
import sys
from typing import Annotated

import typer

from dmlm import places, recipes
from dmlm.errors import UserError
from dmlm.sweep import commands

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
grids = typer.Typer(no_args_is_help=True, help="Run grids, and see how they stand.")
for command in (commands.run, commands.show, commands.status, commands.export):
    grids.command()(command)
app.add_typer(grids, name="grid")


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or SIGUSR1; `args[0]` is the signal's number. No KeyboardInterrupt: Typer would swallow it."""


def run(application: typer.Typer) -> None:
    """Run an application with the project's manners: one sentence for a mistake, a hint after Ctrl-C.

    The first signal lets trainings leave a checkpoint; a second one ends everything at once.
    """
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        if stopping:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)
        stopping = True
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    try:
        application()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(f"error: {places.home()}: {error}; mend that and run the same command again.", file=sys.stderr)
        sys.exit(1)
    except Stopped as signalled:
        print("\nInterrupted. The same command continues from here.", file=sys.stderr)
        sys.exit(128 + signalled.args[0])


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
