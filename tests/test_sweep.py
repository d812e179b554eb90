"""What a sweep does when cells fail: the others run, lost work is repeated, and the reason stays to be read."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from grids import ONE, Direct

from dmlm.engines import lease
from dmlm.engines.base import LostWorker
from dmlm.engines.local import Local
from dmlm.errors import UserError
from dmlm.plan.grid import read_grid_file
from dmlm.results.failures import read_failures, record_failure
from dmlm.sweep import schedule, tasks, train_trial
from dmlm.sweep.materials import prepare
from dmlm.sweep.schedule import TimeUp, missing_cells, run_trials
from dmlm.sweep.trial import trial_of
from dmlm.training.objectives import next_token


@pytest.fixture
def sweep(finished, home, monkeypatch):
    """Run some cells of the smoke grid afresh, here, and hand back what happened."""
    monkeypatch.setenv("DMLM_HOME", str(home))
    monkeypatch.setattr(schedule, "RECHECK_S", 0.0)
    tasks._last_materials.clear()

    class Swept:
        def __init__(self, *changes: str, deadline: float | None = None) -> None:
            grid = read_grid_file("smoke", (*ONE, "train.steps=4", "snr_db.test=[clean]", *changes))
            materials = prepare(grid.cells)
            self.trials = [trial_of(c, m, grid.baseline) for c, m in zip(grid.cells, materials, strict=True)]
            for trial in self.trials:
                shutil.rmtree(trial.folder, ignore_errors=True)
            self.engine, self.said = Direct(), []
            self.go = lambda: run_trials(self.trials, self.engine, self.said.append, 30.0, deadline)

    return Swept


def broken(part, error, times: int = 1000):
    """The function, but it raises the first few times that its job or folder names `part`."""
    left = [times]

    def wrap(function):
        def called(*args, **kwargs):
            if part in repr(args) and left[0]:
                left[0] -= 1
                raise error
            return function(*args, **kwargs)

        called.__name__ = function.__name__
        return called

    return wrap


def test_r19_one_failing_cell_never_stops_the_others(sweep, monkeypatch):
    swept = sweep("axes.seed=[0, 1, 2]")
    monkeypatch.setattr(tasks, "train", broken("_seed1-", ValueError("a bug"))(tasks.train))
    failures = swept.go()
    assert [trial.trained and not trial.pending for trial in swept.trials] == [True, False, True]
    ((name, failure),) = failures.items()
    assert name == swept.trials[1].id
    assert (failure.kind, failure.again) == ("error", False)
    assert any("a bug" in line for line in swept.said)
    (line,) = missing_cells(swept.trials, failures)
    assert line.startswith("OPT A seed 1: a bug (see ")
    assert "ValueError" in read_failures(swept.trials[1].folder)[-1].trace
    monkeypatch.undo()


def test_r19_no_success_of_the_same_model_hides_why_an_evaluation_failed(sweep, monkeypatch):
    monkeypatch.setattr(schedule, "EVALUATIONS_PER_TASK", 1)
    swept = sweep("snr_db.test=[clean, 0]")
    monkeypatch.setattr(tasks, "evaluate", broken("('clean-", ValueError("a bug"))(tasks.evaluate))
    failures = swept.go()
    assert [name for name, _ in swept.engine.done] == ["train", "evaluate", "evaluate"]
    (trial,) = swept.trials
    assert [evaluation.condition.clean for evaluation in trial.pending] == [True]
    (line,) = missing_cells(swept.trials, failures)
    assert line.startswith("OPT A: a bug (see ")
    assert {failure.kind for failure in failures.values()} == {"error"}


def test_r2_a_worker_that_is_killed_while_it_is_idle_is_replaced():
    own_number = ["__import__('os').getpid()"]  # no function of this file: what it imports takes a worker long
    with Local([""]) as engine:
        (idle,) = engine.map(eval, own_number)
        (pool,) = engine._pools[""]
        os.kill(idle, signal.SIGKILL)
        while not pool._broken:
            time.sleep(0.01)
        (other,) = engine.map(eval, own_number)
        assert other != idle


def test_r2_r8_a_lost_worker_is_replaced_but_not_for_ever(sweep, monkeypatch):
    swept = sweep()
    real = tasks.train
    monkeypatch.setattr(tasks, "train", broken("opt-nano", LostWorker("killed"), times=3)(real))
    assert not swept.go()
    assert [name for name, _ in swept.engine.done] == [*["train"] * 4, "evaluate"]
    assert [(f.kind, f.again) for f in read_failures(swept.trials[0].folder)] == [("lost_worker", True)] * 3

    swept = sweep()
    monkeypatch.setattr(tasks, "train", broken("opt-nano", LostWorker("killed"))(real))
    assert [failure.kind for failure in swept.go().values()] == ["lost_worker"]
    assert [f.again for f in read_failures(swept.trials[0].folder)] == [True, True, True, False]


def test_out_of_memory_is_tried_once_in_halves_and_trains_the_same_model(sweep, monkeypatch):
    whole = sweep("train.dropout=0.0")
    assert not whole.go()
    losses = [json.loads(line)["loss"] for line in (whole.trials[0].folder / "train.jsonl").read_text().splitlines()]

    real, most = next_token.modality_loss, []

    def limited(model, ids, *rest):
        most.append(len(ids))
        if len(ids) > 0.7 * most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, ids, *rest)

    monkeypatch.setattr(next_token, "modality_loss", limited)
    swept = sweep("train.dropout=0.0")
    assert not swept.go()
    (trial,) = swept.trials
    (entry,) = read_failures(trial.folder)
    assert (entry.kind, entry.again) == ("out_of_memory", True)
    assert json.loads((trial.folder / "result.json").read_text())["execution"]["micro_tokens"] == most[0] // 2
    again = [json.loads(line)["loss"] for line in (trial.folder / "train.jsonl").read_text().splitlines()]
    assert again == pytest.approx(losses, rel=1e-4)

    monkeypatch.setattr(next_token, "modality_loss", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    swept = sweep("train.dropout=0.0")
    (failure,) = swept.go().values()
    assert failure.kind == "out_of_memory"
    assert "set execution.micro_tokens to less" in failure.message
    assert [name for name, _ in swept.engine.done] == ["train", "train"]


def test_r31_a_loss_that_is_not_a_number_is_marked_and_not_tried_again(sweep, monkeypatch):
    swept = sweep("train.lr=1e30", "train.clip_norm=1e30", "train.steps=12")
    (failure,) = swept.go().values()
    assert failure.kind == "not_finite"
    assert "lower train.lr" in failure.message
    assert len(swept.engine.done) == 1


def test_what_another_process_works_on_is_waited_for(sweep, monkeypatch):
    swept = sweep()
    (trial,) = swept.trials
    held = lease.Leases().hold(trial.folder / "train.lease")
    held.__enter__()
    tries = []

    def busy_then_free(job, real=tasks.train):
        tries.append(job)
        if len(tries) == 3:
            held.__exit__(None, None, None)
        return real(job)

    busy_then_free.__name__ = "train"
    monkeypatch.setattr(tasks, "train", busy_then_free)
    assert not swept.go()
    assert len(tries) == 3
    assert trial.trained
    assert not read_failures(trial.folder)
    assert sum("waiting for it" in line for line in swept.said) == 1


def take_over(trial) -> None:
    theirs = {"token": "theirs", "host": "elsewhere", "machine": "another", "pid": 1, "beat": 0}
    (trial.folder / "train.lease").write_text(json.dumps(theirs))


@pytest.mark.parametrize("instant", ["in the middle", "at the end"])
def test_a_training_whose_lease_was_taken_over_writes_no_more(sweep, monkeypatch, instant):
    swept, real, calls = sweep(), tasks.train, []
    (trial,) = swept.trials
    with monkeypatch.context() as patch:
        patch.setattr(lease, "BEAT_S", 0.0)
        if instant == "in the middle":
            objective = next_token.modality_loss
            patch.setattr(next_token, "modality_loss", lambda *rest: (take_over(trial), objective(*rest))[1])
        else:
            fit = train_trial.train
            patch.setattr(train_trial, "train", lambda *rest, **more: (fit(*rest, **more), take_over(trial))[0])

        def train(job):
            calls.append(job)
            if len(calls) == 2:  # the other one has ended
                left = {path.name for path in trial.folder.iterdir()}
                assert not left & {"model", "result.json", ".model.part", "checkpoints"}
                (trial.folder / "train.lease").unlink()
                patch.undo()
            return real(job)

        patch.setattr(tasks, "train", train)
        assert not swept.go()
    assert len(calls) == 2
    assert trial.trained
    assert not read_failures(trial.folder)
    assert any("taken over by process 1 on elsewhere" in line for line in swept.said)


def test_what_another_process_evaluates_is_left_to_it_and_what_it_has_evaluated_stays(sweep, monkeypatch):
    swept = sweep("snr_db.test=[clean, 0]")
    assert not swept.go()
    (trial,) = swept.trials
    clean, noisy = (trial.folder_of(evaluation).path for evaluation in trial.evaluations)
    job = tasks.task_of(trial, (clean.name, noisy.name), 30.0)
    for folder in (clean, noisy):
        shutil.rmtree(folder)
    with lease.Leases().hold(trial.folder / f"{noisy.name}.lease"), pytest.raises(lease.Busy):
        tasks.evaluate(job)
    assert (clean / "result.json").is_file()
    assert not noisy.exists()

    shutil.rmtree(clean)
    hold, written = tasks._leases.hold, []

    def hold_late(path):  # another one was faster, by the whole evaluation
        if not written:
            written.append(None)
            tasks.evaluate(job)
            written.extend(path.stat().st_mtime_ns for path in trial.folder.glob("evals/*/*"))
        return hold(path)

    monkeypatch.setattr(tasks._leases, "hold", hold_late)
    tasks.evaluate(job)
    assert written[1:] == [path.stat().st_mtime_ns for path in trial.folder.glob("evals/*/*")]
    assert not list(trial.folder.glob("*.lease"))


def test_a_result_is_on_the_disk_after_the_model_it_speaks_of(sweep, monkeypatch):
    swept, events = sweep(), []
    (trial,) = swept.trials
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append(os.fstat(file).st_ino), fsync(file))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (replace(old, new), events.append(str(new)))[0])
    assert not swept.go()
    moved, ended = (events.index(str(trial.folder / name)) for name in ("model", "result.json"))
    parts = {path.stat().st_ino for path in (trial.folder / "model").glob("*.safetensors")}
    assert parts | {(trial.folder / "model").stat().st_ino} <= set(events[:moved])
    assert trial.folder.stat().st_ino in events[moved:ended]
    assert events[ended + 1] == trial.folder.stat().st_ino


def test_a_line_that_a_kill_has_torn_takes_no_other_with_it(tmp_path):
    record_failure(tmp_path, "user_error", "größer", "", again=True)
    whole = (tmp_path / "failures.jsonl").read_bytes()
    for end in range(1, len(whole)):
        (tmp_path / "failures.jsonl").write_bytes(whole + whole[:end])
        assert [failure.message for failure in read_failures(tmp_path)] == ["größer"]
    record_failure(tmp_path, "user_error", "next", "", again=False)
    assert [failure.message for failure in read_failures(tmp_path)] == ["größer", "next"]
    (tmp_path / "failures.jsonl").write_bytes(b"{\n" + whole)
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_failures(tmp_path)


def test_a_result_that_is_seen_late_is_waited_for_and_one_that_never_comes_is_a_failure(sweep, monkeypatch):
    swept, real, calls = sweep(), tasks.train, []

    def late(job):
        calls.append(job)
        if len(calls) == 3:
            real(job)

    late.__name__ = "train"
    monkeypatch.setattr(tasks, "train", late)
    assert not swept.go()
    assert len(calls) == 3

    swept = sweep()
    monkeypatch.setattr(tasks, "train", lambda job: None)
    (failure,) = swept.go().values()
    assert "cannot be seen from here" in failure.message


def test_a_time_limit_starts_nothing_more(sweep):
    swept = sweep(deadline=0.0)
    with pytest.raises(TimeUp):
        swept.go()
    assert not swept.engine.done


def test_r17_cells_that_are_one_model_are_trained_once(sweep):
    swept = sweep("axes.execution.micro_tokens=[null, 5000]")
    assert len(swept.trials) == 2
    assert not swept.go()
    assert [name for name, _ in swept.engine.done] == ["train", "evaluate"]


def test_r17_cells_that_differ_in_their_evaluations_alone_are_trained_once_and_all_evaluated(sweep, monkeypatch):
    swept = sweep("axes.decode.max_new_tokens=[4, 6]")
    first, second = swept.trials
    assert first.id == second.id
    assert not swept.go()
    assert [name for name, _ in swept.engine.done] == ["train", "evaluate", "evaluate"]
    assert not first.pending
    assert not second.pending

    swept = sweep("axes.decode.max_new_tokens=[4, 6]")
    for length, error in ((4, UserError("a mistake")), (6, ValueError("a bug"))):
        monkeypatch.setattr(tasks, "evaluate", broken(f'"max_new_tokens":{length}', error)(tasks.evaluate))
    failures = swept.go()
    assert {failure.kind for failure in failures.values()} == {"user_error", "error"}
    one, other = missing_cells(swept.trials, failures)
    assert one.endswith(": a mistake")
    assert ": a bug (see " in other


def test_r18_an_edited_grid_runs_only_what_is_new(sweep):
    swept = sweep("axes.seed=[0, 1]")
    assert not swept.go()
    grid = read_grid_file("smoke", (*ONE, "train.steps=4", "snr_db.test=[clean, 0]", "axes.seed=[0, 1, 2]"))
    trials = [trial_of(c, m, grid.baseline) for c, m in zip(grid.cells, prepare(grid.cells), strict=True)]
    shutil.rmtree(trials[2].folder, ignore_errors=True)
    engine = Direct()
    assert not run_trials(trials, engine, print, 30.0)
    done = [(name, trial) for name, trial in engine.done]
    assert [trial for name, trial in done if name == "train"] == [trials[2].id]
    assert sorted(trial for name, trial in done if name == "evaluate") == sorted(trial.id for trial in trials)


def test_another_normaliser_trains_nothing_and_makes_no_corpus(sweep):
    (first,), (again,) = (sweep(f"corpus.normaliser={name}").trials for name in ("basic", "none"))
    assert first.folder == again.folder
    assert not {first.name_of(e) for e in first.evaluations} & {again.name_of(e) for e in again.evaluations}
