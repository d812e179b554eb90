"""The search for settings: what is proposed, that it can be continued, and that it never sees the test split."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from dmlm.cli import grid
from dmlm.corpus.condition import CLEAN, Condition
from dmlm.corpus.manifest import read_corpus
from dmlm.errors import UserError
from dmlm.plan.cell import CorpusChoice
from dmlm.plan.grid import Grid, read_grid_file
from dmlm.sweep.parts import corpus_folder
from dmlm.sweep.search import CellSearch, Sampler, SearchPoint, run_searches, val_wer
from dmlm.sweep.trial import Evaluation, Trial

pytest.importorskip("optuna")

ROOT = Path(__file__).resolve().parent.parent
FILE = """
base:
  corpus: {{recipe: three_equations, preset: smoke}}
  tokenizers:
    A: {{recipe: audio_mfcc, settings: {{clusters: 32}}}}
    L: {{recipe: lips_dct, settings: {{clusters: 32}}}}
  text: {{vocab_size: 300}}
  snr_db: {{train: clean, test: clean}}
  backbone: opt-nano
  template: A+L -> T
  train: {{steps: 3, batch_size: 8, lr: 2.0e-3, warmup_steps: 1, draws: 1}}
  perceptual: {{snr_db: clean, draws: 1}}
  decode: {{max_new_tokens: 24}}
{more}
"""
TPE = """
search:
  space:
    train.lambdas.A: [0.0, 1.0]
    train.lambdas.L: {low: 0.05, high: 1.0, log: true}
  trials: 12
  startup: 4
  snr_db: clean
"""


def grid_of(folder: Path, more: str, *changes: str) -> Grid:
    path = folder / "mine.yaml"
    path.write_text(FILE.format(more=more))
    return read_grid_file(str(path), changes)


def bowl(cell) -> float:
    """A WER that is lowest at λ_A = 0.7, λ_L = 0.2."""
    weights = cell.train.lambdas
    return 0.2 + (weights.A - 0.7) ** 2 + (weights.L - 0.2) ** 2


class Killed(Exception):
    pass


def explored(grid: Grid, objective=bowl, store: dict | None = None, most: int | None = None) -> list[CellSearch]:
    """A search whose trainings are calls of a function. `store` stands for the trials on disk, `most` for a kill."""
    assert grid.search
    searches = [CellSearch(cell, "", Sampler(grid.search, cell)) for cell in grid.cells if grid.search.space_of(cell)]
    store = {} if store is None else store
    fresh = []

    def read(asked):
        for cell, _ in asked:
            key = cell.model_dump_json()
            if key not in store:
                if most is not None and len(fresh) == most:
                    raise Killed
                fresh.append(key)
                store[key] = objective(cell)
        return [SearchPoint(values, "", store[cell.model_dump_json()]) for cell, values in asked]

    run_searches(searches, read, lambda: None)
    return searches


def points(grid: Grid, objective=bowl) -> list[dict]:
    (search,) = explored(grid, objective)
    return [point.values for point in search.points]


def test_the_same_seed_proposes_the_same_points_and_another_others(tmp_path):
    first = points(grid_of(tmp_path, TPE))
    assert len(first) == 12
    assert points(grid_of(tmp_path, TPE)) == first
    assert points(grid_of(tmp_path, TPE, "search.seed=1")) != first
    assert points(grid_of(tmp_path, TPE, "search.trials=15"))[:12] == first


def test_it_begins_with_the_cells_own_values_if_the_space_holds_them(tmp_path):
    assert points(grid_of(tmp_path, TPE))[0] == {"train.lambdas.A": 0.3, "train.lambdas.L": 0.5}
    own = "train.lambdas.L=0.123456789"
    assert points(grid_of(tmp_path, TPE, own))[0]["train.lambdas.L"] == 0.123456789
    assert points(grid_of(tmp_path, TPE, "train.lambdas.L=0.01"))[0]["train.lambdas.L"] >= 0.05


def test_all_points_lie_in_the_space_and_the_answers_decide_what_comes_next(tmp_path):
    grid = grid_of(tmp_path, TPE, "search.trials=30")
    found = points(grid)
    assert all(0 <= p["train.lambdas.A"] <= 1 and 0.05 <= p["train.lambdas.L"] <= 1 for p in found)
    other = points(grid, lambda cell: 1 - bowl(cell) / 4)
    assert found[:4] == other[:4]  # drawn at random
    assert found[4:] != other[4:]
    (search,) = explored(grid)
    assert bowl_at(search.best) == min(map(bowl_at, search.points))
    assert bowl_at(search.best) < min(map(bowl_at, search.points[:4]))


def bowl_at(point: SearchPoint) -> float:
    assert point.wer is not None
    return point.wer


def test_a_killed_search_continues_where_it_was_and_repeats_nothing(tmp_path):
    grid = grid_of(tmp_path, TPE, "search.parallel=2")
    undisturbed = points(grid)
    store: dict[str, float] = {}
    with pytest.raises(Killed):
        explored(grid, store=store, most=5)
    assert len(store) == 5
    (search,) = explored(grid, store=store, most=7)  # an eighth training would be a repetition
    assert [point.values for point in search.points] == undisturbed
    assert len(store) == 12


def test_a_batch_holds_different_points(tmp_path):
    (search,) = explored(grid_of(tmp_path, TPE, "search.parallel=5", "search.trials=13"))
    assert len({tuple(point.values.values()) for point in search.points}) == 13


def test_failed_points_stop_nothing_and_are_never_the_best(tmp_path):
    def fragile(cell):
        return None if cell.train.lambdas.A > 0.5 else bowl(cell)

    (search,) = explored(grid_of(tmp_path, TPE, "search.trials=20"), fragile)
    failed = [point for point in search.points if point.wer is None]
    assert 0 < len(failed) < 20 == len(search.points)
    assert search.best.values["train.lambdas.A"] <= 0.5
    told = search.sampler._study.get_trials(deepcopy=False)
    assert [trial.state.name == "FAIL" for trial in told] == [point.wer is None for point in search.points]
    (nothing,) = explored(grid_of(tmp_path, TPE), lambda cell: None)
    assert nothing.best is None
    assert len(nothing.points) == 12


def test_a_grid_has_all_combinations_and_whole_numbers_stay_whole(tmp_path):
    text = """
