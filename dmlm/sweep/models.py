"""Trained models by name: the folder of one, or all finished ones of a grid."""

from dataclasses import dataclass
from pathlib import Path

from dmlm import paths
from dmlm.errors import UserError
from dmlm.recognition.model_folder import FILE
from dmlm.results.grid import is_grid, read_grid


@dataclass(frozen=True)
class NamedModel:
    """A trained model."""

    label: str  # tells it from others of its grid; empty if it was named by its folder
    folder: Path


def find_models(name: str) -> list[NamedModel]:
    """Return the models that a name stands for: the folder of a model or of a trial, or the finished models of a grid.

    Raises:
        UserError: there is no such folder or grid, or none of its models is finished.
    """
    folder = Path(name).expanduser()
    for candidate in (folder, folder / "model"):
        if (candidate / FILE).is_file():
            return [NamedModel("", candidate)]
    if folder.is_dir() and not is_grid(folder):
        raise UserError(
            f"--model: {folder} has no {FILE}, so it is no trained model; give the folder `model` of a trial."
        )
    if "/" in name and not folder.is_dir():
        raise UserError(
            f"--model: there is no folder {name}; give the folder `model` of a trial, or the name of a grid."
        )
    from dmlm.sweep.api import results_folder  # here: it opens everything that a grid needs

    grid = read_grid(results_folder(name))
    cells = [cell for cell in grid.cells if cell.trial.result and (cell.trial.model / FILE).is_file()]
    labels = [f"{cell.label} {cell.variant}".strip() for cell in cells]  # models of two sizes have one
    models = [
        NamedModel(label if labels.count(label) == 1 else f"{label} {cell.model}", cell.trial.model)
        for cell, label in zip(cells, labels, strict=True)
    ]
    if not models:
        raise UserError(f"Grid {grid.name} has no trained model in {paths.runs()}; run: dmlm grid run {grid.name}")
    return models
