"""The logger interface and its four kinds: TensorBoard event files, Weights & Biases (W&B), MLflow, trackio.

The package of a logger is imported in its `start`: only in workers, and only if a grid asks for that logger.
"""

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from dmlm import paths

PROJECT = "dmlm"  # project of W&B and trackio, experiment of MLflow; the same for all grids, since grids share trials
FLUSH_S = 5.0  # interval between flushes of event files
GIVE_UP_S = 20.0  # timeout of W&B; the processes of a data-parallel training wait for it when they end


class Logger(ABC):
    """Writes the scalars of a trial to one destination. All calls come from one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # folder of the trial; the run has its name

    @abstractmethod
    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        """Open the run of the trial, or resume it. Steps after `resumed_step` that were logged before are repeated."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""

    @abstractmethod
    def close(self) -> None:
        """Write buffered values and close the run."""


class TensorBoard(Logger):
    """TensorBoard event files, one for each session, in `tensorboard/` of the trial's folder."""

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # SummaryWriter starts threads and queues of its own
        from tensorboardX.proto import event_pb2, summary_pb2

        event_folder = self.folder / "tensorboard"
        event_folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(event_folder / "events"), f".{time.time_ns()}.{os.getpid()}")
        self._event, self._summary, self._last_flush = event_pb2.Event, summary_pb2.Summary, 0.0
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # hides this step and later ones of older files
        self._file.write_event(self._event(wall_time=time.time(), step=resumed_step + 1, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._last_flush > FLUSH_S:
            self._file.flush()
            self._last_flush = time.monotonic()

    def close(self) -> None:
        self._file.close()


class WandB(Logger):
    """A run of Weights & Biases, configured by its environment variables (WANDB_MODE=offline and others)."""

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=self.folder.name,
            id=self.folder.name,
            resume="allow",
            config=flatten(spec),
            dir=os.environ.get("WANDB_DIR", self.folder),
            reinit="create_new",  # the run of the previous trial may still be closing
            settings=wandb.Settings(console="off", silent=True, init_timeout=GIVE_UP_S, finish_timeout=GIVE_UP_S),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(dict(values), step=step)
        else:  # an earlier step, which W&B refuses: a score of the finished model, or an exact repetition
            self._run.summary.update(dict(values))

    def close(self) -> None:
        self._run.finish()


class MLflow(Logger):
    """A run of MLflow, identified by its tag, at MLFLOW_TRACKING_URI, else in `runs/mlflow.db`."""

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        from filelock import FileLock
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        name, tag, runs = self.folder.name, "dmlm.trial", paths.home() / "runs"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        runs.mkdir(parents=True, exist_ok=True)
        # two processes that create the tables of the database at once would break them
        with nullcontext() if uri else FileLock(runs / ".mlflow.lock"):
            self._client, self._metric = MlflowClient(uri or f"sqlite:///{runs / 'mlflow.db'}"), Metric
            with suppress(MlflowException):
                self._client.create_experiment(PROJECT)  # it may exist already
            experiments = self._client.search_experiments(filter_string=f"name = '{PROJECT}'")
        experiment = experiments[0].experiment_id
        runs_of_trial = self._client.search_runs([experiment], f"tags.`{tag}` = '{name}'", max_results=1)
        run = runs_of_trial[0] if runs_of_trial else self._client.create_run(experiment, None, {tag: name}, name)
        self._id = run.info.run_id
        last = max((m.step for m in self._client.get_metric_history(self._id, "train/loss")), default=0)
        self._repeated = range(resumed_step + 1, last + 1)
        self._client.update_run(self._id, status="RUNNING")
        params = [Param(name, str(value)) for name, value in flatten(spec).items()]
        for start in range(0, len(params), 100):  # the most that MLflow accepts in one batch
            self._client.log_batch(self._id, params=params[start : start + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step not in self._repeated:
            now = int(time.time() * 1000)
            metrics = [self._metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio(Logger):
    """A run of trackio, in TRACKIO_DIR, else in `runs/trackio`."""

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(paths.home() / "runs" / "trackio"))  # read when trackio is imported
        import trackio

        self._run = trackio.init(
            PROJECT, self.folder.name, config=flatten(spec), resume="allow", auto_log_gpu=False, auto_log_cpu=False
        )
        self._repeated = range(resumed_step + 1, getattr(self._run, "_next_step", 0))  # there is no public name for it

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step not in self._repeated:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, tuple[type[Logger], str]] = {  # class, and the package that it needs
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (WandB, "wandb"),
    "mlflow": (MLflow, "mlflow"),
    "trackio": (Trackio, "trackio"),
}


def flatten(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names; values other than numbers and strings become JSON.

    >>> flatten({"seed": 0, "train": {"lr": 0.1}, "noise": ["a", "b"], "permute": None})
    {'seed': 0, 'train.lr': 0.1, 'noise': '["a", "b"]', 'permute': 'null'}
    """
    values: dict[str, Any] = {}
    for name, value in spec.items():
        if isinstance(value, Mapping):
            values |= flatten(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value if isinstance(value, int | float | str) else json.dumps(value)
    return values
