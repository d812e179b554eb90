"""The overhead of a sweep, measured with worker processes on the smoke corpus.

grid     1,000 cells whose training and evaluation are stand-ins that only write results: the time of one cell without
         loading libraries, starting workers, encoding and drawing; then the time to find out that all cells are done.
tokens   8 cells, trained and evaluated: items that are encoded, against the distinct (utterance, condition, tokenizer),
         and against the sum over cells, if they shared nothing.
workers  4 trainings with their evaluations: the time with two workers against half the time with one, in turns.

    python benchmarks/sweep_overhead.py            # all three, or those given as arguments
"""

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml
from harness import ROOT, ROUNDS, record, row, seconds

from dmlm import paths, recipes
from dmlm.engines.base import Engine
from dmlm.engines.local import Local
from dmlm.plan.grid import read_grid_file
from dmlm.results.grid import write_grid
from dmlm.results.records import TrialResult, UtteranceResult
from dmlm.sweep.api import index_of
from dmlm.sweep.materials import Materials, prepare
from dmlm.sweep.requirements import check
from dmlm.sweep.schedule import missing_cells, run_trials
from dmlm.sweep.trial import Evaluation, Trial, trial_of

BOTH = {"backbone": ["opt-nano", "mamba-nano"], "template": ["A -> T", "A+L -> T"]}
UTTERANCE = UtteranceResult(
    id="stand-in",
    reference="x",
    hypothesis="x",
    snr_db_measured=None,
    substitutions=0,
    deletions=0,
    insertions=0,
    reference_words=1,
)
COUNTED = """
from dmlm import recipes

class Counted(recipes.load("tokenizers", {recipe!r}).{kind}):
    def encode(self, batch):
        with open({log!r}, "a") as log:
            log.write("item\\n" * len(batch))
        return super().encode(batch)
"""


def started(count: int, stand_in: bool = False) -> Local:
    """Start workers and let them load libraries; with `stand_in`, training and evaluation are replaced."""
    engine = Local([""] * count)
    list(engine.map(_load, [stand_in] * count))
    return engine


def _load(stand_in: bool) -> None:
    """Load what trials need, or stand-ins that only write results."""
    recipes.load("datasets", "three_equations")
    if stand_in:
        for name, function in (("train_trial", _write_trial_result), ("evaluate_trial", _write_evaluations)):
            sys.modules[f"dmlm.sweep.{name}"] = module = types.ModuleType(f"dmlm.sweep.{name}")
            setattr(module, name, function)
    import dmlm.sweep.evaluate_trial
    import dmlm.sweep.train_trial  # noqa: F401


def _write_trial_result(trial: Trial, materials: Materials, checkpoint_every_s: float) -> None:
    (trial.folder / "model").mkdir(exist_ok=True)
    (trial.folder / "model" / "config.json").write_text('{"model_type": "opt"}')
    (trial.folder / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    trial.stored.write_result(TrialResult(parameters=1, steps=1, train_s=0.001))


def _write_evaluations(trial: Trial, pending: Sequence[Evaluation], materials: Materials) -> None:
    for evaluation in pending:
        trial.folder_of(evaluation).write({"normaliser": "basic/2"}, [UTTERANCE], 0.0)


def grid_file(name: str, axes: dict[str, list], **changes: object) -> Path:
    """Write a grid file: the smoke grid with other axes and settings."""
    base = yaml.safe_load((ROOT / "sweeps" / "smoke.yaml").read_text())["base"]
    del base["tokenizers"]["O"]
    path = paths.home() / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "base": {**base, **changes}, "axes": axes}))
    return path


def run_grid(path: Path, engine: Engine) -> None:
    """Do what `dmlm grid run` does, except the tables and figures."""
    with contextlib.redirect_stderr(io.StringIO()):  # progress
        grid = read_grid_file(str(path))
        check(grid.cells)
        materials = prepare(grid.cells, run=engine.map)
        trials = [trial_of(c, m, grid.baseline) for c, m in zip(grid.cells, materials, strict=True)]
        write_grid(index_of(grid, materials, trials))
        failures = run_trials(trials, engine, [].append, 30.0)
    if missing := missing_cells(trials, failures):
        raise RuntimeError("\n".join(missing))


