"""Preview a grid without running it: its cells, what is finished, and what the rest costs: operations, memory, time, disk."""

import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmlm import paths
from dmlm.corpus.condition import Condition
from dmlm.errors import UserError, did_you_mean
from dmlm.plan.cell import Cell
from dmlm.plan.grid import Grid
from dmlm.plurals import counted
from dmlm.results.folders import trial_folders
from dmlm.sweep import devices
from dmlm.sweep.materials import Materials, clips_to_encode
from dmlm.sweep.preparation import find_ready, prepare_under_lease
from dmlm.sweep.probe import Probe, probe_all
from dmlm.sweep.requirements import check, check_settings, missing_requirements
from dmlm.sweep.sizes import Size, size_of
from dmlm.sweep.trial import Trial, evaluations_of, trial_of

Kind = tuple[str, str, int, str]  # backbone, template, batch size, precision
NOT_KNOWN = "–"
NOT_OF_TRAINING: Any = {"execution": True, "decode": True, "perceptual": True, "split": True, "snr_db": {"test": True}}
NOT_OF_SPEED: Any = {  # settings on which the time of a step or of a transcript does not depend
    "seed": True,
    "permute": True,
    "perceptual": True,
    "train": {"steps", "lr", "final_lr_ratio", "warmup_steps", "weight_decay", "beta2", "clip_norm", "lambdas"},
}


@dataclass
class _Past:
    """Measured costs of finished trials of one kind, an item for each training and evaluation."""

    step_s: list[float] = field(default_factory=list)
    evaluation_s: list[float] = field(default_factory=list)


@dataclass
class _Row:
    """A cell in the preview."""

    cell: Cell
    label: str
    trial: Trial | None
    size: Size | None
    training: str  # cells with the same one are one model
    pending: frozenset[tuple[str, str]]  # evaluations to run: model and name
    evaluations: int  # done or not
    test_utterances: int
    train_s: float | None = None
    test_s: float | None = None  # of one condition
    memory_bytes: float | None = None

    @property
    def to_train(self) -> bool:
        return not (self.trial and self.trial.trained)

    @property
    def seconds(self) -> float | None:
        """Time of what is left; None if it is not known."""
        if (self.to_train and self.train_s is None) or (self.pending and self.test_s is None):
            return None
        return (self.train_s or 0.0 if self.to_train else 0.0) + len(self.pending) * (self.test_s or 0.0)


def describe(
    grid: Grid, probe: bool = False, on: str | None = None, say: Callable[[str], None] = lambda line: None
) -> str:
    """Return the preview as text: a line per cell, missing requirements, and totals.

    Times are medians of the finished trials of the same kind in this home folder.

    Args:
        grid: the grid.
        probe: prepare corpus and tokens, as a run does, and measure ten steps of each other kind of cell.
        on: instead, estimate the times of a GPU of `dmlm.sweep.devices`.
        say: called with lines of progress.

    Raises:
        UserError: a wrong setting, an unknown device, or both ways to a time; with `probe` also something missing.
    """
    if on is not None and on not in devices.PEAKS:
        raise UserError(f"--on {on}: {did_you_mean(on, devices.PEAKS)}.")
    if on and probe:
        raise UserError(f"--probe measures here and --on {on} estimates another machine; give one of them.")
    check_settings(grid.cells)
    if probe:
        check(grid.cells)
        errors: dict[int, Exception] = {}
        made = iter(prepare_under_lease(grid.cells, say, failed=errors))
        materials = {number: next(made) for number in range(len(grid.cells)) if number not in errors}
        for number, error in errors.items():
            say(f"failed   {grid.cells[number].label}: {error}")
        requirements: list[str] = []
    else:
        requirements = missing_requirements(grid.cells)
        materials = {} if requirements else find_ready(grid.cells)
    rows = _rows(grid, materials)
    how = _add_estimates(rows, on) if on else _add_measurements(rows, probe, say)
    return "\n".join([_head(grid, rows), *_table(rows), *_totals(grid, rows, materials, requirements, how)])


