"""`benchmarks/on_a_gpu.py`: every step runs at toy size, on a machine with few packages too; cells come back into a grid."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.errors import UserError
from dmlm.plan.cell import SnrChoice
from dmlm.plan.grid import read_grid_file
from dmlm.sweep.api import prepare, train

ROOT = Path(__file__).resolve().parent.parent
NOT_THERE = (
    "pydantic threadpoolctl jiwer rapidfuzz soundfile av cv2 kaldi_native_fbank espeakng_loader rapidocr tensorboardX"
)
LEFT_OUT = {"scan mamba-ssm", "scan tiles", "memory that runs out", "peak memory", "compile", "tokenizer recipes"}


def on_a_gpu(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "on_a_gpu.py"), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def shards(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu" / "shards.py"), *arguments]
    done = subprocess.run(command, env=os.environ | {"DMLM_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> Path:
    """Every step, where packages that a GPU machine may lack cannot be imported."""
    folder = tmp_path_factory.mktemp("few packages é")
    blocked = f"""
import builtins
import_module = builtins.__import__

def guarded(name, globals=None, *more, **options):
    by = (globals or {{}}).get("__file__") or ""
    if name.partition(".")[0] in {NOT_THERE.split()!r} and by.startswith({str(ROOT)!r}) and "site-packages" not in by:
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return import_module(name, globals, *more, **options)

builtins.__import__ = guarded
"""
    (folder / "sitecustomize.py").write_text(blocked)
    done = on_a_gpu("--rehearse", "--to", str(folder / "results"), PYTHONPATH=str(folder), OMP_NUM_THREADS="1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder / "results"


def test_every_step_of_a_rehearsal_passes_without_most_packages(rehearsal):
    steps = {}
    for part in ("right", "fast", "useful"):
        (found,) = json.loads((rehearsal / f"{part}.json").read_text()).values()
        steps |= found
    listed = [line.split(" s  ")[1] for line in on_a_gpu("--list", "--rehearse").stdout.splitlines()]
    assert set(listed) - set(steps) <= {"cells"}
    assert {name for name, step in steps.items() if step["state"] != "passed"} <= LEFT_OUT | {"scan triton"}
    assert all(row.get("ok", True) for step in steps.values() for row in step["rows"])
    assert all(step["rows"] for step in steps.values() if step["state"] == "passed")
    assert steps["model opt"]["machine"]["torch"]


def test_steps_that_passed_are_not_repeated(rehearsal):
    before = (rehearsal / "right.json").read_text()
    done = on_a_gpu("--rehearse", "--only", "model", "--to", str(rehearsal))
    assert "2 passed" in done.stdout
    assert (rehearsal / "right.json").read_text() == before


def test_a_step_that_fails_dies_or_takes_too_long_is_recorded_and_passed_over(tmp_path):
    program = """
import multiprocessing, os, time, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import on_a_gpu
from gpu.steps import LeftOut, Step, check

def wrong(toy):
    yield check("one", 2.0, 1.0)
def raises(toy):
    yield check("one", 0.0, 1.0)
    raise ValueError("broken")
def dies(toy):
    yield check("one", 0.0, 1.0)
    os.abort()
def hangs(toy):
    yield check("one", float("nan"), 1.0)
    time.sleep(1000)
def lacks(toy):
    raise LeftOut("no such thing")
    yield
on_a_gpu.GRACE_S = 1
for run in (wrong, raises, dies, hangs, lacks):
    entry = on_a_gpu.run_step(Step(run.__name__, "right", 2, run), True, 2, Path(sys.argv[2]), multiprocessing.get_context("fork"))
    print(run.__name__, entry["state"], len(entry["rows"]), entry.get("error", " ").splitlines()[-1][:40])
