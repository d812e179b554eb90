"""The user's commands, run as the user runs them, on real speech, video, pages and OCR at the smallest size."""

import json
import operator
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grids import ONE, ROOT, run_grid, run_here
from threadpoolctl import threadpool_info

from dmlm import processes
from dmlm.errors import UserError


def trials_of_smoke(home) -> list[Path]:
    """Folders of the smoke grid's models; other tests leave theirs beside them."""
    folder = home / "runs" / "smoke"
    return [folder / cell["trial"] for cell in json.loads((folder / "grid.json").read_text())["cells"]]


def test_a_grid_runs_from_nothing_to_figures(finished, home):
    assert "WER %" in finished.stdout
    assert "relative benefit" in finished.stdout.lower()
    for name in (
        "figures/wer_by_snr.png",
        "figures/relative_benefit.png",
        "figures/perceptual_score.png",
        "report.html",
    ):
        assert (home / "runs" / "smoke" / name).stat().st_size > 1000, name
        assert name in finished.stdout
    trials = trials_of_smoke(home)
    assert len(trials) == 5
    for trial in trials:
        assert {p.name for p in trial.iterdir()} >= {"spec.json", "train.jsonl", "result.json", "model", "evals"}


def test_every_measured_snr_is_the_one_asked_for(finished, home):
    levels = {"clean": None, "snr0": 0.0, "snr-20": -20.0}
    seen = 0
    for path in (path for trial in trials_of_smoke(home) for path in trial.glob("evals/*/utterances.jsonl")):
        asked = levels[path.parent.name.rsplit("-", 1)[0].split("_")[0]]
        for line in map(json.loads, path.read_text().splitlines()):
            seen += 1
            measured = line["snr_db_measured"]
            assert measured is None if asked is None else abs(measured - asked) <= 0.1
    assert seen == 16 * (2 * 3 + 3 * 5)  # two models without an added modality, three with two permutations


