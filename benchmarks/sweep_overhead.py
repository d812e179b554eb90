"""What the sweep itself costs, in real worker processes of this machine, over the smoke corpus.

grid     1,000 cells whose training and evaluation only leave their results: what all that a run does but load libraries,
         start workers, encode and draw takes for one; then how long it takes to see that nothing is left to do.
tokens   8 cells, trained and evaluated: items that reach an encoder, counted there, against the distinct (utterance,
         condition, tokenizer), and against the same cells with a cache each.
workers  4 trainings with their evaluations: two workers against half the time of one, taking turns.

    python benchmarks/sweep_overhead.py            # all three, or those named
"""

import contextlib
import importlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import yaml
from harness import ROOT, ROUNDS, record, row, seconds

from dmlm import places
from dmlm.sweep.engines import Engine, Inline
from dmlm.sweep.grid import read_grid_file
from dmlm.sweep.index import write_index
from dmlm.sweep.materials import check, prepare
from dmlm.sweep.run import complaint, run_trials
from dmlm.sweep.trial import trial_of

COUNTED = """
from dmlm import recipes

class Counted(recipes.load("tokenizers", {recipe!r}).{kind}):
    def encode(self, batch):
        with open({log!r}, "a") as log:
            log.write("item\\n" * len(batch))
        return super().encode(batch)
"""


def real(module: str) -> None:
    """In a worker: load what trains and evaluates."""
    importlib.import_module(module)


def stand_in(module: str) -> None:
    """In a worker: put in its place what only leaves results."""

    def train_cell(trial, materials, checkpoint_every_s):
        (trial.folder / "result.json").write_text('{"steps": 1, "train_s": 0.001}\n')

    def evaluate_conditions(trial, pending, materials):
        for folder in map(trial.scores, pending):
            folder.mkdir(parents=True)
            (folder / "result.json").write_text('{"wer": 0.0}\n')

    sys.modules[module] = types.ModuleType(module)
    vars(sys.modules[module]).update(train_cell=train_cell, evaluate_conditions=evaluate_conditions)


def engine(count: int, work=real) -> Inline:
    """Workers that have started: each has called the function once."""
    opened = Inline([""] * count)
    list(opened.map(work, ["dmlm.sweep.execute"] * count))
    return opened


def grid_file(name: str, axes: dict[str, list], **changes: object) -> Path:
    """The smoke grid with other axes and settings."""
    base = yaml.safe_load((ROOT / "sweeps" / "smoke.yaml").read_text())["base"]
    del base["tokenizers"]["O"]
    path = places.home() / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "base": {**base, **changes}, "axes": axes}))
    return path


def go(path: Path, opened: Engine) -> None:
    """What `dmlm grid run` does, up to the tables."""
    with contextlib.redirect_stderr(io.StringIO()):  # progress
        grid = read_grid_file(str(path))
        check(grid.cells)
        materials = prepare(grid.cells, run=opened.map)
        trials = [trial_of(c, m, grid.baseline) for c, m in zip(grid.cells, materials, strict=True)]
        write_index(grid, materials, trials)
        failures = run_trials(grid, trials, opened, [].append, 30.0)
    if missing := complaint(trials, failures):
        raise RuntimeError("\n".join(missing))


def overhead() -> list[dict[str, object]]:
    """Milliseconds of a trial that takes no time, and seconds of a grid that is finished."""
    axes = {"seed": [*range(125)], "train.lr": [1e-3, 2e-3], "backbone": ["opt-nano", "mamba-nano"]}
    axes["template"] = ["A -> T", "A+L -> T"]
    path = grid_file("thousand", axes, snr_db={"train": [0], "test": [0]}, perceptual={"snr_db": 0, "draws": 1})
    with engine(2, stand_in) as opened:
        prepare(read_grid_file(str(path)).cells, run=opened.map)
        first = seconds(lambda: go(path, opened))
        again = statistics.median(seconds(lambda: go(path, opened)) for _ in range(ROUNDS))
    command = [Path(sys.executable).with_name("dmlm"), "grid", "status", "thousand"]
    shown = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(ROUNDS)]
    note = "2 workers; a cell is a training and 1 or 2 evaluations, in 2 tasks"
    return [
        row("one of 1,000 trials that take no time (wanted: under 10 ms)", 1e3 * first / 1000, None, "ms", None, note),
        row("seeing that 1,000 cells are done (wanted: under 2 s)", again, None, "s", None, "libraries are loaded"),
        row("`dmlm grid status` of 1,000 cells", statistics.median(shown), None, "s", None, "the whole command"),
    ]


def tokens() -> list[dict[str, object]]:
    """Items that reach the encoders: of a whole grid, and of its cells one by one."""
    log, choices = places.home() / "encoded.txt", {}
    for letter, recipe, kind, clusters in (("A", "audio_mfcc", "MfccUnits", 64), ("L", "lips_dct", "DctUnits", 50)):
        file = places.home() / f"counted_{recipe}.py"
        file.write_text(COUNTED.format(recipe=recipe, kind=kind, log=str(log)))
        choices[letter] = {"recipe": str(file), "settings": {"clusters": clusters}}
    axes = {"seed": [0, 1], "template": ["A -> T", "A+L -> T"], "backbone": ["opt-nano", "mamba-nano"]}
    path = grid_file("counted", axes, tokenizers=choices)
    with engine(2) as opened:
        go(path, opened)
        together = len(log.read_text().splitlines())
        cells = read_grid_file(str(path)).cells
        distinct = {
            (utterance.id, condition.key if letter == "A" else "clean", letter)
            for cell, found in zip(cells, prepare(cells), strict=True)
            for letter in cell.letters
            for split, wanted in (("train", found.train_conditions), ("test", found.test_conditions.values()))
            for condition in wanted
            for utterance in found.corpus.split(split)
        }
        log.unlink()
        for cell in cells:
            shutil.rmtree(places.home() / "tokens")
            prepare([cell], run=opened.map)
    alone = len(log.read_text().splitlines())
    what = f"items encoded to train and test {len(cells)} cells"
    return [
        row(f"{what}, against distinct (utterance, condition, tokenizer)", together, len(distinct), "items", 1.0),
        row(f"{what}, against a cache for each cell", together, alone, "items", None),
    ]


def workers() -> list[dict[str, object]]:
    """Seconds that two workers take, and half of what one takes; tokens are there and workers have started."""
    train = {"steps": 150, "batch_size": 8, "lr": 2e-3, "warmup_steps": 4, "draws": 1}
    path = grid_file("four", {"seed": [0, 1, 2, 3], "backbone": ["opt-nano"], "template": ["A -> T"]}, train=train)
    times: dict[int, list[float]] = {1: [], 2: []}
    for count in [*times] * ROUNDS:
        shutil.rmtree(places.home() / "runs", ignore_errors=True)
        with engine(count) as opened:
            prepare(read_grid_file(str(path)).cells, run=opened.map)
            times[count].append(seconds(lambda: go(path, opened)))
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