search:
  sampler: grid
  parallel: 4
  space:
    train.lambdas.A: {low: 0.1, high: 10, log: true, points: 3}
    train.warmup_steps: {low: 1, high: 3, points: 3}
    model.start: {choices: [structured, random]}
"""
    grid = grid_of(tmp_path, text)
    assert grid.search.point_count(grid.cells[0]) == 18
    found = [tuple(p.values()) for p in points(grid)]
    assert found == [(a, w, s) for a in (0.1, 1.0, 10.0) for w in (1, 2, 3) for s in ("structured", "random")]
    assert all(type(warmup) is int for _, warmup, _ in found)


def test_a_range_of_a_whole_number_is_searched_in_whole_numbers(tmp_path):
    found = points(grid_of(tmp_path, "search: {space: {train.warmup_steps: [1, 50]}, trials: 9, snr_db: clean}"))
    assert all(type(point["train.warmup_steps"]) is int for point in found)
    assert len({point["train.warmup_steps"] for point in found}) > 3


def test_weights_of_modalities_that_a_cell_does_not_read_are_not_searched(tmp_path):
    grid = grid_of(tmp_path, TPE + "axes: {template: [A -> T, L -> T, A+L -> T], seed: [0, 1]}")
    spaces = [tuple(grid.search.space_of(cell)) for cell in grid.cells]
    assert spaces[::2] == spaces[1::2]
    assert spaces[::2] == [("train.lambdas.A",), ("train.lambdas.L",), ("train.lambdas.A", "train.lambdas.L")]
    assert len(explored(grid)) == 6
    lips_only = grid_of(tmp_path, "search: {space: {train.lambdas.L: [0, 1]}}\naxes: {template: [A -> T, A+L -> T]}")
    assert [search.cell.template for search in explored(lips_only)] == ["A+L -> T"]


def test_cells_are_searched_side_by_side_but_each_for_itself(tmp_path):
    alone = points(grid_of(tmp_path, TPE))
    first, second = explored(grid_of(tmp_path, TPE + "axes: {seed: [0, 1]}"), lambda c: bowl(c) + c.seed)
    assert [point.values for point in first.points] == alone
    assert [point.values for point in second.points] == alone  # the same bowl, only higher


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        ("{}", "search.space is missing"),
        ("{space: {}}", "search.space"),
        ("{spaces: {train.lr: [0.1, 1]}}", "did you mean 'space'"),
        ("{space: {train.lr: [0.1, 1]}, sampler: random}", "search.sampler"),
        ("{space: {train.lr: [0.1, 1]}, trials: 0}", "search.trials"),
        ("{space: {train.lr: [1, 0.1]}}", "low is below its high"),
        ("{space: {train.lr: [0.1, 0.5, 1]}}", "{choices: [...]}"),
        ("{space: {train.lr: {low: 0, high: 1, log: true}}}", "low must be above 0"),
        ("{space: {train.lr: {low: 0.1, high: 1, choices: [1]}}}", "not both"),
        ("{space: {train.lr: {low: 0.1, high: 1, points: 3}}}", "for sampler grid"),
        ("{space: {train.lr: [0.1, 1]}, sampler: grid}", "needs `choices` or `points` for train.lr"),
        ("{space: {train.lr: {choices: [1]}}, sampler: grid, trials: 3}", "trials is for sampler tpe"),
        ("{space: {split: {choices: [val, test]}}}", "sets split itself"),
        ("{space: {train.lrr: [0.1, 1]}}", "line 14: search.space: there is no key 'train.lrr'; did you mean 'lr'"),
        ("{space: {train.lambdas.T: [0, 1]}}", "train.lambdas.T"),
        ("{space: {train.warmup_steps: [0.5, 1]}}", "train.warmup_steps"),
        ("{space: {backbone: {choices: [opt-nano, opt-nani]}}}", "no backbone 'opt-nani'"),
        ("{space: {train.lr: [0.1, 1]}}\ninclude:\n  - search: {}", "there is no key 'include.0.search'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, search, complaint):
    with pytest.raises(UserError) as error:
        grid_of(tmp_path, f"search: {search}")
    assert complaint in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_search_belongs_to_one_of_several_grids(tmp_path):
    with pytest.raises(UserError, match="search belong inside one of mine:a"):
        grid_of(tmp_path, TPE + "grids: {a: {}}")
    inside = "grids:\n  a:\n    search: {space: {train.lr: [0.1, 1]}}\n  b: {}"
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.format(more=inside))
    assert read_grid_file(f"{path}:a").search.space["train.lr"].high == 1
    assert read_grid_file(f"{path}:b").search is None


def test_overrides_reach_the_search(tmp_path):
    changes = ["search.trials=3", "search.snr_db=[clean, -5]", "search.space.train.lambdas.A={choices: [0.1, 0.2]}"]
    search = grid_of(tmp_path, TPE, *changes).search
    assert (search.trials, search.snr_db) == (3, (math.inf, -5.0))
    assert search.space["train.lambdas.A"].choices == (0.1, 0.2)
    assert search.space["train.lambdas.L"].log
    with pytest.raises(UserError, match="did you mean 'trials'"):
        grid_of(tmp_path, TPE, "search.trial=3")


def test_without_optuna_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    grid = grid_of(tmp_path, TPE)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[search\]"'):
        Sampler(grid.search, grid.cells[0])


def test_a_dry_run_says_how_many_models_a_search_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    grid_of(tmp_path, TPE + "axes: {template: [A -> T, A+L -> T]}")
    grid.run(grid=str(tmp_path / "mine.yaml"), dry_run=True)
    assert "search: before that, 12 + 12 models of other train.lambdas.A, train.lambdas.L" in capsys.readouterr().out
    assert not (tmp_path / "corpora").exists()


def test_the_shipped_searches_begin_where_the_fixed_grids_are():
    small, axes = (read_grid_file(f"loss_weights:{name}") for name in ("small", "small_axes"))
    (cell,) = small.cells
    assert small.search.point_count(cell) == 16
    assert len(axes.cells) == 9
    assert cell in axes.cells
    audio, lips = read_grid_file("loss_weights:paper").cells
    others = {other.template: other for other in read_grid_file("modalities:paper").cells if not other.permute}
    for found in (audio, lips):
        assert found.train == others[found.template].train
        assert Sampler(read_grid_file("loss_weights:paper").search, found).ask()[0]["train.lambdas.A"] == 0.3


def test_the_dev_wer_pools_counts_and_waits_for_all_levels(tmp_path):
    cell = grid_of(tmp_path, TPE, "split=val").cells[0]
    evaluations = (Evaluation(CLEAN), Evaluation(Condition(0.0, bank_digest="b")))
    trial = Trial(cell, {}, tmp_path / "trial", evaluations)
    trial.folder.mkdir()
    (trial.folder / "result.json").write_text('{"parameters": 1, "steps": 1, "train_s": 1.0}')
    for evaluation, words in zip(evaluations, (10, 30), strict=True):
        assert val_wer(trial) is None
        counts = {"substitutions": 3, "deletions": 1, "insertions": 1, "reference_words": words, "utterances": 8}
        counts |= {"wer": 5 / words, "decode_s": 1.0}
        trial.folder_of(evaluation).path.mkdir(parents=True)
        (trial.folder_of(evaluation).path / "result.json").write_text(json.dumps(counts))
    assert val_wer(trial) == 10 / 40


# The real thing, at the smallest size: the command in a process of its own.

REAL = """
search:
  space:
    train.lambdas.A: [0.0, 1.0]
    train.lr: {choices: [2.0e-3, 1.0e+30]}   # the second one is bound to diverge
  trials: 4
  startup: 4
  parallel: 2
  snr_db: clean
