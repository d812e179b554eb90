"""What the sweep itself costs, in real worker processes of this machine, over the smoke corpus.

grid     1,000 cells whose training and evaluation only leave their results: what all that a run does but load
         libraries, start workers, encode and draw takes for one; then how long it takes to see that all is done.
tokens   8 cells, trained and evaluated: items that reach an encoder, counted there, against the distinct (utterance,
         condition, tokenizer), and against what the cells need that share nothing.
workers  4 trainings with their evaluations: two workers against half the time of one, taking turns.

    python benchmarks/sweep_overhead.py            # all three, or those named
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
from functools import partial
from pathlib import Path

import yaml
from harness import ROOT, ROUNDS, record, row, seconds

from dmlm import paths, recipes
from dmlm.engines.base import Engine
from dmlm.engines.local import Local
from dmlm.plan.grid import read_grid_file
from dmlm.results.grid import write_grid
from dmlm.results.records import TrialResult
from dmlm.sweep.api import index_of
from dmlm.sweep.materials import check, prepare
from dmlm.sweep.schedule import missing_cells, run_trials
from dmlm.sweep.trial import trial_of

BOTH = {"backbone": ["opt-nano", "mamba-nano"], "template": ["A -> T", "A+L -> T"]}
COUNTED = """
from dmlm import recipes

class Counted(recipes.load("tokenizers", {recipe!r}).{kind}):
    def encode(self, batch):
        with open({log!r}, "a") as log:
            log.write("item\\n" * len(batch))
        return super().encode(batch)
