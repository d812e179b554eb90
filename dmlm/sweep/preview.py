"""What a grid would do: its cells, what is done already, and what the rest takes in time, tokens and disk."""

import shutil
import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from dmlm import paths
from dmlm.plan.grid import Grid
from dmlm.results.folders import trial_folders
from dmlm.sweep.materials import check_plain, clips_to_encode, lacking, look
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
    sums = [f"tokens to encode: {tokens}", f"time left: {time}{more}", f"disk: {disk}"]
    if grid.search:
        points = " + ".join(str(grid.search.points(cell)) for cell in grid.cells)
        sums.append(f"search: before that, {points} models of other {', '.join(grid.search.space)}, read on split val")
    return "\n".join([head, *lines, *lack, *sums])


def _past_trials() -> dict[Kind, _Past]:
    """Costs of every finished trial of this home, by kind."""
    found: dict[Kind, _Past] = defaultdict(_Past)
    for trial in trial_folders(paths.runs()):
        result = trial.result
        if result is None:
            continue
        spec = trial.spec
        past = found[spec["backbone"]["name"], spec["template"], spec["train"]["batch_size"]]
        past.step_s.append(result.train_s / result.steps)
        past.evaluation_s += [evaluation.result.decode_s for evaluation in trial.evaluations() if evaluation.done]
        past.bytes.append(trial.bytes)
    return found


def _median(values: list[float] | list[int]) -> float:
    return float(statistics.median(values))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _free_gb() -> float:
    folder = paths.home()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30
