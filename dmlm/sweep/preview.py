"""What a grid would do: its cells, what is done already, and how long the rest should take."""

import json
import statistics

from dmlm import places
from dmlm.sweep.cell import Cell
from dmlm.sweep.grid import Grid
from dmlm.sweep.identity import canonical
from dmlm.sweep.materials import check, look
from dmlm.sweep.trial import trial_of


def describe(grid: Grid) -> str:
    """One line per cell. Times come from finished trials of the same backbone and template on this machine."""
    check(grid.cells)
    found = look(grid.cells)
    lines = [f"grid {grid.name}: {len(grid.cells)} cells"]
    left_s, unknown = 0.0, 0
    for number, cell in enumerate(grid.cells):
        trial = trial_of(cell, found[number], grid.baseline) if number in found else None
        if trial and trial.trained:
            evaluated = len(trial.evaluations) - len(trial.pending)
            state = f"trained; {evaluated} of {len(trial.evaluations)} evaluations done"
        else:
            expected = _step_s(cell)
            unknown += expected is None
            left_s += (expected or 0.0) * cell.train.steps
            cost = "time not known yet" if expected is None else f"about {expected * cell.train.steps / 60:.1f} min"
            state = f"to train: {cell.train.steps} steps, {cost}"
        lines.append(f"  {cell.label:<24} {state}")
    known = f"about {left_s / 60:.1f} min of one core" if left_s or not unknown else "time not known yet"
    rest = f", for {unknown} cells no finished run says" if left_s and unknown else ""
    lines.append(f"training left: {known}{rest}; evaluation and preparation come on top")
    return "\n".join(lines)


def _step_s(cell: Cell) -> float | None:
    """Seconds per step of finished trials with this backbone, template and batch size."""
    seen = []
    for result in (places.home() / "runs" / "trials").glob("*/result.json"):
        spec = json.loads((result.parent / "spec.json").read_text())
        same = (spec["backbone"]["name"], spec["template"], spec["train"]["batch_size"])
        if canonical(same) == canonical((cell.backbone, cell.template, cell.train.batch_size)):
            facts = json.loads(result.read_text())
            seen.append(facts["train_s"] / facts["steps"])
    return statistics.median(seen) if seen else None
