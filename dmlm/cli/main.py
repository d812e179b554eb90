"""The command line, a thin layer over the package. A mistake of the user prints one sentence; the exit code is 2."""

import errno
import inspect
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from dmlm import known_files, paths, recipes
from dmlm.cli import clean, corpus, doctor, grid, look, mouths, noise, transcribe
from dmlm.cli.terminal import print_everything
from dmlm.errors import UserError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS),
    *(errno.EIO, errno.ELOOP, errno.ENAMETOOLONG),
)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
grids = typer.Typer(no_args_is_help=True, help="Run grids and show their state.")
for command in (grid.run, grid.show, grid.status, grid.export, grid.transcribe):
    grids.command()(command)
app.add_typer(grids, name="grid")
corpora = typer.Typer(no_args_is_help=True, help="Import recordings, check a corpus, and look at it.")
corpora.command("import")(corpus.import_corpus)
corpora.command()(corpus.check)
corpora.command()(look.look)
app.add_typer(corpora, name="corpus")

noises = typer.Typer(no_args_is_help=True, help="Make noise of recordings that others publish.")
noises.command()(noise.make)
app.add_typer(noises, name="noise")

app.command()(transcribe.transcribe)
app.command()(mouths.mouths)
app.command()(doctor.doctor)
app.command()(clean.clean)


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or SIGUSR1; `args[0]` is the number of the signal. Typer would catch a KeyboardInterrupt."""


def run(application: typer.Typer) -> None:
    """Run a Typer application: handle signals, and turn mistakes and interruptions into a message and an exit code.

    After the first signal, trainings write a checkpoint. A second signal ends everything at once.
    """
    print_everything()
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        if stopping:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)
        stopping = True
        os.write(2, b"\nStopping: what is done is kept, and trainings leave a checkpoint. Once more ends at once.\n")
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    try:
        application()
    except UserError as error:
        print(f"{error.details}\nerror: {error}".lstrip("\n"), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS and paths.home().is_dir():
            raise
        place = error.filename or paths.home()
        print(f"error: {place}: {error.strerror}; mend that and run the same command again.", file=sys.stderr)
        sys.exit(1)
    except Stopped as signalled:
        print("\nInterrupted. The same command continues from here.", file=sys.stderr)
        sys.exit(128 + signalled.args[0])


@app.command()
def names(
    kind: Annotated[str, typer.Argument(help="tokenizers, datasets, sweeps or analysis")],
    recipe: Annotated[str | None, typer.Argument(help="A tokenizer or a corpus; lists its settings.")] = None,
) -> None:
    """List the recipes of one folder, each with its first line, or the settings of a tokenizer or a corpus, and where its recordings come from."""
    if kind not in recipes.SUFFIXES:
        raise UserError(f"There is no recipe folder {kind!r}; choose one of {', '.join(recipes.SUFFIXES)}.")
    if recipe is None:
        width = max(map(len, recipes.names(kind)))
        for name in recipes.names(kind):
            print(f"{name:<{width}}  {recipes.first_line(kind, name)}".rstrip())
    elif kind == "tokenizers":
        from dmlm.tokens.encoder import Encoder

        encoder = recipes.load_class(kind, recipe, Encoder)
        _print_settings(sys.modules[encoder.__module__], encoder.Settings.model_fields)
    elif kind == "datasets":
        module = recipes.load(kind, recipe)
        origin = module.ORIGIN.lines if hasattr(module, "ORIGIN") else []
        _print_settings(module, module.Settings.model_fields, [*origin, f"presets: {', '.join(module.PRESETS)}"])
    else:
        raise UserError(f"Settings are listed of tokenizers and datasets, not of {kind}; leave {recipe!r} out.")


def _print_settings(module: ModuleType, fields: "dict[str, FieldInfo]", facts: Sequence[str] = ()) -> None:
    """Print what a recipe is, facts about it, and its settings: name, default, type and what it means, a line each."""
    print("\n".join([(inspect.getdoc(module) or "").splitlines()[0], *facts, ""]))
    for name, field in fields.items():
        type_name = inspect.formatannotation(field.annotation)
        print(f"{name:<14} {field.default!r:<28} {type_name:<34} {field.description or ''}".rstrip())


@app.command()
def fetch(
    recipe: Annotated[str, typer.Argument(help="Name of a tokenizer.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Its settings, such as model=facebook/hubert-base-ls960.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help="A folder that has the files already.")] = None,
) -> None:
    """Download the published weights of a tokenizer, verify them and convert them. Continues a broken download."""
    from dmlm.plan.dotted import parse_override
    from dmlm.tokens.encoding import EncoderSpec
    from dmlm.weights import published

    encoder = EncoderSpec(recipe, dict(parse_override(text) for text in settings or ())).build()
    card = encoder.card
    if card is None:
        print(f"{recipe} needs no published weights.")
        return
    print(f"{recipe}: {card.source}; licence: {card.licence}")
    files = encoder.convert(published.fetch(card, encoder.recipe, source))
    print("\n".join(f"{path}  sha256 {known_files.digest(path)[:12]}..." for path in files))


def main() -> None:
    """Entry point of the `dmlm` command."""
    run(app)
