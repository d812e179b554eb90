"""Preview a grid without running it: its cells, what is finished, and what the rest costs in time, tokens and disk."""

import shutil
import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from dmlm import paths
from dmlm.plan.grid import Grid
from dmlm.results.folders import trial_folders
from dmlm.sweep.materials import clips_to_encode, find_prepared
from dmlm.sweep.requirements import check_settings, missing_requirements
from dmlm.sweep.trial import trial_of

Kind = tuple[str, str, int]  # backbone, template, batch size


@dataclass
class _Past:
    """Measured costs of finished trials of one kind, one item per step time, evaluation or folder."""

    step_s: list[float] = field(default_factory=list)
    evaluation_s: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)


def describe(grid: Grid) -> str:
    """Return the preview as text: a line per cell, missing requirements, and totals.

    Costs are medians of the finished trials of the same kind in this home folder.

    Raises:
        UserError: a wrong setting.
    """
    check_settings(grid.cells)
    requirements = missing_requirements(grid.cells)
    materials = {} if requirements else find_prepared(grid.cells)
    past_of_kind = _past_trials()
    rows, seconds, size = [], 0.0, 0.0
    trainings, evaluations, unknown = 0, 0, 0  # unknown: trainings without an estimate
    counted: set[str] = set()
    for number, (cell, variant) in enumerate(zip(grid.cells, grid.variants, strict=True)):
        trial = trial_of(cell, materials[number], grid.baseline) if number in materials else None
        past = past_of_kind[cell.backbone, cell.template, cell.train.batch_size]
        new = trial is None or trial.id not in counted  # cells that differ in `execution` only are one trial
        counted |= {trial.id} if trial else set()
        pending = len(trial.pending) if trial else len(cell.snr_db.test)
        if trial and trial.trained:
            state = f"trained; {len(trial.evaluations) - pending} of {len(trial.evaluations)} evaluations done"
        elif past.step_s:
            state = f"to train: {cell.train.steps:,} steps, about {_duration(_median(past.step_s) * cell.train.steps)}"
            seconds += new * _median(past.step_s) * cell.train.steps
            size += new * _median(past.bytes)
        else:
            state, unknown = f"to train: {cell.train.steps:,} steps, time not known yet", unknown + new
        trainings += new and not (trial and trial.trained)
        evaluations += new * pending
        seconds += new * pending * (_median(past.evaluation_s) if past.evaluation_s else 0.0)
        label = cell.label if variant in cell.label else f"{cell.label} {variant}"
        rows.append((label, state))
    head = f"grid {grid.name}: {len(grid.cells)} cells; {trainings} trainings and {evaluations} evaluations to do"
    clips = clips_to_encode(grid.cells, materials)
    tokens = f"{clips:,} clips" if clips is not None else "not known before corpus and codebooks are made"
    time = f"about {_duration(seconds)} of one core" if seconds or not unknown else "not known yet"
    more = f", and {unknown} trainings of a kind that has not run here" if unknown and seconds else ""
    models = f"about {size / 2**20:,.0f} MB more for models{more}" if size or not unknown else "models not known yet"
    disk = f"{models}; {_free_gb():.0f} GB are free"
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {state}" for label, state in rows]
    needed = [f"needed first: {sentence}" for sentence in requirements]
    totals = [f"tokens to encode: {tokens}", f"time left: {time}{more}", f"disk: {disk}"]
    if grid.search:
        points = " + ".join(str(grid.search.point_count(cell)) for cell in grid.cells)
        totals.append(
            f"search: before that, {points} models of other {', '.join(grid.search.space)}, read on split val"
        )
    return "\n".join([head, *lines, *needed, *totals])


def _past_trials() -> dict[Kind, _Past]:
    """Return the costs of all finished trials in the home folder, by kind."""
    past_of_kind: dict[Kind, _Past] = defaultdict(_Past)
    for trial in trial_folders(paths.runs()):
        result, spec = trial.result, trial.spec_if_written
        if result is None or not result.steps or not {"backbone", "template", "train"} <= spec.keys():
            continue
        past = past_of_kind[spec["backbone"]["name"], spec["template"], spec["train"]["batch_size"]]
        past.step_s.append(result.train_s / result.steps)
        past.evaluation_s += [evaluation.result.decode_s for evaluation in trial.evaluations() if evaluation.done]
        past.bytes.append(trial.bytes)
    return past_of_kind


def _median(values: list[float] | list[int]) -> float:
    return float(statistics.median(values))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _free_gb() -> float:
    folder = paths.home()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30
