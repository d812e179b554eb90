"""Optional loggers beside `train.jsonl`, which is the reference. A logger cannot fail, change or delay a trial.

Each logger has its own thread and a short queue. An exception switches it off, with one line on standard error. Values
that it has no time for are dropped. At the end of a trial, the loggers have a few seconds to close.
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

QUEUE_LIMIT = 1000  # calls that may wait for a logger
CLOSE_S = 5.0  # time that all loggers of a trial together have to close


class GuardedLogger:
    """Runs a logger in a thread of its own. Every call returns at once and raises nothing."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._off = self._dropped = False
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"logger {name}", daemon=True)

    def start(self, spec: Mapping[str, Any], resumed_step: int) -> None:
        """Start the thread, and queue the start of the logger."""
        self._calls.put(lambda: self._logger.start(spec, resumed_step))
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no more threads
            self._switch_off(error)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values of a step, or drop them if the queue is full."""
        if self._off:
            return
        if self._calls.qsize() < QUEUE_LIMIT:
            self._calls.put(lambda: self._logger.scalars(step, values))
        elif not self._dropped:
            self._dropped = True
            _warn(f"logger {self._name} cannot keep up at step {step}; some of its values are left out.")

    def finish(self) -> None:
        """Queue the close of the logger and the end of the thread, without waiting for them."""
        self._calls.put(self._logger.close)
        self._calls.put(None)

    def wait(self, deadline: float) -> None:
        """Wait for the end of the thread until a deadline, on the clock of `time.monotonic`."""
        while self._thread.is_alive() and not self._off:
            if (remaining_s := deadline - time.monotonic()) <= 0:
                self._off = True
                _warn(f"logger {self._name} did not close within {CLOSE_S:g} s; the trial goes on without it.")
            self._thread.join(min(0.1, max(0.0, remaining_s)))

    def _work(self) -> None:
        try:
            while call := self._calls.get():
                call()
        except BaseException as error:  # including SystemExit
            self._switch_off(error)
            with suppress(BaseException):
                self._logger.close()

    def _switch_off(self, error: BaseException) -> None:
        if not self._off:
            self._off = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            _warn(f"logger {self._name} is off for the rest of this trial ({reason}).")


class Loggers:
    """All loggers of a trial, possibly none. As a context manager, it closes them at its end."""

    def __init__(self, guarded: Sequence[GuardedLogger] = (), spec: Mapping[str, Any] | None = None) -> None:
        self._guarded, self._spec = guarded, spec or {}

    def start(self, resumed_step: int) -> None:
        """Begin at step 0, or continue after the step of a checkpoint."""
        for logger in self._guarded:
            logger.start(self._spec, resumed_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Pass the values of a step to every logger."""
        for logger in self._guarded:
            logger.scalars(step, values)

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, *exc: object) -> None:
        deadline = time.monotonic() + CLOSE_S
        for logger in self._guarded:
            logger.finish()
        for logger in self._guarded:
            logger.wait(deadline)


NO_LOGGERS = Loggers()


def open_loggers(names: Sequence[str], folder: Path, spec: Mapping[str, Any]) -> Loggers:
    """Make the loggers of these names for the trial in `folder`.

    Raises:
        UserError: the package of a logger is not installed.
    """
    check_installed(names)
    return Loggers([GuardedLogger(name, KINDS[name][0](folder)) for name in dict.fromkeys(names)], spec)


def check_installed(names: Sequence[str]) -> None:
    """Check that the package of each logger is installed, without importing it.

    Raises:
        UserError: a package is not installed; the message has the command that installs it.
    """
    for name in names:
        package = KINDS[name][1]
        module_spec = find_spec(package)
        if module_spec is None or module_spec.origin is None:  # no origin: only a folder of that name; W&B leaves such
            command = f'pip install -e ".[{name}]"' if name != "tensorboard" else f"pip install {package}"
            raise UserError(f"execution.loggers names {name}, which needs the package {package}: {command}")


def _warn(line: str) -> None:
    with suppress(OSError, ValueError):  # standard error may be closed
        print(line, file=sys.stderr, flush=True)