"""


@pytest.fixture
def own(finished, home, tmp_path) -> Path:
    """A home with the corpus and the noise of the smoke grid, which may be spoilt."""
    for part in ("corpora", "noise"):
        shutil.copytree(home / part, tmp_path / "own" / part)
    return tmp_path / "own"


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return file.metadata()


@pytest.mark.slow
def test_a_search_is_killed_and_continued_and_sees_the_test_split_only_when_it_is_over(own, tmp_path, monkeypatch):
    home = own
    monkeypatch.setenv("DMLM_HOME", str(home))
    (tmp_path / "mine.yaml").write_text(FILE.format(more=REAL))
    command = [sys.executable, "sweeps/run_grid.py", "--grid", str(tmp_path / "mine.yaml")]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)

    corpus = corpus_folder(CorpusChoice(recipe="three_equations", preset="smoke"))[0]
    spoilt = {path: path.read_bytes() for kind in ("audio", "lips") for path in (corpus / kind).glob("test-*")}
    assert len(spoilt) == 32
    for path in spoilt:
        path.write_bytes(b"whoever reads this fails")

    victim = subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    trials, found = home / "runs" / "trials", home / "runs" / "mine" / "search.csv"
    deadline = time.monotonic() + 120
    while not list(trials.glob("*/evals/val_*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    before = {path: path.stat().st_mtime_ns for path in trials.glob("*/result.json")}
    assert before

    over = run()
    assert over.returncode == 2, over.stdout + over.stderr[-2000:]
    assert "test-000" in over.stderr  # the search is over, and the test split is opened
    rows = list(csv.DictReader(found.open()))
    assert [row["number"] for row in rows] == ["0", "1", "2", "3"]
    assert (rows[0]["train.lambdas.A"], rows[0]["train.lr"]) == ("0.3", "0.002")
    for row in rows:
        diverged = row["train.lr"] == "1e+30"
        assert row["status"].startswith("failed: ") == diverged == (not row["dev_wer"])
        assert len(list((found.parent / row["trial"]).glob("evals/val_clean-*/result.json"))) == 1 - diverged
    assert {row["status"].partition(":")[0] for row in rows} == {"best", "done", "failed"}
    assert not [path for path in trials.glob("*/evals/*") if not path.name.startswith("val_")]
    counts = read_corpus(corpus).counts
    for folder in (home / "tokens").glob("*_*-*"):
        encoded = [len(json.loads(metadata(path)["keys"])) for path in folder.glob("clean/*.safetensors")]
        assert sum(encoded) == counts["train"] + counts["val"]
    assert {path: path.stat().st_mtime_ns for path in before} == before

    for path, content in spoilt.items():
        path.write_bytes(content)
    table = found.read_bytes()
    trained = {path: path.stat().st_mtime_ns for path in trials.glob("*/result.json")}
    failures = {path: path.read_bytes() for path in trials.glob("*/failures.jsonl")}
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in trials.glob("*/result.json")} == trained
    assert {path: path.read_bytes() for path in trials.glob("*/failures.jsonl")} == failures
    assert found.read_bytes() == table
    default, searched = json.loads((found.parent / "grid.json").read_text())["cells"]
    assert (default["variant"], searched["variant"]) == (
        "default train.lambdas.A, train.lr",
        "train.lambdas.A, train.lr searched",
    )
    (best,) = (row for row in rows if row["status"] == "best")
    assert (default["trial"], searched["trial"]) == (rows[0]["trial"], best["trial"])
    for cell in (default, searched):
        assert [(e["snr_db"], e["permuted"]) for e in cell["evaluations"]] == [("clean", None), ("clean", "L")]
        for evaluation in cell["evaluations"]:
            assert (found.parent / evaluation["folder"] / "result.json").is_file()
            assert "val" not in Path(evaluation["folder"]).name
    assert "A+L (train.lambdas.A, train.lr searched)" in done.stdout
