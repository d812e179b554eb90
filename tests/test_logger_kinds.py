"""Each kind of logger writes each value of `train.jsonl` once."""

import json
import struct
import time
from pathlib import Path

import pytest
from logged import SPEC, Killed, die_at, fit_in_three_sessions, fit_with, told

from dmlm.training import logger_kinds
from dmlm.training.loggers import open_loggers

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

    data, offset = path.read_bytes(), 0
    while offset < len(data):
        (length,) = struct.unpack_from("<Q", data, offset)
        body = data[offset + 12 : offset + 12 + length]
        crcs = struct.unpack_from("<I", data, offset + 8) + struct.unpack_from("<I", data, offset + 12 + length)
        assert crcs == (masked_crc(data[offset : offset + 8]), masked_crc(body))
        yield Event.FromString(body)
        offset += 16 + length


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


# The optional ones, for real -----------------------------------------------------------------------------------------


CONFIG = {"seed": 0, "train.lr": 0.003, "train.steps": 24, "noise": '["a", "b"]'}


def wandb_records(path: Path):
    """The records of an offline run: LevelDB's log format, blocks of 32 KiB after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, body = path.read_bytes(), 7, b""
    while offset < len(data):
        if (left_in_block := 32768 - offset % 32768) < 7:
            offset += left_in_block
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        body += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            yield Record.FromString(body)
            body = b""


def test_wandb_holds_the_run(offline):
    pytest.importorskip("wandb")
    fit_with(["wandb"], offline)
    (path,) = (offline / "wandb").glob("offline-run-*/*.wandb")
    stored = list(wandb_records(path))
    (run,) = [record.run for record in stored if record.HasField("run")]
    assert (run.run_id, run.display_name, run.project) == (offline.name, offline.name, "dmlm")
    assert {item.key: json.loads(item.value_json) for item in run.config.update if item.key in CONFIG} == CONFIG
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in stored
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
