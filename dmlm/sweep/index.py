"""`runs/GRID/grid.json`: which folders a grid is made of. Tables and figures are drawn from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlm import places
from dmlm.score.wer import NORMALISER
from dmlm.sweep.grid import Grid
from dmlm.sweep.materials import Materials
from dmlm.sweep.trial import Trial


def write_index(grid: Grid, materials: Sequence[Materials], trials: Sequence[Trial]) -> Path:
    """Write it; the folder of the grid."""
    folder = places.home() / "runs" / grid.name
    cells = [
        {
            "model": trial.cell.backbone,
            "template": trial.cell.template,
            "seed": trial.cell.seed,
            "label": trial.cell.label,
            "variant": variant,
            "settings": trial.cell.model_dump(mode="json", exclude={"execution"}),
            "steps": trial.cell.train.steps,
            "trial": f"../trials/{trial.id}",
            "evaluations": [
                {
                    "snr_db": "clean" if e.condition.clean else e.condition.snrs_db[0],
                    "permuted": e.permuted,
                    "draw": e.draw,
                    "folder": f"../trials/{trial.id}/evals/{trial.scores(e).name}",
                }
                for e in trial.evaluations
            ],
        }
        for trial, variant in zip(trials, grid.variants, strict=True)
    ]
    first = materials[0]
    noises = [cell.noise.model_dump(mode="json") for cell in grid.cells]
    noise = {key: _together([noise[key] for noise in noises]) for key in noises[0]}
    card = {key: first.corpus.card[key] for key in ("name", "version", "licence", "digest", "utterances")}
    readers = {k: s.spec.recipe for found in materials for k, s in found.sources.items()}
    index = {
        "schema": 1,
        "name": grid.name,
        "about": grid.about,
        "corpus": card,
        "normaliser": NORMALISER,
        "noise": noise,
        "readers": readers,
        "baseline": grid.baseline,
        "cells": cells,
    }
    places.write_text(folder / "grid.json", json.dumps(index, indent=1) + "\n")
    return folder


def _together(values: list[Any]) -> Any:
    """The value that all cells have, else all of them, to be read by a person."""
    different = list(dict.fromkeys(map(str, values)))
    return values[0] if len(different) == 1 else " or ".join(different)
