"""Loggers write what `train.jsonl` says, once; and whatever they do, the training does not notice."""

import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import fit, model, weights

from dmlm import workers
from dmlm.errors import UserError
from dmlm.run import logger_kinds, loggers
from dmlm.run.logger_kinds import Logger
from dmlm.run.loggers import Guarded, Loggers, open_loggers
from dmlm.run.settings import Execution
from dmlm.sweep.cell import Cell, validated
from dmlm.sweep.trial import training_spec

SPEC = {"seed": 0, "train": {"lr": 0.003, "steps": 24}, "noise": ["a", "b"]}
CELL = {
    "corpus": {"recipe": "r", "preset": "p"},
    "tokenizers": {"A": "a"},
    "backbone": "opt-nano",
    "template": "A -> T",
}


class Killed(BaseException):
    """The process is gone, with nothing saved."""


def die_at(step_wanted):
    def on_step(step, loss):
        if step == step_wanted:
            raise Killed

    return on_step


def fit_with(names, folder, **more):
    with open_loggers(names, folder, SPEC) as opened:
        return fit(model(), folder, loggers=opened, **more)


def fit_in_three_sessions(names, folder):
    """Checkpoints after every step up to 13; a session that logs steps 20 and 24 in vain; and a last one from 13 on."""
    with pytest.raises(Killed):
        fit_with(names, folder, on_step=die_at(14), checkpoint_every_s=0.0)
    with pytest.raises(Killed):
        fit_with(names, folder, on_step=die_at(24))
    assert fit_with(names, folder).steps == 24


def told(folder):
    """(tag, step) -> value, as `train.jsonl` has it."""
    values = {}
    for line in map(json.loads, (folder / "train.jsonl").read_text().splitlines()):
        values["train/loss", line["step"]], values["train/lr", line["step"]] = line["loss"], line["lr"]
        values |= {(f"train/loss_{k}", line["step"]): v for k, v in line["loss_by_modality"].items()}
    return {key: pytest.approx(value, abs=2e-5) for key, value in values.items()}


def test_a_training_that_goes_on_has_its_whole_log_at_every_instant(tmp_path):
    """What a kill would leave, at the first step after a resume."""
    with pytest.raises(Killed):
        fit_with([], tmp_path, on_step=die_at(14), checkpoint_every_s=0.0)
    left = []

    def look(step, loss):
        left.append([line["step"] for line in map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())])

    fit_with([], tmp_path, on_step=look)
    assert left[0] == [10]
    assert left[-1] == [10, 20, 24]


# TensorBoard ---------------------------------------------------------------------------------------------------------


