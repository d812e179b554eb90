"""What a logger of a trial is, and the four there are: TensorBoard files, W&B, MLflow, trackio.

Their packages are imported in `start`, so only in workers, and only those that a grid asks for.
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

PROJECT = "dmlm"  # of W&B and trackio; MLflow's experiment. The same for every grid, since grids share trials
FLUSH_S = 5.0  # between writes of event files to disk
GIVE_UP_S = 20.0  # after which W&B stops trying; processes of a data-parallel training wait for it when they end


class Logger(ABC):
    """One more place for the scalars of a trial. Called from one thread; its package is imported in `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of the trial; its name is the name of the run

    @abstractmethod
    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        """Open the run of the trial, or go on with it. What was logged after `resumed_step` comes a second time."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and let go."""


class TensorBoard(Logger):
    """Event files in `tensorboard/` of the trial's folder, one a session."""

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # SummaryWriter has threads and queues of its own
        from tensorboardX.proto import event_pb2, summary_pb2

        place = self.folder / "tensorboard"
        place.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(place / "events"), f".{time.time_ns()}.{os.getpid()}")
        self._event, self._summary, self._flushed = event_pb2.Event, summary_pb2.Summary, 0.0
        begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # hides this step and later ones of older files
        self._file.write_event(self._event(wall_time=time.time(), step=resumed_step + 1, session_log=begin))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > FLUSH_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


class WandB(Logger):
    """A run of Weights & Biases; its own settings are its environment variables (WANDB_MODE=offline and others)."""

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=self.folder.name,
            id=self.folder.name,
            resume="allow",
            config=flat(spec),
            dir=os.environ.get("WANDB_DIR", self.folder),
            reinit="create_new",  # the run of the trial before may still be closing
            settings=wandb.Settings(console="off", silent=True, init_timeout=GIVE_UP_S, finish_timeout=GIVE_UP_S),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(dict(values), step=step)
        else:  # W&B takes no earlier step: a score of the finished model, or a step that is repeated exactly
            self._run.summary.update(dict(values))

    def close(self) -> None:
        self._run.finish()


class MLflow(Logger):
    """A run of MLflow, found again by its tag; at MLFLOW_TRACKING_URI, else in `runs/mlflow.db`."""

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        from filelock import FileLock
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        name, tag, runs = self.folder.name, "dmlm.trial", paths.home() / "runs"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        runs.mkdir(parents=True, exist_ok=True)
        with nullcontext() if uri else FileLock(runs / ".mlflow.lock"):  # two that make its tables at once break them
            self._client, self._metric = MlflowClient(uri or f"sqlite:///{runs / 'mlflow.db'}"), Metric
            with suppress(MlflowException):
                self._client.create_experiment(PROJECT)  # it may be there already
            found = self._client.search_experiments(filter_string=f"name = '{PROJECT}'")
        experiment = found[0].experiment_id
        known = self._client.search_runs([experiment], f"tags.`{tag}` = '{name}'", max_results=1)
        self._id = (known[0] if known else self._client.create_run(experiment, None, {tag: name}, name)).info.run_id
        last = max((m.step for m in self._client.get_metric_history(self._id, "train/loss")), default=0)
        self._repeated = range(resumed_step + 1, last + 1)
        self._client.update_run(self._id, status="RUNNING")
        params = [Param(name, str(value)) for name, value in flat(spec).items()]
        for start in range(0, len(params), 100):  # as many as it takes at once
            self._client.log_batch(self._id, params=params[start : start + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step not in self._repeated:
            now = int(time.time() * 1000)
            metrics = [self._metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio(Logger):
    """A run of trackio; in TRACKIO_DIR, else in `runs/trackio`."""

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(paths.home() / "runs" / "trackio"))  # read at its import
        import trackio

        self._run = trackio.init(
            PROJECT, self.folder.name, config=flat(spec), resume="allow", auto_log_gpu=False, auto_log_cpu=False
        )
        self._repeated = range(resumed_step + 1, getattr(self._run, "_next_step", 0))  # it has no public name for it

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step not in self._repeated:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, tuple[type[Logger], str]] = {  # and the package that each needs
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (WandB, "wandb"),
    "mlflow": (MLflow, "mlflow"),
    "trackio": (Trackio, "trackio"),
}


def flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One value a name; what is no number and no word becomes JSON.

    >>> flat({"seed": 0, "train": {"lr": 0.1}, "noise": ["a", "b"], "permute": None})
    {'seed': 0, 'train.lr': 0.1, 'noise': '["a", "b"]', 'permute': 'null'}
    """
    values: dict[str, Any] = {}
    for name, value in spec.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value if isinstance(value, int | float | str) else json.dumps(value)
    return values
