"""Loggers beside `train.jsonl`, which stays the truth: none can fail a trial, change it, or hold it up for long.

Each works in a thread of its own behind a short queue. What it raises switches it off, with one line on standard error;
what it has no time for is left out; at the end of a trial it is waited for only for seconds.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from dmlm.errors import UserError
from dmlm.training.logger_kinds import KINDS, Logger

ROOM = 1000  # calls that may wait for a logger
CLOSE_S = 5.0  # that all loggers of a trial together are waited for at its end


class Guarded:
    """A logger in a thread: every call returns at once and raises nothing."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._off = self._late = False
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"logger {name}", daemon=True)

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        self._calls.put(lambda: self._logger.start(spec, resumed_step))
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            self._switch_off(error)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._off:
            return
        if self._calls.qsize() < ROOM:
            self._calls.put(lambda: self._logger.scalars(step, values))
        elif not self._late:
            self._late = True
            _say(f"logger {self._name} cannot keep up at step {step}; some of its values are left out.")

    def finish(self) -> None:
        """Ask it to close after what is queued, without waiting."""
        self._calls.put(self._logger.close)
        self._calls.put(None)

    def wait(self, deadline: float) -> None:
        """Wait for its end, but not beyond the deadline (of `time.monotonic`)."""
        while self._thread.is_alive() and not self._off:
            if (left := deadline - time.monotonic()) <= 0:
                self._off = True
                _say(f"logger {self._name} did not close within {CLOSE_S:g} s; the trial goes on without it.")
            self._thread.join(min(0.1, max(0.0, left)))

    def _work(self) -> None:
        try:
            while call := self._calls.get():
                call()
        except BaseException as error:  # SystemExit, too
            self._switch_off(error)
            with suppress(BaseException):
                self._logger.close()

    def _switch_off(self, error: BaseException) -> None:
        if not self._off:
            self._off = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            _say(f"logger {self._name} is off for the rest of this trial ({reason}).")


class Loggers:
    """All loggers of a trial; as a context, they are closed at its end. Without any it does nothing."""

    def __init__(self, guarded: Sequence[Guarded] = (), spec: Mapping[str, Any] | None = None) -> None:
        self._guarded, self._spec = guarded, spec or {}

    def start(self, resumed_step: int) -> None:
        """Begin at step 0, or go on after the step of a checkpoint."""
        for one in self._guarded:
            one.start(self._spec, resumed_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the values of a step to every logger."""
        for one in self._guarded:
            one.scalars(step, values)

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, *exc: object) -> None:
        deadline = time.monotonic() + CLOSE_S
        for one in self._guarded:
            one.finish()
        for one in self._guarded:
            one.wait(deadline)


SILENT = Loggers()


def open_loggers(names: Sequence[str], folder: Path, spec: Mapping[str, Any]) -> Loggers:
    """The loggers of these names for the trial in `folder`.

    Raises:
        UserError: the package of one is not installed.
    """
    check_installed(names)
    return Loggers([Guarded(name, KINDS[name][0](folder)) for name in dict.fromkeys(names)], spec)


def check_installed(names: Sequence[str]) -> None:
    """Look for the package of each logger without loading it.

    Raises:
        UserError: naming the logger, with the line that installs it.
    """
    for name in names:
        package = KINDS[name][1]
        found = find_spec(package)
        if found is None or found.origin is None:  # no origin: a mere folder of that name, as `wandb` leaves them
            line = f'pip install -e ".[{name}]"' if name != "tensorboard" else f"pip install {package}"
            raise UserError(f"execution.loggers names {name}, which needs the package {package}: {line}")


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # standard error may be closed
        print(line, file=sys.stderr, flush=True)
