"""Progress bars of trials that run in other processes, read from their folders."""

import threading
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from dmlm import progress
from dmlm.sweep.trial import Trial

POLL_S = 1.0


class Watch:
    """Two bars per trial, one after the other: training steps, then evaluations; each with an ETA."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._rows = [_Row(trial) for trial in trials]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for row in self._rows:
            row.close(finished=kind is None)

    def _poll(self) -> None:
        while not self._stop.wait(POLL_S):
            open_rows = {row.position for row in self._rows if row.open}
            for row in self._rows:
                if not row.open:
                    row.position = min(set(range(len(open_rows) + 1)) - open_rows)
                row.update()
                open_rows |= {row.position} if row.open else set()
            self._rows = [row for row in self._rows if not row.done]


class _Row:
    """The bars of one trial. A bar opens when its work begins, so that waiting does not distort its ETA."""

    def __init__(self, trial: Trial) -> None:
        self.label, self.position = trial.cell.label, 0
        self.steps = trial.cell.train.steps
        self.stored = trial.stored
        self.evaluations = [trial.folder_of(evaluation) for evaluation in trial.evaluations]
        self.training: tqdm | None = None
        self.testing: tqdm | None = None
        self.first_step = self._step()

    @property
    def open(self) -> bool:
        """Whether one of its bars is on the screen."""
        return any(bar is not None and bar.n < bar.total for bar in (self.training, self.testing))

    @property
    def done(self) -> bool:
        """Whether both bars are complete."""
        return self.testing is not None and self.testing.n >= self.testing.total

    def _step(self) -> int:
        return self.steps if self.stored.result else self.stored.steps_done()

    def update(self) -> None:
        """Read the folder of the trial, and open or move its bars."""
        step = self._step()
        if self.first_step < self.steps and (step > self.first_step or self.training):
            if self.training is None:
                self.training = progress.bar(f"train {self.label}", self.steps, "step", self.first_step, self.position)
            _advance(self.training, step)
        if step >= self.steps:
            tested = sum(evaluation.has_result for evaluation in self.evaluations)
            if self.testing is None:
                self.testing = progress.bar(
                    f"test {self.label}", len(self.evaluations), "condition", tested, self.position
                )
            _advance(self.testing, tested)

    def close(self, finished: bool) -> None:
        if finished:
            self.update()
        for bar in (self.training, self.testing):
            if bar is not None:
                bar.close()


def _advance(bar: tqdm, count: int) -> None:
    """Set a bar to `count`; a full bar is closed, so that only the open ones are redrawn."""
    bar.update(count - bar.n)
    if bar.n >= bar.total:
        bar.close()
