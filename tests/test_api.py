"""The Python API does what the command line does: from a script or a notebook, without a terminal."""

import pytest
from small_corpus import small_cell, write_tones

from dmlm.errors import UserError
from dmlm.plan.cell import PerceptualChoice
from dmlm.plan.grid import Grid
from dmlm.results.folders import trial_folder
from dmlm.sweep import api


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Two cells that differ in their seed."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home é"))
    write_tones(tmp_path / "tones")
    cells = tuple(small_cell(tmp_path / "tones", seed=seed) for seed in (0, 1))
    return Grid("mine", "A -> T", "a question", cells, ("", ""))


def test_a_grid_is_run_read_and_run_again(grid):
    lines: list[str] = []
    run = api.run_grid(grid, workers=1, say=lines.append)
    assert not run.missing
    assert [cell.seed for cell in run.results.cells] == [0, 1]
    assert all(evaluation.done for cell in run.results.cells for evaluation in cell.evaluations)
    assert run.results.about == "a question"
    assert run.results.corpora[0].licence == "CC0-1.0"
    assert api.load_results("mine").cells[0].trial.path == run.trials[0].folder
    assert sum("to do" in line for line in lines) == 2
    again: list[str] = []
    assert not api.run_grid(grid, workers=1, say=again.append).missing
    assert sum("done" in line for line in again) == 2


def test_one_cell_is_prepared_trained_and_evaluated_here(grid):
    trial, materials = api.prepare(grid.cells[0])
    assert len(materials.corpus.split("train")) == 12
    assert not trial.trained
    api.train(trial)
    assert trial.trained
    assert trial.pending
    api.evaluate(trial)
    assert not trial.pending


def test_finished_trials_of_an_earlier_version_are_named_once(grid, tmp_path):
    trial, _ = api.prepare(grid.cells[0])
    older = trial_folder(api.paths.runs(), "opt-nano_A_seed0-0123456789ab")
    older.write_spec({**trial.spec, "schema": 3})
    (older.path / "result.json").write_text('{"parameters": 1, "steps": 1, "train_s": 1.0}')
    (older.path.parent / ".DS_Store").write_text("")
    (older.path.parent / "odd").mkdir()
    (older.path.parent / "odd" / "result.json").write_text('{"parameters": 1, "steps": 1, "train_s": 1.0}')
    lines: list[str] = []
    run = api.run_grid(grid, workers=1, say=lines.append)
    assert not run.missing, "also where DMLM_HOME was another one when this process started its first worker"
    (line,) = (line for line in lines if line.startswith("earlier"))
    assert "2 finished trials of an earlier version are not reused" in line


def test_mistakes_are_user_errors(grid):
    with pytest.raises(UserError, match="did you mean 'local'"):
        api.run_grid(grid, engine="locl")
    with pytest.raises(UserError, match="There is no grid 'nothing'"):
        api.load_results("nothing")


def test_a_trial_knows_what_it_is_measured_against(grid):
    trial, _ = api.prepare(
        grid.cells[0].model_copy(update={"perceptual": PerceptualChoice(snr_db=("clean",))}), "L -> T"
    )
    assert any(evaluation.permuted == "A" for evaluation in trial.evaluations)
    api.train(trial)
    api.evaluate(trial)
    assert not trial.pending
