"""The commands `grid run`, `show`, `status`, `export` and `transcribe`. Exit code 0 only if no cell is missing."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dmlm.errors import UserError
from dmlm.plan.grid import Grid, read_grid_file
from dmlm.plurals import counted

INCOMPLETE = 1  # some cells or figures are missing; which ones and why was printed
CONTINUE_LATER = 75  # EX_TEMPFAIL of sysexits.h: the time limit is over; the same command continues

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="A grid, then changed settings, such as train.steps=200.", metavar="[GRID] [KEY=VALUE]..."),
]
GridName = Annotated[
    str,
    typer.Option(
        "--grid", "-g", help="Grid file: name of a file in sweeps/, or a path; NAME:small picks one of several grids."
    ),
]
RunName = Annotated[str, typer.Argument(help="Name of a grid that was run, or its folder.")]


def run(
    overrides: Overrides = None,
    grid: GridName = "quickstart",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the cells, which are done, and how long the rest takes.")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Before that, prepare corpus and tokens and measure ten steps of each kind.")
    ] = False,
    on: Annotated[
        str | None, typer.Option(help="With --dry-run: estimate the time on a GPU, such as h100.", metavar="GPU")
    ] = None,
    engine: Annotated[str, typer.Option(help="local: this machine; ray: a Ray cluster.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; default: one per GPU, or one per core.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster, or `auto`.")] = None,
    gpu_share: Annotated[float, typer.Option(min=0, help="Ray: GPUs per trial; 0.5 puts two trials on each.")] = 1.0,
    time_limit_s: Annotated[
        float | None,
        typer.Option("--time-limit", help="Seconds after which to write checkpoints and exit with code 75."),
    ] = None,
    checkpoint_every_s: Annotated[
        float, typer.Option("--checkpoint-every", help="Seconds between checkpoints.")
    ] = 30.0,
    figure: Annotated[list[str] | None, typer.Option(help="Path of a further figure recipe.")] = None,
) -> None:
    """Train and evaluate every cell of a grid, then print tables and draw figures. Run again to continue."""
    from dmlm import recipes
    from dmlm.results.figures import make_figures
    from dmlm.results.tables import terminal_tables
    from dmlm.sweep import trying
    from dmlm.sweep.api import run_grid
    from dmlm.sweep.preview import describe
    from dmlm.sweep.schedule import TimeUp

    selected = _read(overrides, grid)
    for path in figure or []:
        recipes.find("analysis", path)
    for note in selected.notes:
        print(note)
    if dry_run or probe or on:
        print(describe(selected, probe, on, print))
        return
    try:
        outcome = run_grid(
            selected,
            engine=engine,
            workers=workers,
            address=address,
            gpu_share=gpu_share,
            checkpoint_every_s=checkpoint_every_s,
            time_limit_s=time_limit_s,
        )
    except TimeUp:
        print("The time limit is over; the same command continues from the checkpoints.", file=sys.stderr)
        raise typer.Exit(CONTINUE_LATER) from None
    results = outcome.results
    print(terminal_tables(results), flush=True)
    figures = make_figures(results, figure or [])
    listing = "\n".join(f"  {path}" for path in figures.files)
    print(f"\nFigures and report:\n{listing}")
    print(f"\nGrid {outcome.grid.name}: {counted(len(outcome.trials), 'model')} in {outcome.seconds:.0f} s.")
    if to_try := trying.command(outcome.trials):
        print(f"Transcribe a clip with a model of this grid:\n  {to_try}")
    for failure in figures.failures:
        print(f"figure failed: {failure}", file=sys.stderr)
    if outcome.missing:
        lines = "\n".join(outcome.missing)
        if outcome.only_mistakes:
            raise UserError(lines)
        cells = len(outcome.trials) + outcome.left_out
        print(f"error: {len(outcome.missing)} of {cells} cells are missing:\n{lines}", file=sys.stderr)
    if outcome.missing or figures.failures:
        raise typer.Exit(INCOMPLETE)


def show(
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option(help="Print every setting of every cell, as YAML.")] = False,
) -> None:
    """Print the cells of a grid file; reads no data and writes nothing."""
    import json

    import yaml

    grid = _read(overrides)
    print(f"{grid.name}: {counted(len(grid.cells), 'cell')}, baseline {grid.baseline}. {grid.about}".rstrip())
    for note in grid.notes:
        print(note)
    if not any(cell.template == grid.baseline for cell in grid.cells):
        print(f"No cell has the baseline {grid.baseline}, so there will be no Relative Benefit.")
    for number, (cell, variant) in enumerate(zip(grid.cells, grid.variants, strict=True)):
        print(f"{number:>4}  {cell.label:<28} {cell.backbone:<12} {cell.train.steps:>7,} steps  {variant}".rstrip())
        if resolved:
            settings = cell.model_dump_json(exclude={"corpus": {"left_out"}})  # which a run sets
            print(yaml.safe_dump(json.loads(settings), sort_keys=False))


def status(
    name: RunName = "quickstart",
    watch: Annotated[bool, typer.Option(help="Print the table every few seconds until no cell is left.")] = False,
) -> None:
    """Print for every cell whether it is done, running, failed (and why) or waiting, and the time left."""
    from dmlm.sweep.api import results_folder
    from dmlm.sweep.status import table

    folder = results_folder(name)
    while True:
        text, left = table(folder)
        print(("\033[2J\033[H" if watch and sys.stdout.isatty() else "") + text, flush=True)
        if not left or not watch:
            break
        time.sleep(5)
    if left:
        raise typer.Exit(INCOMPLETE)


def export(
    name: RunName = "quickstart",
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file; `-` is standard output.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file; `-` is standard output.")] = None,
    trn: Annotated[Path | None, typer.Option(help="Folder for ref.trn and hyp.trn of each, for sclite.")] = None,
    stm: Annotated[Path | None, typer.Option(help="Folder for ref.stm and hyp.ctm of each, for sclite.")] = None,
) -> None:
    """Write a table with one line per evaluation: all settings of its cell, its condition and its scores."""
    from dmlm import files
    from dmlm.results import sclite
    from dmlm.results.export import rows, table
    from dmlm.sweep.api import load_results, results_folder

    if not any((csv, parquet, trn, stm)):
        raise UserError("Say where to: --csv FILE, --parquet FILE, --trn FOLDER or --stm FOLDER, or several.")
    if csv and parquet and (csv == parquet or (files.is_standard_output(csv) and files.is_standard_output(parquet))):
        raise UserError("--csv and --parquet name the same file; give each its own.")
    for option, folder in (("--trn", trn), ("--stm", stm)):
        if folder and str(folder) == "-":
            raise UserError(f"{option} - is no folder, and transcripts are several files; give a folder.")
    for folder in filter(None, (trn, stm)):
        count = sclite.write_all(load_results(name), folder, folder is stm)
        print(f"{folder}: transcripts of {counted(count, 'evaluation')}")
    if not csv and not parquet:
        return
    records = rows(results_folder(name))
    missing = sum(record["status"] == "missing" for record in records)
    for path in filter(None, (csv, parquet)):
        on_stdout = files.write_for_user(path, table(records, parquet=path is parquet))
        summary = f"{path}: {counted(len(records), 'evaluation')}" + (f", {missing} of them missing" if missing else "")
        print(summary, file=sys.stderr if on_stdout else sys.stdout)


def transcribe(
    to: Annotated[Path, typer.Option(help="Folder for the transcripts, CONDITION/SPLIT.jsonl.")],
    overrides: Overrides = None,
    cell: Annotated[int, typer.Option(min=0, help="Number of the cell in `dmlm grid show`.")] = 0,
) -> None:
    """Write the transcripts of a trained cell in every condition, to be used as a first pass that ranks OCR lines."""
    from dmlm.sweep.api import prepare
    from dmlm.sweep.transcribe import transcribe_all

    grid = _read(overrides)
    if cell >= len(grid.cells):
        raise UserError(f"--cell {cell}: {grid.name} has cells 0 to {len(grid.cells) - 1}; see: dmlm grid show")
    if to.exists() and not to.is_dir():
        raise UserError(f"--to {to} is a file; give a folder.")
    trial, materials = prepare(grid.cells[cell], grid.baseline, print)
    print(f"{to}: {counted(transcribe_all(trial, materials, to), 'transcript')}")


def _read(arguments: list[str] | None, name: str = "quickstart") -> Grid:
    """Read grid `name`, or the grid that the first argument names, and apply the changed settings of the others."""
    changes = list(arguments or [])
    if changes and "=" not in changes[0]:
        name = changes.pop(0)
    return read_grid_file(name, changes)
