"""Training loss by step: the weighted total, and the transcript loss, which alone is comparable across templates."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from dmlm.results.drawing import INK, legend, panels, save, style_of
from dmlm.results.exhibit import Exhibit, csv_number, write_csv
from dmlm.results.grid import GridCell, GridResults
from dmlm.results.measures import cells_of, systems

ORDER = 60
NAME = "training_curves"
WINDOW = 25  # logged steps in the running mean that is drawn over the raw values


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the running mean of a curve (K,): at most a tenth of it wide, narrower towards its ends."""
    max_half = min(WINDOW, len(values) // 10) // 2
    halves = [min(max_half, i, len(values) - 1 - i) for i in range(len(values))]
    return np.array([values[i - half : i + half + 1].mean() for i, half in enumerate(halves)])


def _curves(cell: GridCell) -> tuple[np.ndarray, np.ndarray]:  # steps (K,), losses (2, K): total, transcript
    losses = [[step.loss, step.loss_by_modality.get("T", float("nan"))] for step in cell.log]
    return np.array([step.step for step in cell.log]), np.array(losses).reshape(-1, 2).T


def _rows(results: GridResults) -> Iterator[list[object]]:
    for cell in results.cells:
        for step in cell.log:
            parts = step.loss_by_modality
            by_modality = " ".join(f"{letter}={csv_number(value)}" for letter, value in parts.items())
            key = [cell.model, cell.template, cell.variant, cell.seed]
            losses = [csv_number(step.loss), csv_number(parts.get("T", float("nan")))]
            yield [*key, step.step, *losses, by_modality]


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Draw the curves of every cell; seeds of one system share a colour."""
    figure, columns = panels(results.models, rows=2, height_in=2.8)
    untrained = sum(not cell.log for cell in results.cells)
    for model, axes in zip(results.models, columns, strict=True):
        for system in systems(results, model):
            style = {key: value for key, value in style_of(results, system).items() if key != "marker"}
            cells = cells_of(results, system)
            for index, cell in enumerate(cells):
                steps, losses = _curves(cell)
                for axis, values in zip(axes, losses, strict=True):
                    axis.plot(steps, values, linewidth=0.5, alpha=0.25, color=style["color"])
                    axis.plot(steps, _smooth(values), linewidth=1.4, label="" if index else system.name, **style)
        for axis, label in zip(axes, ("weighted loss", "transcript loss (nats/token)"), strict=True):
            axis.set_ylabel(label, fontsize=10, color=INK)
            axis.set_ylim(bottom=0)
        for axis in axes:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[-1].set_xlabel("training step", fontsize=10, color=INK)
    legend(figure, columns)
    files, svg = save(figure, folder, NAME)
    head = ["model", "template", "variant", "seed", "step", "loss", "loss_transcript", "loss_by_modality"]
    return Exhibit(
        title="Training loss",
        caption=(
            "Above, the λ-weighted sum that is minimised: it has one term per modality, so templates with more"
            " inputs lie higher. Below, the transcript's part, which compares across templates. Bold: running mean."
            + (f" {untrained} of {len(results.cells)} cells have no curve yet." if untrained else "")
        ),
        files=(*files, write_csv(folder / f"{NAME}.csv", head, _rows(results))),
        svg=svg,
    )
