"""What a grid would do: its cells, what is done already, and what the rest takes in time, tokens and disk."""

import json
import shutil
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmlm import places
from dmlm.sweep.grid import Grid
from dmlm.sweep.materials import check_plain, clips_to_encode, lacking, look
from dmlm.sweep.store import SCORED, TRAINED, stored
from dmlm.sweep.trial import trial_of

Kind = tuple[str, str, int]  # backbone, template, batch size


@dataclass
class _Past:
    """What finished trials of one kind took."""

    step_s: list[float] = field(default_factory=list)
    evaluation_s: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)


def describe(grid: Grid) -> str:
    """A line a cell, what is lacking, then the sums. Costs are medians of finished trials of the same kind on this machine."""
    check_plain(grid.cells)
    needs = lacking(grid.cells)
    found = {} if needs else look(grid.cells)
    past = _past_trials()
    rows, seconds, size = [], 0.0, 0.0
    trainings, evaluations, unknown = 0, 0, 0
    counted: set[str] = set()
    for number, (cell, variant) in enumerate(zip(grid.cells, grid.variants, strict=True)):
        trial = trial_of(cell, found[number], grid.baseline) if number in found else None
        known = past[cell.backbone, cell.template, cell.train.batch_size]
        new = trial is None or trial.id not in counted  # cells that differ in `execution` only are one trial
        counted |= {trial.id} if trial else set()
        pending = len(trial.pending) if trial else len(cell.snr_db.test)
        if trial and trial.trained:
            state = f"trained; {len(trial.evaluations) - pending} of {len(trial.evaluations)} evaluations done"
        elif known.step_s:
            state = f"to train: {cell.train.steps:,} steps, about {_minutes(_median(known.step_s) * cell.train.steps)}"
            seconds += new * _median(known.step_s) * cell.train.steps
            size += new * _median(known.bytes)
        else:
            state, unknown = f"to train: {cell.train.steps:,} steps, time not known yet", unknown + new
        trainings += new and not (trial and trial.trained)
        evaluations += new * pending
        seconds += new * pending * (_median(known.evaluation_s) if known.evaluation_s else 0.0)
        label = cell.label if variant in cell.label else f"{cell.label} {variant}"
        rows.append((label, state))
    head = f"grid {grid.name}: {len(grid.cells)} cells; {trainings} trainings and {evaluations} evaluations to do"
    clips = clips_to_encode(grid.cells, found)
    tokens = f"{clips:,} clips" if clips is not None else "not known before corpus and codebooks are made"
    time = f"about {_minutes(seconds)} of one core" if seconds or not unknown else "not known yet"
    more = f", and {unknown} trainings of a kind that has not run here" if unknown and seconds else ""
    models = f"about {size / 2**20:,.0f} MB more for models{more}" if size or not unknown else "models not known yet"
    disk = f"{models}; {_free_gb():.0f} GB are free"
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {state}" for label, state in rows]
    lack = [f"needed first: {sentence}" for sentence in needs]
    return "\n".join([head, *lines, *lack, f"tokens to encode: {tokens}", f"time left: {time}{more}", f"disk: {disk}"])


def _past_trials() -> dict[Kind, _Past]:
    """Costs of every finished trial of this home, by kind."""
    found: dict[Kind, _Past] = defaultdict(_Past)
    for path in (places.home() / "runs" / "trials").glob("*/result.json"):
        result = stored(path, TRAINED)
        if result is None:
            continue
        spec = _json(path.parent / "spec.json")
        past = found[spec["backbone"]["name"], spec["template"], spec["train"]["batch_size"]]
        past.step_s.append(result["train_s"] / result["steps"])
        found_there = (stored(done, SCORED) for done in path.parent.glob("evals/*/result.json"))
        past.evaluation_s += [scores["decode_s"] for scores in found_there if scores]
        past.bytes.append(sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()))
    return found


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8")))


def _median(values: list[float] | list[int]) -> float:
    return float(statistics.median(values))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _free_gb() -> float:
    folder = places.home()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30