"""
    command = [sys.executable, "-c", program, str(ROOT / "benchmarks"), str(tmp_path / "log")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].split()[:3] == ["wrong", "failed", "1"]
    assert lines[1] == "raises failed 1 ValueError: broken"
    assert lines[2].startswith("dies failed 1 its process died")
    assert lines[3].startswith("hangs stopped 1 its time of 2 s was over")
    assert lines[4] == "lacks left out 0 no such thing"


def test_results_at_toy_size_need_a_folder_of_their_own():
    done = on_a_gpu("--rehearse")
    assert done.returncode == 2
    assert "--rehearse needs --to FOLDER" in done.stderr


def test_without_a_gpu_it_says_so():
    done = on_a_gpu(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "there is no CUDA device here; --rehearse" in done.stderr


def test_cells_trained_from_shards_are_the_cells_of_the_grid(finished, home, tmp_path):
    """The same grid, run as usual and by way of shards: equal losses, transcripts and identities."""
    made = shards("make", "smoke", "name=carried", "--to", str(tmp_path / "shards"), home=home)
    assert "5 cells" in made.stdout
    folder, elsewhere = tmp_path / "out", tmp_path / "home"
    options = ["--shards", str(tmp_path / "shards"), "--to", str(folder)]
    done = on_a_gpu("--rehearse", "--only", "cell", *options, OMP_NUM_THREADS="1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    collected = shards("collect", str(tmp_path / "shards"), str(folder), home=elsewhere)
    assert collected.stdout.count("finished") == 5
    trials = sorted(path.name for path in (elsewhere / "runs" / "trials").iterdir())
    for name in trials:
        mine, other = elsewhere / "runs" / "trials" / name, home / "runs" / "trials" / name
        assert (mine / "spec.json").read_bytes() == (other / "spec.json").read_bytes()
        evaluations = sorted(path.name for path in (other / "evals").iterdir())
        assert evaluations == sorted(path.name for path in (mine / "evals").iterdir())
        assert json.loads((mine / "result.json").read_text())["model_elsewhere"]
        for evaluation in evaluations:
            a, b = (f / "evals" / evaluation / "utterances.jsonl" for f in (mine, other))
            assert a.read_text() == b.read_text()


def test_the_pages_are_those_that_the_report_writes(rehearsal, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import report

    assert (ROOT / "docs" / "performance.md").read_text() == report.performance_page()
    assert (ROOT / "docs" / "gpu.md").read_text() == report.gpu_page()
    shutil.copytree(rehearsal, tmp_path / "results" / "gpu")
    shutil.copy(ROOT / "docs" / "gpu-notes.md", tmp_path)
    monkeypatch.setattr(report, "DOCS", tmp_path)
    page = report.gpu_page()
    assert "Not run on a GPU yet" not in page
    assert "| opt-nano loss, fp32, against transformers |" in page
    assert "*peak memory*: left out" in page


def test_a_collected_cell_is_not_trained_again_for_a_new_test(finished, home, tmp_path, monkeypatch):
    """Its model is on another machine; a new one would be mixed with the old results."""
    monkeypatch.setenv("DMLM_HOME", str(shutil.copytree(home, tmp_path / "home")))
    cell = read_grid_file("smoke").cells[0]
    trial, _ = prepare(cell)
    trial.stored.write_result(replace(trial.stored.result, model_elsewhere=True))
    shutil.rmtree(trial.stored.model)
    more, _ = prepare(cell.model_copy(update={"snr_db": SnrChoice(train=cell.snr_db.train, test=(0, 5))}))
    with pytest.raises(UserError, match="trained on another machine, and its model is not here"):
        train(more)


def test_mistakes_with_shards_are_sentences(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu.useful import Shards, own_shards

    own_shards(tmp_path / "shards")
    assert Shards(tmp_path / "shards").cells
    arrays = tmp_path / "shards" / "shards.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    for folder, sentence in (("nothere", "has no shards.json"), ("shards", "are damaged; copy them again")):
        done = on_a_gpu("--list", "--shards", str(tmp_path / folder))
        assert done.returncode == 2
        assert sentence in done.stderr
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu" / "shards.py"),
        "collect",
        str(tmp_path / "no"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "has no shards.json" in done.stderr) == (2, True)


def test_transcripts_of_a_model_that_is_gone_are_written_again(tmp_path, monkeypatch):
    """The results came from another machine or an earlier session; a model trained anew must not be mixed with them."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu.useful import own_shards, run_cell

    own_shards(tmp_path / "shards")
    list(run_cell(True, tmp_path / "shards", "opt-nano-rehearsal", tmp_path))
    target = tmp_path / "cell-opt-nano-rehearsal.json"
    found = json.loads(target.read_text())
    right = found["evaluations"].pop("clean")
    found["evaluations"]["permuted"]["hypotheses"] = ["of another model"] * 12
    target.write_text(json.dumps(found))
    shutil.rmtree(tmp_path / "home" / "gpu")
    list(run_cell(True, tmp_path / "shards", "opt-nano-rehearsal", tmp_path))
    again = json.loads(target.read_text())["evaluations"]
    assert again["clean"]["hypotheses"] == right["hypotheses"]
    assert "of another model" not in again["permuted"]["hypotheses"]