"""


def started(count: int, stand_in: bool = False) -> Local:
    """Workers that have loaded what they need, or stand-ins for what trains and evaluates."""
    opened = Local([""] * count)
    list(opened.map(_load, [stand_in] * count))
    return opened


def _load(stand_in: bool) -> None:
    recipes.load("datasets", "three_equations")
    if stand_in:
        for name, function in (("train_trial", _leave_result), ("evaluate_trial", _leave_results)):
            sys.modules[f"dmlm.sweep.{name}"] = module = types.ModuleType(f"dmlm.sweep.{name}")
            setattr(module, name, function)
    import dmlm.sweep.evaluate_trial
    import dmlm.sweep.train_trial  # noqa: F401


def _leave_result(trial, materials, checkpoint_every_s):
    (trial.folder / "model").mkdir(exist_ok=True)
    (trial.folder / "model" / "config.json").write_text('{"model_type": "opt"}')
    (trial.folder / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    trial.stored.write_result(TrialResult(parameters=1, steps=1, train_s=0.001))


def _leave_results(trial, pending, materials):
    for evaluation in pending:
        trial.folder_of(evaluation).write({}, [], 0.0)


def grid_file(name: str, axes: dict[str, list], **changes: object) -> Path:
    """The smoke grid with other axes and settings."""
    base = yaml.safe_load((ROOT / "sweeps" / "smoke.yaml").read_text())["base"]
    del base["tokenizers"]["O"]
    path = paths.home() / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "base": {**base, **changes}, "axes": axes}))
    return path


def go(path: Path, opened: Engine) -> None:
    """What `dmlm grid run` does, up to the tables."""
    with contextlib.redirect_stderr(io.StringIO()):  # progress
        grid = read_grid_file(str(path))
        check(grid.cells)
        materials = prepare(grid.cells, run=opened.map)
        trials = [trial_of(c, m, grid.baseline) for c, m in zip(grid.cells, materials, strict=True)]
        write_grid(index_of(grid, materials, trials))
        failures = run_trials(grid, trials, opened, [].append, 30.0)
    if missing := missing_cells(trials, failures):
        raise RuntimeError("\n".join(missing))


def overhead() -> list[dict[str, object]]:
    """Milliseconds of a trial that takes no time, and seconds of a grid that is finished."""
    axes = {"seed": [*range(125)], "train.lr": [1e-3, 2e-3], **BOTH}
    path = grid_file("thousand", axes, snr_db={"train": [0], "test": [0]}, perceptual={"snr_db": 0, "draws": 1})
    with started(2, stand_in=True) as opened:
        prepare(read_grid_file(str(path)).cells, run=opened.map)
        first = seconds(partial(go, path, opened))
        again = statistics.median(seconds(partial(go, path, opened)) for _ in range(ROUNDS))
    command = [sys.executable, "-c", "from dmlm.cli.main import main; main()", "grid", "status", "thousand"]
    status = partial(subprocess.run, command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    shown = statistics.median(seconds(status) for _ in range(ROUNDS))
    note = "2 workers; a cell is a training and 1 or 2 evaluations, in 2 tasks; no flush to disk"
    return [
        row("one of 1,000 trials that take no time (wanted: under 10 ms)", 1e3 * first / 1000, None, "ms", None, note),
        row("seeing that 1,000 cells are done (wanted: under 2 s)", again, None, "s", None, "libraries are loaded"),
        row("`dmlm grid status` of 1,000 cells", shown, None, "s", None, "the whole command"),
    ]


def tokens() -> list[dict[str, object]]:
    """Items that reach the encoders in a whole run; how many differ, and how many cells that share nothing need."""
    log, choices = paths.home() / "encoded.txt", {}
    for letter, recipe, kind, clusters in (("A", "audio_mfcc", "MfccUnits", 64), ("L", "lips_dct", "DctUnits", 50)):
        file = paths.home() / f"counted_{recipe}.py"
        file.write_text(COUNTED.format(recipe=recipe, kind=kind, log=str(log)))
        choices[letter] = {"recipe": str(file), "settings": {"clusters": clusters}}
    path = grid_file("counted", {"seed": [0, 1], **BOTH}, tokenizers=choices)
    with started(2) as opened:
        go(path, opened)
    encoded = len(log.read_text().splitlines())
    cells = read_grid_file(str(path)).cells
    needs = [
        {
            (utterance.id, condition.key if letter == "A" else "clean", letter)
            for letter in cell.letters
            for split, wanted in (("train", found.train_conditions), ("test", found.test_conditions.values()))
            for condition in wanted
            for utterance in found.corpus.split(split)
        }
        for cell, found in zip(cells, prepare(cells), strict=True)
    ]
    what = f"items encoded to train and test {len(cells)} cells"
    distinct, unshared = len(set().union(*needs)), sum(map(len, needs))
    return [
        row(f"{what}, against distinct (utterance, condition, tokenizer)", encoded, distinct, "items", 1.0),
        row(f"{what}, against cells that share nothing", encoded, unshared, "items", None, "theirs: calculated"),
    ]


def workers() -> list[dict[str, object]]:
    """Seconds that two workers take, and half of what one takes; tokens are there and workers have started."""
    train = {"steps": 150, "batch_size": 8, "lr": 2e-3, "warmup_steps": 4, "draws": 1}
    path = grid_file("four", {"seed": [0, 1, 2, 3], "backbone": ["opt-nano"], "template": ["A -> T"]}, train=train)
    times: dict[int, list[float]] = {1: [], 2: []}
    for count in [*times] * ROUNDS:
        shutil.rmtree(paths.home() / "runs", ignore_errors=True)
        with started(count) as opened:
            prepare(read_grid_file(str(path)).cells, run=opened.map)
            times[count].append(seconds(partial(go, path, opened)))
    one, two = (statistics.median(found) for found in times.values())
    return [row("4 trainings of 150 steps by 2 workers, against half the time of 1", two, one / 2, "s", None)]


def main() -> None:
    """Measure the parts named, or all, in a folder that is thrown away."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    parts = {"grid": overhead, "tokens": tokens, "workers": workers}
    with tempfile.TemporaryDirectory() as home:
        os.environ["DMLM_HOME"] = home
        for part in sys.argv[1:] or parts:
            record(parts[part]())


if __name__ == "__main__":
    main()
