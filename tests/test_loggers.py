"""Loggers write each value of `train.jsonl` once; and nothing that a logger does changes the training."""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from logged import SPEC, Killed, die_at, fit_with
from test_train import fit, model, weights

from dmlm import processes
from dmlm.errors import UserError
from dmlm.plan.cell import Cell, validated
from dmlm.sweep.trial import training_spec
from dmlm.training import logger_kinds, loggers
from dmlm.training.logger_kinds import Logger
from dmlm.training.loggers import GuardedLogger, Loggers, open_loggers
from dmlm.training.settings import Execution

HANGS_S = 600  # what takes so long, on however busy a machine, would never end
CELL = {
    "corpus": {"recipe": "r", "preset": "p"},
    "tokenizers": {"A": "a"},
    "backbone": "opt-nano",
    "template": "A -> T",
}


def test_a_training_that_goes_on_has_its_whole_log_at_every_instant(tmp_path):
    """What a kill would leave, at the first step after a resume."""
    with pytest.raises(Killed):
        fit_with([], tmp_path, on_step=die_at(14), checkpoint_every_s=0.0)
    logged_steps = []

    def record(step, loss):
        logged_steps.append(
            [line["step"] for line in map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())]
        )

    fit_with([], tmp_path, on_step=record)
    assert logged_steps[0] == [10]
    assert logged_steps[-1] == [10, 20, 24]


# What a logger may do ------------------------------------------------------------------------------------------------


class Broken(Logger):
    """Does something bad in one of its methods."""

    def __init__(self, folder, method, harm):
        super().__init__(folder)
        self.method, self.harm, self.calls = method, harm, []

    def _do(self, method):
        self.calls.append(method)
        if method == self.method:
            self.harm()

    def start(self, spec, resumed_step):
        self._do("start")

    def scalars(self, step, values):
        self._do("scalars")

    def close(self):
        self._do("close")


def fail():
    raise ConnectionError("the server\nis down")


def leave():
    sys.exit(3)


def hang():
    threading.Event().wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights, log and states of all generators after a training without any logger."""
    return outcome(tmp_path_factory.mktemp("undisturbed"), Loggers())


def outcome(folder, some, **more):
    random.seed(7)
    np.random.seed(7)
    net = model()
    with some:
        fit(net, folder, loggers=some, **more)
    lines = [line.split('"elapsed_s"')[0] for line in (folder / "train.jsonl").read_text().splitlines()]
    generators = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    return weights(net).tolist(), lines, generators


@pytest.mark.parametrize("method", ["start", "scalars", "close"])
@pytest.mark.parametrize("harm", [fail, leave])
def test_a_logger_that_raises_changes_nothing_and_is_named_once(method, harm, tmp_path, undisturbed, capsys):
    logger = Broken(tmp_path, method, harm)
    assert outcome(tmp_path, Loggers([GuardedLogger("shaky", logger)])) == undisturbed
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "logger shaky is off for the rest of this trial" in errors[0]
    assert "ConnectionError: the server is down" in errors[0] or "SystemExit: 3" in errors[0]
    assert logger.calls.count(method) == (2 if method == "close" else 1)  # it is closed at once, and not called again
    assert logger.calls[-1] == "close"


@pytest.mark.parametrize("method", ["start", "scalars", "close"])
def test_a_logger_that_hangs_changes_nothing_and_is_not_waited_for(method, tmp_path, undisturbed, capsys, monkeypatch):
    monkeypatch.setattr(loggers, "CLOSE_S", 1.0)
    sound = Broken(tmp_path, "", hang)
    stuck = GuardedLogger("stuck", Broken(tmp_path, method, hang))
    some = Loggers([stuck, GuardedLogger("sound", sound)])
    assert outcome(tmp_path, some) == undisturbed
    assert capsys.readouterr().err == "logger stuck did not close within 1 s; the trial goes on without it.\n"
    assert sound.calls == ["start", "scalars", "scalars", "scalars", "close"]
    waits = []
    monkeypatch.setattr(stuck._thread, "join", waits.append)
    monkeypatch.setattr(loggers, "CLOSE_S", 0.0)
    some.__exit__()
    assert (waits, capsys.readouterr().err) == ([], "")  # given up for good: neither waited for nor named again


def test_a_logger_that_lags_loses_values_and_says_so_once(tmp_path, undisturbed, capsys, monkeypatch):
    monkeypatch.setattr(loggers, "CLOSE_S", 1.0)
    monkeypatch.setattr(loggers, "QUEUE_LIMIT", 1)
    assert outcome(tmp_path, Loggers([GuardedLogger("slow", Broken(tmp_path, "start", hang))])) == undisturbed
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("logger slow cannot keep up at step ")


def test_a_logger_that_hangs_while_it_is_put_away_is_not_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loggers, "CLOSE_S", 0.0)  # whoever is waited for is named at once
    closing = threading.Event()

    class Worse(Broken):
        def close(self):
            closing.set()
            hang()

    some = Loggers([GuardedLogger("worse", Worse(tmp_path, "start", fail))])
    outcome(tmp_path, some, on_step=lambda step, loss: closing.wait(HANGS_S))
    assert closing.is_set()
    (said,) = capsys.readouterr().err.splitlines()
    assert "logger worse is off for the rest of this trial" in said


def test_no_thread_left_to_start(tmp_path, undisturbed, capsys, monkeypatch):
    def refuse():
        raise RuntimeError("can't start new thread")

    one = GuardedLogger("last", Broken(tmp_path, "", hang))
    monkeypatch.setattr(one._thread, "start", refuse)
    assert outcome(tmp_path, Loggers([one])) == undisturbed
    assert "logger last is off for the rest of this trial (RuntimeError: can't start" in capsys.readouterr().err


def test_a_training_that_ends_early_closes_its_loggers(tmp_path):
    logger = Broken(tmp_path, "", hang)
    with pytest.raises(Killed), Loggers([GuardedLogger("sound", logger)]) as some:
        fit(model(), tmp_path, on_step=die_at(15), loggers=some)
    assert logger.calls == ["start", "scalars", "close"]


def test_a_full_disk_switches_tensorboard_off(tmp_path, undisturbed, capsys, monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: full.open("wb"))
    assert outcome(tmp_path, open_loggers(["tensorboard"], tmp_path, SPEC)) == undisturbed
    assert "logger tensorboard is off for the rest of this trial (OSError: [Errno 28]" in capsys.readouterr().err


def test_a_closed_standard_error_is_no_harm(tmp_path, undisturbed, monkeypatch):
    stream = (tmp_path / "stderr").open("w")
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert outcome(tmp_path, Loggers([GuardedLogger("shaky", Broken(tmp_path, "start", fail))])) == undisturbed


@pytest.mark.parametrize("name", logger_kinds.KINDS)
def test_a_real_logger_leaves_the_training_as_it_is(name, tmp_path, undisturbed, offline, capsys):
    pytest.importorskip(logger_kinds.KINDS[name][1])
    assert outcome(tmp_path, open_loggers([name], tmp_path, SPEC)) == undisturbed
    assert "logger" not in capsys.readouterr().err


def in_time(function):
    """What the function returns; an error if it hangs, as it would if it waited for the servers or their threads."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(HANGS_S)
    assert found, "it failed, or it hangs"
    return found[0]


