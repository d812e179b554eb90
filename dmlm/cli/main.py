"""The command line: thin verbs over the engine. A user's mistake prints one sentence and exits with code 2."""

import errno
import inspect
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from dmlm import paths, recipes
from dmlm.cli import doctor, grid, mouths
from dmlm.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
grids = typer.Typer(no_args_is_help=True, help="Run grids, and see how they stand.")
for command in (grid.run, grid.show, grid.status, grid.export, grid.transcribe):
    grids.command()(command)
app.add_typer(grids, name="grid")
app.command()(mouths.mouths)
app.command()(doctor.doctor)


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
        os.write(2, b"\nStopping: trainings leave a checkpoint. Once more ends at once.\n")
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    try:
        application()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS) and paths.home().is_dir():
            raise
        print(f"error: {paths.home()}: {error}; mend that and run the same command again.", file=sys.stderr)
        sys.exit(1)
    except Stopped as signalled:
        print("\nInterrupted. The same command continues from here.", file=sys.stderr)
        sys.exit(128 + signalled.args[0])


@app.command()
def names(
    kind: Annotated[str, typer.Argument(help="tokenizers, datasets, sweeps or analysis")],
    recipe: Annotated[str | None, typer.Argument(help="A tokenizer, whose settings are then listed.")] = None,
) -> None:
    """List the recipes of one folder, or the settings of one tokenizer."""
    if kind not in recipes.SUFFIXES:
        raise UserError(f"There is no recipe folder {kind!r}; choose one of {', '.join(recipes.SUFFIXES)}.")
    if recipe is None:
        print("\n".join(recipes.names(kind)))
        return
    if kind != "tokenizers":
        raise UserError(f"Settings are listed of tokenizers, not of {kind}; leave {recipe!r} out.")
    from dmlm.tokens.encoder import Encoder

    encoder = recipes.load_class(kind, recipe, Encoder)
    print(f"{(inspect.getdoc(sys.modules[encoder.__module__]) or '').splitlines()[0]}\n")
    for name, field in encoder.Settings.model_fields.items():
        shown = inspect.formatannotation(field.annotation)
        print(f"{name:<14} {field.default!r:<28} {shown:<34} {field.description or ''}".rstrip())


@app.command()
def fetch(
    recipe: Annotated[str, typer.Argument(help="A tokenizer, by name.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Its settings, such as model=facebook/hubert-base-ls960.")
    ] = None,
    given: Annotated[Path | None, typer.Option("--from", help="A folder that holds the files already.")] = None,
) -> None:
    """Bring the published weights of a tokenizer here: download, go on after a break, verify, convert."""
    from dmlm.plan.dotted import parse_override
    from dmlm.tokens.encoding import EncoderSpec
    from dmlm.weights import published

    encoder = EncoderSpec(recipe, dict(parse_override(text) for text in settings or ())).build()
    card = encoder.card
    if card is None:
        print(f"{recipe} needs no published weights.")
        return
    print(f"{recipe}: {card.source}; licence: {card.licence}")
    files = encoder.convert(published.fetch(card, encoder.recipe, given))
    print("\n".join(f"{path}  sha256 {published.file_digest(path)[:12]}..." for path in files))


def main() -> None:
    """Entry point of the `dmlm` command."""
    run(app)
