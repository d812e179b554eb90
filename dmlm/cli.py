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

from dmlm import places, recipes
from dmlm.errors import UserError
from dmlm.sweep import commands

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
grids = typer.Typer(no_args_is_help=True, help="Run grids, and see how they stand.")
for command in (commands.run, commands.show, commands.status, commands.export, commands.transcribe):
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
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS) and places.home().is_dir():
            raise
        print(f"error: {places.home()}: {error}; mend that and run the same command again.", file=sys.stderr)
        sys.exit(1)
    except Stopped as signalled:
        print("\nInterrupted. The same command continues from here.", file=sys.stderr)
        sys.exit(128 + signalled.args[0])


@app.command()
def names(
    wing: Annotated[str, typer.Argument(help="tokenizers, datasets, sweeps or analysis")],
    recipe: Annotated[str | None, typer.Argument(help="A tokenizer, whose settings are then listed.")] = None,
) -> None:
    """List the recipes of a wing, which is a folder of them; or the settings of one tokenizer."""
    if wing not in recipes.SUFFIXES:
        raise UserError(f"There is no wing {wing!r}; choose one of {', '.join(recipes.SUFFIXES)}.")
    if recipe is None:
        print("\n".join(recipes.names(wing)))
        return
    if wing != "tokenizers":
        raise UserError(f"Settings are listed of tokenizers, not of {wing}; leave {recipe!r} out.")
    from dmlm.tokens.tokenizer import Encoder

    kind = recipes.load_class(wing, recipe, Encoder)
    print(f"{(inspect.getdoc(sys.modules[kind.__module__]) or '').splitlines()[0]}\n")
    for name, field in kind.Settings.model_fields.items():
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
    from dmlm.sweep.dotted import parsed
    from dmlm.tokens import weights
    from dmlm.tokens.encoding import EncoderSpec

    encoder = EncoderSpec(recipe, dict(parsed(text) for text in settings or ())).build()
    card = encoder.card
    if card is None:
        print(f"{recipe} needs no published weights.")
        return
    print(f"{recipe}: {card.source}; licence: {card.licence}")
    files = encoder.convert(weights.fetch(card, encoder.recipe, given))
    print("\n".join(f"{path}  sha256 {weights.file_digest(path)[:12]}..." for path in files))


@app.command()
def mouths(
    videos: Annotated[list[Path] | None, typer.Argument(help="Videos of a talking face.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for the mouths, NAME.mp4 each.")] = Path("mouths"),
    landmarks: Annotated[str, typer.Option(help="What finds the face: mediapipe or dlib.")] = "mediapipe",
    fetch: Annotated[bool, typer.Option("--fetch", help="Bring the model of mediapipe here first.")] = False,
) -> None:
    """Crop the mouth from videos of a talking face: 96 x 96 grey pixels, 25 frames a second."""
    from dmlm.corpus import mouth_roi
    from dmlm.tokens import weights

    if not videos and not fetch:
        raise UserError("Say which videos: dmlm mouths talk.mp4 --to FOLDER.")
    for video in videos or []:
        if not video.is_file():
            raise UserError(f"There is no video {video}.")
    if fetch and landmarks != "mediapipe":
        raise UserError(f"--fetch brings the model of mediapipe, not of {landmarks}; leave one of the two out.")
    if fetch:
        card = weights.Card("https://ai.google.dev/edge/mediapipe", "Apache-2.0", (weights.File(**mouth_roi.MODEL),))
        print("\n".join(map(str, weights.fetch(card, "mouth_roi"))))
    if videos:
        for mouth in mouth_roi.crop_all(videos, to, mouth_roi.detector(landmarks)):
            print(f"{mouth.path}: {mouth.frames} frames, the face found in {mouth.found / mouth.frames:.0%} of them")


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, devices, what each tokenizer lacks, and where things are kept."""
    from dmlm.doctor import report

    print(report())


def main() -> None:
    """Entry point of the `dmlm` command."""
    run(app)