def _rows(grid: Grid, materials: dict[int, Materials]) -> list[_Row]:
    rows = []
    for number, (cell, variant) in enumerate(zip(grid.cells, grid.variants, strict=True)):
        made = materials.get(number)
        trial = trial_of(cell, made, grid.baseline) if made else None
        if trial:
            training, evaluations = trial.id, len(trial.evaluations)
            names = [trial.name_of(evaluation) for evaluation in trial.pending]
        else:
            training = cell.model_dump_json(exclude=NOT_OF_TRAINING)
            levels_db = {snr_db: Condition(snr_db=snr_db) for snr_db in (*cell.snr_db.test, *cell.perceptual.snr_db)}
            names = [f"{e} {cell.decode} {cell.split}" for e in evaluations_of(cell, grid.baseline, levels_db, {})]
            evaluations = len(names)
        row = _Row(
            cell=cell,
            label=cell.label if variant in cell.label else f"{cell.label} {variant}",
            trial=trial,
            size=size_of(cell, made),
            training=training,
            pending=frozenset((training, name) for name in names),
            evaluations=evaluations,
            test_utterances=len(made.corpus.split(cell.split)) if made else 0,
        )
        row.memory_bytes = row.size.memory_bytes if row.size and row.size.lengths else None
        rows.append(row)
    return rows


def _kind(cell: Cell) -> Kind:
    return cell.backbone, cell.template, cell.train.batch_size, cell.train.precision


def _speed(cell: Cell) -> str:
    """Return the settings that decide the time of a step and of a transcript."""
    return cell.model_dump_json(exclude=NOT_OF_SPEED)


def _add_measurements(rows: Sequence[_Row], probe: bool, say: Callable[[str], None]) -> str:
    """Add times measured here; return a sentence that says how."""
    past_of_kind = _past_trials()
    probes: dict[str, Probe | None] = {}
    if probe:
        work = {_speed(row.cell): row.trial for row in rows if row.trial and (row.to_train or row.pending)}
        probes = dict(zip(work, probe_all([trial for trial in work.values() if trial], say), strict=True))
    for row in rows:
        past = past_of_kind[_kind(row.cell)]
        if found := probes.get(_speed(row.cell)):
            row.train_s, row.memory_bytes = found.step_s * row.cell.train.steps, found.peak_bytes
            row.test_s = found.utterance_s * row.test_utterances
        elif past.step_s and not probe:
            row.train_s = _median(past.step_s) * row.cell.train.steps
            row.test_s = _median(past.evaluation_s) if past.evaluation_s else None
    if probe:
        return "measured: ten steps and a few transcripts of each kind of cell, in one process of this machine"
    return "medians of finished models of the same kind here; --probe measures ten steps first, --on h100 estimates"


def _add_estimates(rows: Sequence[_Row], device: str) -> str:
    """Add estimated times on a device; return a sentence that says how."""
    for row in rows:
        if row.size and (found := devices.estimate(row.size, row.cell.train.steps, row.cell.train.precision, device)):
            row.train_s, row.test_s = found.train_s, found.test_s
    half, full = (peak / 1e12 for peak in devices.PEAKS[device])
    speeds = f"{half:.0f} TFLOP/s in bf16 and {full:.0f} in fp32 of its data sheet"
    return f"ESTIMATES for one {device}, from {speeds}, and {devices.ASSUMPTIONS}"


def _head(grid: Grid, rows: Sequence[_Row]) -> str:
    trainings = len({row.training for row in rows if row.to_train})
    evaluations = len(frozenset[tuple[str, str]]().union(*(row.pending for row in rows)))
    todo = f"{counted(trainings, 'training')} and {counted(evaluations, 'evaluation')} to do"
    return f"grid {grid.name}: {counted(len(grid.cells), 'cell')}; {todo}"


