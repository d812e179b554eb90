"""The command `corpus look`: one utterance heard, seen and as tokens, on a page of its own."""

import re
from pathlib import Path
from typing import Annotated

import typer

from dmlm import paths, snr
from dmlm.errors import UserError


def look(
    utterance: Annotated[str, typer.Argument(help="Id of an utterance.", metavar="ID")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changed settings of the grid.", metavar="[KEY=VALUE]...")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            "-g",
            help="Whose corpus, noise, tokenizers and templates are shown: one that was run, or a sweep file.",
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Another corpus, without tokens: a folder, a manifest, NAME or NAME:PRESET.")
    ] = None,
    snr_text: Annotated[str, typer.Option("--snr", help="SNR in dB, or `clean`.", metavar="DB")] = "0",
    kind: Annotated[str | None, typer.Option(help="Only this kind of noise, such as babble.")] = None,
    cell: Annotated[int, typer.Option(min=0, help="Number of the cell in `dmlm grid show` that is meant.")] = 0,
    to: Annotated[Path | None, typer.Option(help="Folder to write to; default: one in var/looks.")] = None,
) -> None:
    """Write an utterance as wav, video, page, tokens and sequences, and one page that shows and plays them together."""
    from dmlm.cli.corpus import manifest_of
    from dmlm.plan.grid import read_grid_file
    from dmlm.results.look import check_folder, write
    from dmlm.sweep.look import grid_named, grid_with, look_in_corpus, look_in_grid

    try:
        snr_db = snr.parse(snr_text)
    except ValueError as error:
        raise UserError(f"--snr {snr_text}: {error}.") from None
    if to:
        check_folder(to.expanduser())
    if corpus:
        noise = (grid_named(grid, overrides or []) if grid else read_grid_file("quickstart", [])).cells[0].noise
        found = look_in_corpus(manifest_of(corpus), noise, utterance, snr_db, kind)
    else:
        selected = grid_named(grid or grid_with(utterance), overrides or [])
        found = look_in_grid(selected, utterance, snr_db, kind, cell)
    level = snr.with_unit(snr_db).replace(" ", "")
    corpus_name, *words = (re.sub(r"[^\w.-]+", "-", word) for word in (found.corpus, utterance, level, kind or ""))
    folder = to or paths.home() / "looks" / corpus_name / "_".join(filter(None, words))
    written = write(found, folder.expanduser().resolve())
    print("\n".join(map(str, written)))
    print(f"\nOpen {folder / 'look.html'} in a browser.")
    for note in found.notes:
        print(note)