def test_a_second_run_changes_nothing_and_works_from_any_folder(finished, home, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (home / "runs" / "trials").rglob("*") if path.name != ".lock"}
    again = run_grid(home, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.stdout.split("WER %")[1].split("Figures")[0] == finished.stdout.split("WER %")[1].split("Figures")[0]


def test_a_dry_run_says_what_is_done(finished, home):
    shown = run_here(home, "--dry-run", "axes.seed=[0, 1]", "template=A -> T").stdout
    assert shown.count("trained;") == 2
    assert shown.count("to train:") == 2
    assert "4 cells; 2 trainings and 6 evaluations to do" in shown
    assert "tokens to encode: 0 clips" in shown
    more = run_here(home, "--dry-run", "template=A -> T", "snr_db.test=[clean, 0, -20, -15]").stdout
    assert "2 cells; 0 trainings and 2 evaluations to do" in more
    assert "tokens to encode: 16 clips" in more


def test_a_dry_run_counts_each_training_and_each_test_once(finished, home, tmp_path):
    """Cells of one model, whose tests differ, on materials that exist and on ones that do not."""
    one = ["--dry-run", "template=A -> T"]
    assert "4 cells; 0 trainings and 6 evaluations to do" in run_here(home, *one, "axes.decode.beams=[1, 2]").stdout
    for changes, count in (
        (["axes.execution.micro_tokens=[null, 100]"], "2 trainings and 6"),
        (["axes.snr_db.test=[[clean, -20], [clean, 0, -20]]"], "2 trainings and 6"),
        (["axes.decode.beams=[1, 2]"], "2 trainings and 12"),
    ):
        assert f"4 cells; {count} evaluations to do" in run_here(tmp_path, *one, *changes).stdout


def test_a_probe_measures_and_a_device_is_an_estimate(finished, home):
    """New kinds of cells, on the corpus and the tokens of the finished grid."""
    changes = ["train.batch_size=3"]
    before = len(list((home / "runs" / "trials").iterdir()))
    unknown = run_here(home, "--dry-run", *changes).stdout
    assert "5 cells; 5 trainings and 21 evaluations to do" in unknown
    assert "time left: not known yet" in unknown
    assert re.search(r"OPT A +157 k +\S+ k +\S+ G", unknown), (
        "parameters, tokens and operations are known without a probe"
    )
    probed = run_here(home, "--dry-run", "--probe", *changes).stdout
    assert probed.count("ms a step") == 5
    assert "of one worker (measured: ten steps" in probed
    estimated = run_here(home, "--dry-run", "--on", "a100", *changes).stdout
    assert "ESTIMATES for one a100" in estimated
    assert len(list((home / "runs" / "trials").iterdir())) == before, "a preview trains nothing that stays"
    wrong = run_here(home, "--dry-run", "--on", "a10", *changes)
    assert (wrong.returncode, "did you mean 'a100'?" in wrong.stderr) == (2, True)


def test_figures_come_from_stored_results_alone(finished, home, tmp_path):
    command = [sys.executable, str(ROOT / "analysis" / "make_figures.py"), str(home / "runs" / "smoke")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "wer_by_snr.png" in result.stdout


def test_killed_in_the_middle_the_same_command_ends_with_the_same_table(finished, home):
    steps = "train.steps=150"
    undisturbed = run_here(home, *ONE, steps, "name=whole")
    assert undisturbed.returncode == 0, undisturbed.stderr[-2000:]
    index = json.loads((home / "runs" / "whole" / "grid.json").read_text())
    trial = (home / "runs" / "whole" / index["cells"][0]["trial"]).resolve()
    trial.rename(trial.with_name("kept"))
    expected = [p.read_text() for p in sorted((trial.with_name("kept") / "evals").glob("*/utterances.jsonl"))]

    command = [
        sys.executable,
        "sweeps/run_grid.py",
        "--grid",
        "smoke",
        *ONE,
        steps,
        "name=whole",
        "--checkpoint-every",
        "0.2",
    ]
    victim = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "DMLM_HOME": str(home)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(trial.glob("checkpoints/*.sha256")) and time.monotonic() < deadline:
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (trial / "result.json").exists()
    again = run_grid(home, *ONE, steps, "name=whole")
    assert again.returncode == 0, again.stderr[-2000:]
    assert [p.read_text() for p in sorted((trial / "evals").glob("*/utterances.jsonl"))] == expected
    assert len(expected) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train.stepz=3"], "did you mean 'steps'"),
        (["tokenizers.A=audio_mfc"], "did you mean 'audio_mfcc'"),
        (["tokenizers.A=lips_dct"], "is for modality L"),
        (["tokenizers.A={recipe: audio_mfcc, settings: {cluster: 5}}"], "did you mean 'clusters'"),
        (["template=A+Q -> T"], "'Q'"),
        (["corpus.preset=tinny"], "did you mean 'tiny'"),
        (["corpus.recipe=three_equation"], "did you mean 'three_equations'"),
        (["noise.set=/no/such/folder"], "/no/such/folder"),
        (["model.context=40", *ONE], "model.context is 40"),
        (["--grid", "no_such_grid"], "no_such_grid"),
    ],
)
def test_a_mistake_is_one_sentence(finished, home, arguments, complaint):
    result = run_here(home, *arguments)
    assert result.returncode == 2, result.stderr[-2000:]
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(  # one that the settings show, and one that shows only when there are tokens
    ("arguments", "complaint"),
    [
        (["train.stepz=3"], "did you mean 'steps'"),
        (["model.context=40", *ONE], "model.context is 40"),
    ],
)
def test_a_mistake_ends_the_command_with_a_last_line_and_exit_code_2(finished, home, arguments, complaint):
    result = run_grid(home, *arguments)
    assert result.returncode == 2, result.stderr[-2000:]
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert complaint in last
    assert "Traceback" not in result.stderr


def test_a_wrong_number_of_workers_is_one_sentence(monkeypatch):
    for wrong in ("0", "many", "-2"):
        monkeypatch.setenv("DMLM_WORKERS", wrong)
        with pytest.raises(UserError, match="DMLM_WORKERS"):
            processes.count()
    monkeypatch.setenv("DMLM_WORKERS", "3")
    assert processes.count() == 3


def test_a_worker_has_one_thread_for_linear_algebra():
    (pools,) = processes.run(operator.call, [threadpool_info])
    assert pools, "no BLAS found in the worker: the test sees nothing"
    assert {pool["num_threads"] for pool in pools} == {1}


def test_a_missing_media_file_is_named(finished, home):
    victim = next((home / "corpora").glob("*/lips/test-00003.mp4"))
    aside = victim.rename(victim.with_suffix(".aside"))
    try:
        result = run_here(home)
    finally:
        aside.rename(victim)
    assert result.returncode == 2
    assert "test-00003.mp4" in result.stderr
    assert "line " in result.stderr


@pytest.mark.slow  # test_train.py has the same without the grid
def test_two_processes_share_a_training(finished, home):
    changes = (*ONE, "train.steps=6", "execution.data_parallel=2", "snr_db.test=[clean]", "seed=9", "name=shared")
    result = run_grid(home, *changes)
    assert result.returncode == 0, result.stderr[-2000:]
    index = home / "runs" / "shared" / "grid.json"
    trial = index.parent / json.loads(index.read_text())["cells"][0]["trial"]
    assert json.loads((trial / "result.json").read_text())["steps"] == 6
    assert len(list((trial / "evals").glob("clean-*/result.json"))) == 1