def _table(rows: Sequence[_Row]) -> list[str]:
    head = ("cell", "parameters", "tokens", "FLOP train", "FLOP/test", "memory", "disk", "time", "state")
    lines = [head, *((row.label, *_columns(row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column in (0, len(head) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _columns(row: _Row) -> tuple[str, ...]:
    size = row.size
    known = size is not None and size.lengths is not None
    if not row.to_train and row.trial:
        state = f"trained; {row.evaluations - len(row.pending)} of {row.evaluations} evaluations done"
    else:
        state = f"to train: {row.cell.train.steps:,} steps"
    return (
        _short(size.cost.parameters) if size else NOT_KNOWN,
        _short(size.tokens) if size and known else NOT_KNOWN,
        _short(size.train_operations) if size and known else NOT_KNOWN,
        _short(size.test_operations) if size and known else NOT_KNOWN,
        f"{row.memory_bytes / 2**30:.1f} GiB" if row.memory_bytes else NOT_KNOWN,
        f"{size.disk_bytes / 2**20:,.1f} MiB" if size else NOT_KNOWN,
        NOT_KNOWN if row.seconds is None else _duration(row.seconds),
        state,
    )


def _totals(
    grid: Grid, rows: Sequence[_Row], materials: dict[int, Materials], requirements: Sequence[str], how: str
) -> list[str]:
    trainings = {row.training: row for row in rows if row.to_train}
    tests = {test: row for row in rows for test in row.pending}
    times = [row.train_s for row in trainings.values()] + [row.test_s for row in tests.values()]
    known_s, unknown = sum(time_s for time_s in times if time_s is not None), times.count(None)
    time = f"about {_duration(known_s)} of one worker" if known_s or not unknown else "not known yet"
    if unknown and known_s:
        time += f", and {unknown} trainings and evaluations whose time is not known"
    clips = clips_to_encode(grid.cells, materials)
    tokens = counted(clips, "clip") if clips is not None else "not known before corpus and codebooks are made"
    sizes = [row.size for row in trainings.values() if row.size]
    models, checkpoints = (
        sum(size.disk_bytes for size in sizes),
        max((size.checkpoint_bytes for size in sizes), default=0),
    )
    disk = f"about {models / 2**20:,.0f} MiB more for models, {checkpoints / 2**20:,.0f} MiB for the checkpoints of one worker"
    if others := len(trainings) - len(sizes):
        disk += f", and {counted(others, 'model')} whose size is not known"
    lines = [
        *(f"needed first: {sentence}" for sentence in requirements),
        f"tokens to encode: {tokens}",
        f"time left: {time} ({how})",
        f"disk: {disk}; {_free_gb():.0f} GB are free",
    ]
    if any(row.size is None or row.size.lengths is None for row in rows):
        lines.append(
            f"{NOT_KNOWN}: known once corpus and tokens are made, which --probe does; or, of a pretrained network, by --probe alone"
        )
    if grid.search:
        points = " + ".join(str(grid.search.point_count(cell)) for cell in grid.cells)
        lines.append(f"search: before that, {points} models of other {', '.join(grid.search.space)}, read on split val")
    return lines


def _past_trials() -> dict[Kind, _Past]:
    """Return the costs of all finished trials in the home folder, by kind."""
    past_of_kind: dict[Kind, _Past] = defaultdict(_Past)
    for trial in trial_folders(paths.runs()):
        result, spec = trial.result, trial.spec_if_written
        if (
            result is None
            or not result.steps
            or result.model_elsewhere
            or not {"backbone", "template", "train"} <= spec.keys()
        ):
            continue
        past = past_of_kind[
            spec["backbone"]["name"],
            spec["template"],
            spec["train"]["batch_size"],
            spec["train"].get("precision", "fp32"),
        ]
        past.step_s.append(result.train_s / result.steps)
        past.evaluation_s += [evaluation.result.decode_s for evaluation in trial.evaluations() if evaluation.done]
    return past_of_kind


def _median(values: list[float]) -> float:
    return float(statistics.median(values))


def _short(value: float) -> str:
    """Write a large number with a unit.

    >>> [_short(n) for n in (950, 685_000, 12_300_000, 1.25e17)]
    ['950', '685 k', '12.3 M', '125 P']
    """
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _free_gb() -> float:
    folder = paths.home()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30
