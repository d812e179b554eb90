"""The status of a grid, read from its folders alone: done, running, failed (why) or waiting, and the time left."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from dmlm.engines.lease import holder, live
from dmlm.results.failures import read_failures
from dmlm.results.grid import GridCell, read_grid


@dataclass(frozen=True)
class CellStatus:
    """The status of one cell."""

    label: str
    state: str  # done, training, evaluating, failed or waiting
    detail: str
    left_s: float | None  # seconds of training left; None if unknown

    @property
    def running(self) -> bool:
        """Whether a worker trains or evaluates the cell now."""
        return self.state in ("training", "evaluating")


def cell_status(cell: GridCell, step_s: float | None) -> CellStatus:
    """Return the status of one cell; `step_s` is the time of a step in similar trials, if known."""
    label = cell.label if cell.variant in cell.label else f"{cell.label} {cell.variant}"
    tested = sum(evaluation.done for evaluation in cell.evaluations)
    if cell.training and tested == len(cell.evaluations):
        return CellStatus(label, "done", f"{tested} evaluations", 0.0)
    leases = [path for path in cell.trial.leases() if live(path)]
    steps, steps_done = cell.steps or 0, cell.log[-1].step if cell.log else 0
    if cell.log and cell.log[-1].elapsed_s:
        step_s = cell.log[-1].elapsed_s / steps_done
    left_s = 0.0 if cell.training else None if step_s is None else step_s * (steps - steps_done)
    progress = (
        f"{tested} of {len(cell.evaluations)} evaluations" if cell.training else f"step {steps_done:,} of {steps:,}"
    )
    if leases:
        return CellStatus(
            label, "evaluating" if cell.training else "training", f"{progress}, {holder(leases[0])}", left_s
        )
    failures = read_failures(cell.trial.path)
    if failures and not failures[-1].again:
        detail = f"{failures[-1].kind} at {failures[-1].when}, {progress}: {failures[-1].message}"
        return CellStatus(label, "failed", detail, left_s)
    return CellStatus(label, "waiting", progress, left_s)


def table(folder: Path) -> tuple[str, int]:
    """Return the status table of a grid as text, and the number of cells that are not done."""
    grid = read_grid(folder)
    step_times_s: dict[tuple[str, str], list[float]] = {}  # of finished trainings, by model and template
    for cell in grid.cells:
        if cell.training:
            step_s = cell.training.train_s / cell.training.steps
            step_times_s.setdefault((cell.model, cell.template), []).append(step_s)
    rows = []
    for cell in grid.cells:
        similar_s = step_times_s.get((cell.model, cell.template)) or [
            step_s for kind, times_s in step_times_s.items() if kind[0] == cell.model for step_s in times_s
        ]
        rows.append(cell_status(cell, statistics.median(similar_s) if similar_s else None))
    width = max(len(row.label) for row in rows)
    lines = [f"{row.label:<{width}}  {row.state:<10}  {row.detail}" for row in rows]
    states = ("done", "training", "evaluating", "failed", "waiting")
    counts = {state: sum(row.state == state for row in rows) for state in states}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines.append(f"{grid.name}: {summary}{_time_left(rows)}")
    return "\n".join(lines), len(rows) - counts["done"]


def _time_left(rows: list[CellStatus]) -> str:
    """Estimate the training time left, if as many run at a time as now; empty if unknown."""
    open_rows = [row for row in rows if row.state != "done"]
    at_a_time = sum(row.running for row in rows)
    known_s = [row.left_s for row in open_rows if row.left_s is not None]
    if not open_rows or not known_s:
        return ""
    total_s = sum(known_s) + (len(open_rows) - len(known_s)) * statistics.mean(known_s)
    if not at_a_time:
        return f"; about {total_s / 60:.0f} min of training left, one at a time"
    return f"; about {total_s / at_a_time / 60:.0f} min of training left with {at_a_time} at a time"
