"""The commands about grids: run, show, status, export, transcribe. Exit code 0 only if no cell is missing."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dmlm.errors import UserError
from dmlm.plan.grid import Grid, read_grid_file

INCOMPLETE = 1  # some cells or figures are missing; which and why has been printed
CONTINUE_LATER = 75  # EX_TEMPFAIL of sysexits.h: the time limit is over, the same command continues

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="A grid, then changes such as train.steps=200", metavar="[GRID] [KEY=VALUE]..."),
]
GridName = Annotated[
    str, typer.Option("--grid", "-g", help="A file of sweeps/ by name, or a path; NAME:small of several.")
]
RunName = Annotated[str, typer.Argument(help="Name of a grid that was run, or its folder.")]


def run(
    overrides: Overrides = None,
    grid: GridName = "quickstart",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells, what is done, what the rest takes; do nothing.")
    ] = False,
    engine: Annotated[str, typer.Option(help="local: this machine. ray: a Ray cluster.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; default: one a GPU, or one a core.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster, or `auto`.")] = None,
    gpu_share: Annotated[float, typer.Option(min=0, help="Ray: GPUs a trial takes; 0.5 puts two on each.")] = 1.0,
    time_limit_s: Annotated[
        float | None, typer.Option("--time-limit", help="Seconds after which to leave checkpoints and exit with 75.")
    ] = None,
    checkpoint_every_s: Annotated[
        float, typer.Option("--checkpoint-every", help="Seconds between checkpoints.")
    ] = 30.0,
    figure: Annotated[list[str] | None, typer.Option(help="A further figure: the path of its file.")] = None,
) -> None:
    """Train and evaluate every cell of a grid, then print tables and draw figures. Run again to continue."""
    from dmlm import recipes
    from dmlm.results.figures import make_figures
    from dmlm.results.tables import terminal_tables
    from dmlm.sweep.api import run_grid
    from dmlm.sweep.preview import describe
    from dmlm.sweep.schedule import TimeUp

    chosen = _read(overrides, grid)
    for path in figure or []:
        recipes.find("analysis", path)
    if dry_run:
        print(describe(chosen))
        return
    try:
        ran = run_grid(
            chosen,
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
    results = ran.results
    print(terminal_tables(results), flush=True)
    figures = make_figures(results, figure or [])
    listing = "\n".join(f"  {path}" for path in figures.files)
    print(f"\nFigures and report:\n{listing}")
    print(f"\nGrid {ran.grid.name}: {len(ran.trials)} models in {ran.seconds:.0f} s.")
    for failure in figures.failures:
        print(f"figure failed: {failure}", file=sys.stderr)
    if ran.missing:
        lines = "\n".join(ran.missing)
        if ran.only_mistakes:
            raise UserError(lines)
        cells = len(ran.trials) + ran.left_out
        print(f"error: {len(ran.missing)} of {cells} cells are missing:\n{lines}", file=sys.stderr)
    if ran.missing or figures.failures:
        raise typer.Exit(INCOMPLETE)


def show(
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option(help="Print every setting of every cell, as YAML.")] = False,
) -> None:
    """Print the cells that a grid file asks for; nothing is opened or made."""
    import json

    import yaml

    grid = _read(overrides)
    print(f"{grid.name}: {len(grid.cells)} cells, baseline {grid.baseline}. {grid.about}")
    if not any(cell.template == grid.baseline for cell in grid.cells):
        print(f"No cell has the baseline {grid.baseline}, so there will be no Relative Benefit.")
    for number, (cell, variant) in enumerate(zip(grid.cells, grid.variants, strict=True)):
        print(f"{number:>4}  {cell.label:<28} {cell.backbone:<12} {cell.train.steps:>7,} steps  {variant}".rstrip())
        if resolved:
            print(yaml.safe_dump(json.loads(cell.model_dump_json()), sort_keys=False))


def status(
    name: RunName = "quickstart",
    watch: Annotated[bool, typer.Option(help="Draw the table again every few seconds, until nothing is left.")] = False,
) -> None:
    """Say of every cell whether it is done, running, failed (why) or waiting, with the time left."""
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
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file.")] = None,
) -> None:
    """Write a table with a line for every evaluation: all settings of its cell, its condition and its scores."""
    from dmlm.results.export import write_table
    from dmlm.sweep.api import results_folder

    if not csv and not parquet:
        raise UserError("Say where to: --csv FILE, --parquet FILE, or both.")
    for path in filter(None, (csv, parquet)):
        lines, missing = write_table(results_folder(name), path, parquet=path == parquet)
        print(f"{path}: {lines} evaluations" + (f", {missing} of them missing" if missing else ""))


def transcribe(
    to: Annotated[Path, typer.Option(help="Folder for the transcripts, CONDITION/SPLIT.jsonl.")],
    overrides: Overrides = None,
    cell: Annotated[int, typer.Option(min=0, help="Number of the cell, as `dmlm grid show` counts them.")] = 0,
) -> None:
    """Write what a trained cell understands in every condition: the first pass that OCR lines can be chosen by."""
    from dmlm.sweep.api import prepare
    from dmlm.sweep.transcribe import transcribe_all

    grid = _read(overrides)
    if cell >= len(grid.cells):
        raise UserError(f"--cell {cell}: {grid.name} has cells 0 to {len(grid.cells) - 1}; see: dmlm grid show")
    trial, materials = prepare(grid.cells[cell], grid.baseline, print)
    print(f"{to}: {transcribe_all(trial, materials, to):,} transcripts")


def _read(arguments: list[str] | None, name: str = "quickstart") -> Grid:
    """The grid that is named, or that the first argument names, with the changes of the others."""
    changes = list(arguments or [])
    if changes and "=" not in changes[0]:
        name = changes.pop(0)
    return read_grid_file(name, changes)
