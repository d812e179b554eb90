"""Run a grid: prepare, train and evaluate what is missing, write the index, draw the figures.

The folders are the truth: a trial or an evaluation is done when its `result.json` exists, which is written last.
"""

import json
from collections.abc import Callable
from pathlib import Path

from dmlm import places
from dmlm.score.wer import NORMALISER
from dmlm.sweep.grid import Grid
from dmlm.sweep.materials import Materials
from dmlm.sweep.trial import Trial, evaluations_of, training_spec, trial_folder


def plan(grid: Grid, materials: Materials) -> list[Trial]:
    """The trials of a grid, in its order."""
    runs, trials = places.home() / "runs", []
    for cell in grid.cells:
        conditions = materials.train_conditions[: cell.train.draws]
        spec = training_spec(cell, grid, materials.corpus.digest, materials.text.digest, materials.fingerprints, conditions)
        evaluations = evaluations_of(cell, grid, materials.test_conditions)
        trials.append(Trial(cell, spec, trial_folder(runs, cell, spec), evaluations))
    return trials


def done(folder: Path) -> bool:
    return (folder / "result.json").is_file()


def write_index(grid: Grid, materials: Materials, trials: list[Trial]) -> Path:
    """`runs/GRID/grid.json`: which folders the grid is made of. Figures are drawn from it."""
    folder = places.home() / "runs" / grid.name
    cells = [
        {
            "model": trial.cell.backbone,
            "template": trial.cell.template.notation,
            "seed": trial.cell.seed,
            "label": trial.cell.label,
            "trial": f"../trials/{trial.id}",
            "evaluations": [
                {
                    "snr_db": "clean" if e.condition.clean else e.condition.snrs_db[0],
                    "permuted": e.permuted,
                    "draw": e.draw,
                    "folder": f"../trials/{trial.id}/evals/{e.folder_name(grid)}",
                }
                for e in trial.evaluations
            ],
        }
        for trial in trials
    ]
    card = {key: materials.corpus.card[key] for key in ("name", "version", "licence", "digest", "utterances")}
    index = {
        "schema": 1,
        "name": grid.name,
        "corpus": card,
        "normaliser": NORMALISER,
        "noise": grid.noise.model_dump(mode="json"),
        "readers": {letter: source.spec.recipe for letter, source in materials.sources.items()},
        "baseline": grid.baseline,
        "cells": cells,
    }
    places.write_text(folder / "grid.json", json.dumps(index, indent=1) + "\n")
    return folder


def run_trials(grid: Grid, materials: Materials, trials: list[Trial], say: Callable[[str], None]) -> None:
    """Train and evaluate in this process, one trial after the other."""
    for number, trial in enumerate(trials, start=1):
        pending = [e for e in trial.evaluations if not done(trial.folder / "evals" / e.folder_name(grid))]
        if done(trial.folder) and not pending:
            say(f"[{number}/{len(trials)}] {trial.cell.label}: done before, {trial.folder}")
            continue
        say(f"[{number}/{len(trials)}] {trial.cell.label}: {trial.folder}")
        from dmlm.sweep.execute import evaluate_conditions, train_cell  # torch is loaded only when there is work

        if not done(trial.folder):
            train_cell(trial, grid, materials)
        if pending:
            evaluate_conditions(trial, pending, grid, materials)
