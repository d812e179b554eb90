"""Progress bars with an ETA: one line that is redrawn on a terminal, a new line every ten seconds in a log file."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_INTERVAL_S = 10.0


class _LogLines(tqdm):
    """A tqdm bar that prints each report on a line of its own, for output that is not a terminal."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def show(line: str) -> None:
            if line.strip():
                file.write(line.strip() + "\n")
                file.flush()

        return show

    def moveto(self, n: int) -> None:
        """Do nothing: a log has no cursor to move between bars."""


def bar(label: str, total: int, unit: str = "it", done: int = 0, position: int | None = None) -> tqdm:
    """Return a progress bar on standard error. `done` items were finished earlier and do not enter the ETA."""
    on_terminal = sys.stderr.isatty()
    bar_type = tqdm if on_terminal else _LogLines
    return bar_type(
        total=total,
        initial=done,
        desc=f"{label:<34}",
        unit=unit,
        position=position if on_terminal else None,
        file=sys.stderr,
        mininterval=0.2 if on_terminal else LOG_INTERVAL_S,
        bar_format="{desc} {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed} < {remaining}, {rate_fmt}{postfix}]",
    )


def track(items: Iterable[T], label: str, total: int, unit: str = "it", done: int = 0) -> Iterator[T]:
    """Iterate with a progress bar."""
    with bar(label, total, unit, done) as progress_bar:
        for item in items:
            yield item
            progress_bar.update(1)