def masked_crc(data: bytes) -> int:
    """CRC-32C bit by bit, rotated and offset as the record format wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path):
    """The events of a file: length, its checksum, event, its checksum, and so on."""
    from tensorboardX.proto.event_pb2 import Event

    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        body = data[place + 12 : place + 12 + length]
        crcs = struct.unpack_from("<I", data, place + 8) + struct.unpack_from("<I", data, place + 12 + length)
        assert crcs == (masked_crc(data[place : place + 8]), masked_crc(body))
        yield Event.FromString(body)
        place += 16 + length


def written(folder):
    """Every (tag, step, value) as written; and what TensorBoard shows of it: a START hides its step and later ones."""
    from tensorboardX.proto.event_pb2 import SessionLog

    raw, shown = [], []
    for path in sorted((folder / "tensorboard").glob("*tfevents*")):
        events = list(records(path))
        assert events[0].file_version == "brain.Event:2"
        for event in events[1:]:
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                shown = [entry for entry in shown if entry[1] < event.step]
            entries = [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            raw, shown = raw + entries, shown + entries
    return raw, shown


def by_key(entries):
    values = {(tag, step): value for tag, step, value in entries}
    assert len(values) == len(entries)  # nothing twice
    return values


def test_event_files_say_what_the_log_says(tmp_path):
    fit_with(["tensorboard"], tmp_path)
    raw, shown = written(tmp_path)
    assert raw == shown
    assert by_key(shown) == told(tmp_path)
    assert {tag for tag, _, _ in shown} == {"train/loss", "train/loss_A", "train/loss_T", "train/lr"}


def test_a_resumed_training_shows_no_step_twice(tmp_path):
    fit_in_three_sessions(["tensorboard"], tmp_path)
    raw, shown = written(tmp_path)
    assert [step for tag, step, _ in raw if tag == "train/loss"] == [10, 20, 24, 20, 24]
    assert by_key(shown) == told(tmp_path)


def test_a_training_that_starts_afresh_shows_no_step_twice(tmp_path):
    with pytest.raises(Killed):
        fit_with(["tensorboard"], tmp_path, on_step=die_at(12))
    fit_with(["tensorboard"], tmp_path)
    assert by_key(written(tmp_path)[1]) == told(tmp_path)


def test_tensorboard_itself_shows_the_same(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit_in_three_sessions(["tensorboard"], tmp_path)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    seen = [(tag, one.step, one.value) for tag in board.Tags()["scalars"] for one in board.Scalars(tag)]
    assert by_key(seen) == told(tmp_path)


def test_every_trial_of_a_grid_has_its_curves_and_scores(finished, home):
    trials = {line.split()[-1] for line in finished.stdout.splitlines() if line.startswith("model ")}
    assert len(trials) == 5
    for trial in ((home / "runs" / "trials" / name.rpartition("/")[2]) for name in trials):
        steps = json.loads((trial / "result.json").read_text())["steps"]
        scores = {path.parent.name: json.loads(path.read_text())["wer"] for path in trial.glob("evals/*/result.json")}
        expected = {(f"wer/{name}", steps): pytest.approx(wer, abs=1e-6) for name, wer in scores.items()}
        assert scores
        assert by_key(written(trial)[1]) == told(trial) | expected


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
    assert outcome(tmp_path, Loggers([Guarded("shaky", logger)])) == undisturbed
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "logger shaky is off for the rest of this trial" in said[0]
    assert "ConnectionError: the server is down" in said[0] or "SystemExit: 3" in said[0]
    assert logger.calls.count(method) == (2 if method == "close" else 1)  # it is closed at once, and not called again
    assert logger.calls[-1] == "close"


@pytest.mark.parametrize("method", ["start", "scalars", "close"])
def test_a_logger_that_hangs_changes_nothing_and_is_not_waited_for(method, tmp_path, undisturbed, capsys, monkeypatch):
    monkeypatch.setattr(loggers, "CLOSE_S", 1.0)
    sound = Broken(tmp_path, "", hang)
    some = Loggers([Guarded("stuck", Broken(tmp_path, method, hang)), Guarded("sound", sound)])
    assert outcome(tmp_path, some) == undisturbed
    assert capsys.readouterr().err == "logger stuck did not close within 1 s; the trial goes on without it.\n"
    assert sound.calls == ["start", "scalars", "scalars", "scalars", "close"]
    started = time.monotonic()
    some.__exit__()
    assert time.monotonic() - started < 1.0  # given up for good


def test_a_logger_that_lags_loses_values_and_says_so_once(tmp_path, undisturbed, capsys, monkeypatch):
    monkeypatch.setattr(loggers, "CLOSE_S", 1.0)
    monkeypatch.setattr(loggers, "ROOM", 1)
    assert outcome(tmp_path, Loggers([Guarded("slow", Broken(tmp_path, "start", hang))])) == undisturbed
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("logger slow cannot keep up at step ")


def test_a_logger_that_hangs_while_it_is_put_away_is_not_waited_for(tmp_path):
    class Worse(Broken):
        def close(self):
            hang()

    started = time.monotonic()
    outcome(tmp_path, Loggers([Guarded("worse", Worse(tmp_path, "start", fail))]))
    assert time.monotonic() - started < loggers.CLOSE_S


def test_no_thread_left_to_start(tmp_path, undisturbed, capsys, monkeypatch):
    def refuse():
        raise RuntimeError("can't start new thread")

    one = Guarded("last", Broken(tmp_path, "", hang))
    monkeypatch.setattr(one._thread, "start", refuse)
    assert outcome(tmp_path, Loggers([one])) == undisturbed
    assert "logger last is off for the rest of this trial (RuntimeError: can't start" in capsys.readouterr().err


def test_a_training_that_ends_early_closes_its_loggers(tmp_path):
    logger = Broken(tmp_path, "", hang)
    with pytest.raises(Killed), Loggers([Guarded("sound", logger)]) as some:
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
    assert outcome(tmp_path, Loggers([Guarded("shaky", Broken(tmp_path, "start", fail))])) == undisturbed


@pytest.mark.parametrize("name", logger_kinds.KINDS)
def test_a_real_logger_leaves_the_training_as_it_is(name, tmp_path, undisturbed, offline, capsys):
    pytest.importorskip(logger_kinds.KINDS[name][1])
    assert outcome(tmp_path, open_loggers([name], tmp_path, SPEC)) == undisturbed
    assert "logger" not in capsys.readouterr().err


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
    started = time.monotonic()
    ended = dict(workers.run(in_a_worker, [(tmp_path / "without", []), (tmp_path / "with", names)], workers=1))
    assert ended[True] == ended[False]
    assert time.monotonic() - started < 60  # with the end of the processes


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
    program = "import sys, dmlm.run.loggers as l; l.open_loggers(['tensorboard'], None, {}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "tensorboardX", "wandb", "mlflow", "trackio"} & set(loaded)


# The optional ones, for real -----------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No servers; and time to import large packages on a busy machine."""
    for variable in ("MLFLOW_TRACKING_URI", "TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID", "WANDB_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    home = tmp_path / "dmlm home é"
    monkeypatch.setenv("DMLM_HOME", str(home))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr(loggers, "CLOSE_S", 120.0)
    return home / "runs" / "trials" / "opt-nano_A+L_seed0-0123456789ab"


CONFIG = {"seed": 0, "train.lr": 0.003, "train.steps": 24, "noise": '["a", "b"]'}


def wandb_records(path: Path):
    """The records of an offline run: LevelDB's log format, blocks of 32 KiB after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, body = path.read_bytes(), 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        body += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(body)
            body = b""


def test_wandb_holds_the_run(offline):
    pytest.importorskip("wandb")
    fit_with(["wandb"], offline)
    (path,) = (offline / "wandb").glob("offline-run-*/*.wandb")
    found = list(wandb_records(path))
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.run_id, run.display_name, run.project) == (offline.name, offline.name, "dmlm")
    assert {item.key: json.loads(item.value_json) for item in run.config.update if item.key in CONFIG} == CONFIG
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    seen = [(key, row["_step"], row[key]) for row in rows for key in row if key.startswith("train/")]
    assert by_key(seen) == told(offline)


def test_wandb_takes_no_step_before_its_last():
    """A server says where a resumed run stands: what it has already is not logged again, and a score is no step."""

    class Run:
        step, summary, logged = 21, {}, []

        def log(self, values, step):
            self.logged.append(step)

    logger = logger_kinds.WandB(Path("trial"))
    logger._run = Run()
    logger.scalars(20, {"wer/clean": 0.1})
    logger.scalars(30, {"train/loss": 1.0})
    assert (logger._run.logged, logger._run.summary) == ([30], {"wer/clean": 0.1})


def test_mlflow_holds_the_run_and_goes_on_with_it(offline):
    mlflow = pytest.importorskip("mlflow")
    fit_in_three_sessions(["mlflow"], offline)
    with open_loggers(["mlflow"], offline, SPEC) as opened:
        opened.start(24)  # an evaluation
        opened.scalars(24, {"wer/clean": 0.25})
    client = mlflow.MlflowClient(f"sqlite:///{offline.parent.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("dmlm").experiment_id])
    assert (run.info.run_name, run.info.status) == (offline.name, "FINISHED")
    assert run.data.params == {name: str(value) for name, value in CONFIG.items()}
    history = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
    seen = [(one.key, one.step, one.value) for metric in history for one in metric]
    assert by_key(seen) == told(offline) | {("wer/clean", 24): 0.25}


def test_trackio_holds_the_run_and_goes_on_with_it(offline, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    project = f"dmlm-{time.time_ns()}"  # it reads TRACKIO_DIR once, so the folder may be that of another test
    monkeypatch.setattr(logger_kinds, "PROJECT", project)
    fit_in_three_sessions(["trackio"], offline)
    with open_loggers(["trackio"], offline, SPEC) as opened:
        opened.start(24)
        opened.scalars(24, {"wer/clean": 0.25})
    (run,) = trackio.Api().runs(project)
    assert run.name == offline.name
    assert {name: run.config[name] for name in CONFIG} == CONFIG
    rows = SQLiteStorage.get_logs(project, run.name, run_id=run.id)
    seen = [(key, row["step"], row[key]) for row in rows for key in row if key.startswith(("train/", "wer/"))]
    assert by_key(seen) == told(offline) | {("wer/clean", 24): 0.25}