def overhead() -> list[dict[str, object]]:
    """Measure the milliseconds of a trial that takes no time, and the seconds of a grid that is finished."""
    axes = {"seed": [*range(125)], "train.lr": [1e-3, 2e-3], **BOTH}
    path = grid_file("thousand", axes, snr_db={"train": [0], "test": [0]}, perceptual={"snr_db": 0, "draws": 1})
    with started(2, stand_in=True) as engine:
        prepare(read_grid_file(str(path)).cells, run=engine.map)
        first_s = seconds(partial(run_grid, path, engine))
        finished_s = statistics.median(seconds(partial(run_grid, path, engine)) for _ in range(ROUNDS))
    command = [sys.executable, "-c", "from dmlm.cli.main import main; main()", "grid", "status", "thousand"]
    status = partial(subprocess.run, command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    status_s = statistics.median(seconds(status) for _ in range(ROUNDS))
    note = "2 workers; a cell is a training and 1 or 2 evaluations, in 2 tasks; no flush to disk"
    return [
        row(
            "one of 1,000 trials that take no time (wanted: under 10 ms)", 1e3 * first_s / 1000, None, "ms", None, note
        ),
        row(
            "seeing that 1,000 cells are done (wanted: under 2 s)", finished_s, None, "s", None, "libraries are loaded"
        ),
        row("`dmlm grid status` of 1,000 cells", status_s, None, "s", None, "the whole command"),
    ]


def tokens() -> list[dict[str, object]]:
    """Count the items encoded in a run, the distinct items, and the sum over cells if they shared nothing."""
    log, choices = paths.home() / "encoded.txt", {}
    for letter, recipe, kind, clusters in (("A", "audio_mfcc", "MfccUnits", 64), ("L", "lips_dct", "DctUnits", 50)):
        file = paths.home() / f"counted_{recipe}.py"
        file.write_text(COUNTED.format(recipe=recipe, kind=kind, log=str(log)))
        choices[letter] = {"recipe": str(file), "settings": {"clusters": clusters}}
    path = grid_file("counted", {"seed": [0, 1], **BOTH}, tokenizers=choices)
    with started(2) as engine:
        run_grid(path, engine)
    encoded = len(log.read_text().splitlines())
    cells = read_grid_file(str(path)).cells
    needs = [
        {
            (utterance.id, condition.key if letter == "A" else "clean", letter)
            for letter in cell.letters
            for split, conditions in (
                ("train", materials.train_conditions),
                ("test", materials.test_conditions.values()),
            )
            for condition in conditions
            for utterance in materials.corpus.split(split)
        }
        for cell, materials in zip(cells, prepare(cells), strict=True)
    ]
    title = f"items encoded to train and test {len(cells)} cells"
    distinct, unshared = len(set().union(*needs)), sum(map(len, needs))
    return [
        row(f"{title}, against distinct (utterance, condition, tokenizer)", encoded, distinct, "items", 1.0),
        row(f"{title}, against cells that share nothing", encoded, unshared, "items", None, "theirs: calculated"),
    ]


def workers() -> list[dict[str, object]]:
    """Measure the seconds of two workers, against half the seconds of one; tokens are cached and workers started."""
    train = {"steps": 150, "batch_size": 8, "lr": 2e-3, "warmup_steps": 4, "draws": 1}
    path = grid_file("four", {"seed": [0, 1, 2, 3], "backbone": ["opt-nano"], "template": ["A -> T"]}, train=train)
    times: dict[int, list[float]] = {1: [], 2: []}
    for count in [*times] * ROUNDS:
        shutil.rmtree(paths.home() / "runs", ignore_errors=True)
        with started(count) as engine:
            prepare(read_grid_file(str(path)).cells, run=engine.map)
            times[count].append(seconds(partial(run_grid, path, engine)))
    one, two = (statistics.median(times_s) for times_s in times.values())
    return [row("4 trainings of 150 steps by 2 workers, against half the time of 1", two, one / 2, "s", None)]


def main() -> None:
    """Measure the parts given on the command line, or all, in a temporary folder."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    parts = {"grid": overhead, "tokens": tokens, "workers": workers}
    with tempfile.TemporaryDirectory() as home:
        os.environ["DMLM_HOME"] = home
        for part in sys.argv[1:] or parts:
            record(parts[part]())


if __name__ == "__main__":
    main()
