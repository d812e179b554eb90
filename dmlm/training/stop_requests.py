"""Requests to stop a training: SIGINT, SIGTERM, or a main process that is gone."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dmlm import processes


class Interrupted(KeyboardInterrupt):
    """The training was stopped by a request, after it wrote a checkpoint."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Catch SIGINT and SIGTERM, and yield a function that says whether the training shall stop after this step.

    It also says so once the main process of a worker is gone. A second Ctrl-C raises `KeyboardInterrupt` at once.
    """
    requested = False
    previous_handlers = {}

    def handle(number: int, frame: object) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a worker leaves Ctrl-C to the main process
                previous_handlers[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread, which alone can set handlers
        pass
    processes.in_training.set()
    try:
        yield lambda: requested or processes.orphaned()
    finally:
        processes.in_training.clear()
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