AWAY = {  # nothing listens on port 9
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "TRACKIO_SERVER_URL": "http://127.0.0.1:9/?write_token=x",
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_API_KEY": "0" * 40,
    "WANDB_MODE": "online",
}


def in_a_worker(job):
    """A training with all servers away; the generator of Python's own `random` is left out: nothing of ours uses it."""
    folder, names = job
    os.environ.update(AWAY, DMLM_HOME=str(folder))
    os.environ.pop("WANDB_SERVICE", None)  # that of the tests, which would wait for this run at its end
    after, lines, (torch_state, _, numpy_state) = outcome(folder, open_loggers(names, folder, SPEC))
    return bool(names), (after, lines, torch_state, numpy_state)


def test_servers_that_are_away_are_no_harm(tmp_path):
    names = [name for name in ("wandb", "mlflow", "trackio") if installed(name)]
    if not names:
        pytest.skip("needs wandb, mlflow or trackio")
    ended = dict(
        in_time(lambda: list(processes.run(in_a_worker, [(tmp_path / "without", []), (tmp_path / "with", names)], 1)))
    )
    assert ended[True] == ended[False]


# Names and packages --------------------------------------------------------------------------------------------------


def test_an_unknown_logger_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"execution\.loggers\.0: Input should be 'tensorboard', 'wandb', 'mlflow' or"):
        validated(Cell, {**CELL, "execution": {"loggers": ["tensorbord"]}}, "grid")


def test_tensorboard_is_the_default_and_loggers_never_enter_the_identity():
    cells = [Cell(**CELL, execution=Execution(**more)) for more in ({}, {"loggers": []}, {"loggers": ["wandb"]})]
    assert cells[0].execution.loggers == ("tensorboard",)
    specs = [training_spec(cell, "corpus", "text", {"A": "print"}, []) for cell in cells]
    assert specs[0] == specs[1] == specs[2]


def installed(name):
    try:
        loggers.check_installed([name])
    except UserError:
        return False
    return True


def test_a_missing_package_is_said_with_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(logger_kinds.KINDS, "wandb", (logger_kinds.WandB, "a_package_that_is_not_there"))
    with pytest.raises(UserError, match=r'names wandb, .*: pip install -e "\.\[wandb\]"'):
        open_loggers(["tensorboard", "wandb"], tmp_path, SPEC)


def test_a_folder_named_like_a_package_is_no_package(tmp_path, monkeypatch):
    """W&B leaves a folder `wandb` where it runs, which Python could import."""
    (tmp_path / "left_behind").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(logger_kinds.KINDS, "wandb", (logger_kinds.WandB, "left_behind"))
    assert not installed("wandb")


def test_no_package_is_loaded_before_training():
    program = "import sys, dmlm.training.loggers as l; l.open_loggers(['tensorboard'], None, {}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "tensorboardX", "wandb", "mlflow", "trackio"} & set(loaded)
