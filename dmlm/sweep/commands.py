"""The commands about grids: run, show, status, export, transcribe. Exit code 0 only if no cell is missing."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dmlm import places, recipes
from dmlm.errors import UserError, did_you_mean
from dmlm.sweep.grid import Grid, read_grid_file

INCOMPLETE = 1  # some cells are missing; which and why has been printed
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
    engine: Annotated[str, typer.Option(help="inline: this machine. ray: a Ray cluster.")] = "inline",
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
) -> None:
    """Train and evaluate every cell of a grid, then print tables and draw figures. Run again to continue."""
    from functools import partial

    from dmlm.sweep.engines import open_engine
    from dmlm.sweep.index import write_index
    from dmlm.sweep.materials import check, prepare_alone, without
    from dmlm.sweep.preview import describe
    from dmlm.sweep.report import finish
    from dmlm.sweep.run import TimeUp, complaint, run_trials
    from dmlm.sweep.trial import trial_of

    if engine not in ("inline", "ray"):
        raise UserError(f"There is no engine {engine!r}; {did_you_mean(engine, ('inline', 'ray'))}.")
    chosen = _read(overrides, grid)
    if dry_run:
        print(describe(chosen))
        if chosen.search:
            points = " + ".join(str(chosen.search.points(cell)) for cell in chosen.cells)
            print(f"search: before that, {points} models of other {', '.join(chosen.search.space)}, read on split val")
        return
    started = time.monotonic()
    deadline = None if time_limit_s is None else started + time_limit_s
    check(chosen.cells)
    together = max(cell.execution.data_parallel for cell in chosen.cells)
    with open_engine(engine, workers, address, gpu_share, together) as opened:
        run_all = partial(
            run_trials, engine=opened, say=print, checkpoint_every_s=checkpoint_every_s, deadline=deadline
        )
        barren: list[str] = []
        try:
            if chosen.search:
                from dmlm.sweep.search import searched

                chosen, barren = searched(chosen, chosen.search, run_all, opened, print)
            failed: dict[int, Exception] = {}
            materials = prepare_alone(chosen.cells, print, opened.map, failed)
            chosen, unprepared = without(chosen, failed)
            barren += unprepared
            trials = [trial_of(c, m, chosen.baseline) for c, m in zip(chosen.cells, materials, strict=True)]
            folder = write_index(chosen, materials, trials)
            failures = run_all(chosen, trials)
        except TimeUp:
            print("The time limit is over; the same command continues from the checkpoints.", file=sys.stderr)
            raise typer.Exit(CONTINUE_LATER) from None
    print(finish(folder))
    print(f"\nGrid {chosen.name}: {len(trials)} models in {time.monotonic() - started:.0f} s.")
    missing = [*barren, *complaint(trials, failures)]
    if missing:
        listing = "\n".join(missing)
        mistakes = [failure.kind == "user_error" for failure in failures.values()]
        mistakes += [isinstance(error, UserError) for error in failed.values()]
        if mistakes and all(mistakes):
            raise UserError(listing)
        print(
            f"error: {len(missing)} of {len(trials) + len(unprepared)} cells are missing:\n{listing}", file=sys.stderr
        )
        raise typer.Exit(INCOMPLETE)


def show(
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option(help="Print every setting of every cell, as YAML.")] = False,
) -> None:
    """Print the cells that a grid file asks for; nothing is opened or made."""
    import json

    import yaml

    chosen = _read(overrides)
    print(f"{chosen.name}: {len(chosen.cells)} cells, baseline {chosen.baseline}. {chosen.about}")
    if not any(cell.template == chosen.baseline for cell in chosen.cells):
        print(f"No cell has the baseline {chosen.baseline}, so there will be no Relative Benefit.")
    for number, (cell, variant) in enumerate(zip(chosen.cells, chosen.variants, strict=True)):
        print(f"{number:>4}  {cell.label:<28} {cell.backbone:<12} {cell.train.steps:>7,} steps  {variant}".rstrip())
        if resolved:
            print(yaml.safe_dump(json.loads(cell.model_dump_json()), sort_keys=False))


def status(
    name: RunName = "quickstart",
    watch: Annotated[bool, typer.Option(help="Draw the table again every few seconds, until nothing is left.")] = False,
) -> None:
    """Say of every cell whether it is done, running, failed (why) or waiting, with the time left."""
    from dmlm.sweep.status import table

    folder = _folder(name)
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
    from dmlm.sweep.export import write_table

    if not csv and not parquet:
        raise UserError("Say where to: --csv FILE, --parquet FILE, or both.")
    for path in filter(None, (csv, parquet)):
        lines, missing = write_table(_folder(name), path, parquet=path == parquet)
        print(f"{path}: {lines} evaluations" + (f", {missing} of them missing" if missing else ""))


def transcribe(
    to: Annotated[Path, typer.Option(help="Folder for the transcripts, CONDITION/SPLIT.jsonl.")],
    overrides: Overrides = None,
    cell: Annotated[int, typer.Option(min=0, help="Number of the cell, as `dmlm grid show` counts them.")] = 0,
) -> None:
    """Write what a trained cell understands in every condition: the first pass that OCR lines can be chosen by."""
    from dmlm.sweep.materials import check, prepare_alone
    from dmlm.sweep.transcribe import transcribe_all
    from dmlm.sweep.trial import trial_of

    grid = _read(overrides)
    if cell >= len(grid.cells):
        raise UserError(f"--cell {cell}: {grid.name} has cells 0 to {len(grid.cells) - 1}; see: dmlm grid show")
    chosen = grid.cells[cell]
    check([chosen])
    (materials,) = prepare_alone([chosen], print)
    print(f"{to}: {transcribe_all(trial_of(chosen, materials, grid.baseline), materials, to):,} transcripts")


def _read(arguments: list[str] | None, name: str = "quickstart") -> Grid:
    """The grid that is named, or that the first argument names, with the changes of the others."""
    changes = list(arguments or [])
    if changes and "=" not in changes[0]:
        name = changes.pop(0)
    return read_grid_file(name, changes)


def _folder(name: str) -> Path:
    """Folder of a grid, from its name or its path."""
    runs = places.home() / "runs"
    for folder in (runs / name.replace(":", "_"), Path(name)):
        if (folder / "grid.json").is_file():
            return folder
    if name.partition(":")[0] in recipes.names("sweeps"):
        raise UserError(f"Grid {name!r} has not been run in {places.home()}; run: dmlm grid run {name}")
    known = sorted(path.parent.name for path in runs.glob("*/grid.json"))
    raise UserError(f"There is no grid {name!r} in {runs}; {did_you_mean(name, known)}.")
