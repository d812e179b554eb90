"""How a grid stands, read from its folders alone: done, running, failed (why), waiting; and the time left."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from dmlm.engines.lease import holder, live
from dmlm.results.failures import read_failures
from dmlm.results.grid import GridCell, read_grid


@dataclass(frozen=True)
class Standing:
    """One cell."""

    label: str
    state: str  # done, training, evaluating, failed or waiting
    detail: str
    left_s: float | None  # of its training; None where nothing is known

    @property
    def running(self) -> bool:
        return self.state in ("training", "evaluating")


def standing(cell: GridCell, step_s: float | None) -> Standing:
    """How one cell stands; `step_s` is what a step of its kind took elsewhere."""
    label = cell.label if cell.variant in cell.label else f"{cell.label} {cell.variant}"
    tested = sum(evaluation.done for evaluation in cell.evaluations)
    if cell.training and tested == len(cell.evaluations):
        return Standing(label, "done", f"{tested} evaluations", 0.0)
    leases = [path for path in cell.trial.leases() if live(path)]
    steps, reached = cell.steps or 0, cell.log[-1].step if cell.log else 0
    if cell.log and cell.log[-1].elapsed_s:
        step_s = cell.log[-1].elapsed_s / reached
    left_s = 0.0 if cell.training else None if step_s is None else step_s * (steps - reached)
    progress = f"{tested} of {len(cell.evaluations)} evaluations" if cell.training else f"step {reached:,} of {steps:,}"
    if leases:
        return Standing(
            label, "evaluating" if cell.training else "training", f"{progress}, {holder(leases[0])}", left_s
        )
    failures = read_failures(cell.trial.path)
    if failures and not failures[-1].again:
        said = f"{failures[-1].kind} at {failures[-1].when}, {progress}: {failures[-1].message}"
        return Standing(label, "failed", said, left_s)
    return Standing(label, "waiting", progress, left_s)


def table(folder: Path) -> tuple[str, int]:
    """The table to print, and the number of cells that are not done."""
    grid = read_grid(folder)
    speeds: dict[tuple[str, str], list[float]] = {}
    for cell in grid.cells:
        if cell.training:
            seconds = cell.training.train_s / cell.training.steps
            speeds.setdefault((cell.model, cell.template), []).append(seconds)
    rows = []
    for cell in grid.cells:
        known = speeds.get((cell.model, cell.template)) or [
            s for k, v in speeds.items() if k[0] == cell.model for s in v
        ]
        rows.append(standing(cell, statistics.median(known) if known else None))
    width = max(len(row.label) for row in rows)
    lines = [f"{row.label:<{width}}  {row.state:<10}  {row.detail}" for row in rows]
    states = ("done", "training", "evaluating", "failed", "waiting")
    counts = {state: sum(row.state == state for row in rows) for state in states}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines.append(f"{grid.name}: {summary}{_time_left(rows)}")
    return "\n".join(lines), len(rows) - counts["done"]


def _time_left(rows: list[Standing]) -> str:
    """Of the trainings, if they go on as many at a time as now."""
    open_rows = [row for row in rows if row.state != "done"]
    at_a_time = sum(row.running for row in rows)
    known = [row.left_s for row in open_rows if row.left_s is not None]
    if not open_rows or not known:
        return ""
    total = sum(known) + (len(open_rows) - len(known)) * statistics.mean(known)
    if not at_a_time:
        return f"; about {total / 60:.0f} min of training left, one at a time"
    return f"; about {total / at_a_time / 60:.0f} min of training left with {at_a_time} at a time"
