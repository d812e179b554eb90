"""Progress with an ETA: one moving line on a terminal, a plain line every ten seconds in a log."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_INTERVAL_S = 10.0


class _LogLines(tqdm):
    """tqdm that ends each report with a new line, for output that is not a terminal."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def show(line: str) -> None:
            if line.strip():
                file.write(line.strip() + "\n")
                file.flush()

        return show

    def moveto(self, n: int) -> None:
        """Several bars in a log need no cursor."""


def bar(label: str, total: int, unit: str = "it", done: int = 0, position: int | None = None) -> tqdm:
    """A progress bar on standard error; `done` items count as finished before now and do not enter the ETA."""
    terminal = sys.stderr.isatty()
    kind = tqdm if terminal else _LogLines
    return kind(
        total=total,
        initial=done,
        desc=f"{label:<34}",
        unit=unit,
        position=position if terminal else None,
        file=sys.stderr,
        mininterval=0.2 if terminal else LOG_INTERVAL_S,
        bar_format="{desc} {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed} < {remaining}, {rate_fmt}{postfix}]",
    )


def track(items: Iterable[T], label: str, total: int, unit: str = "it", done: int = 0) -> Iterator[T]:
    """Iterate with a progress bar."""
    with bar(label, total, unit, done) as shown:
        for item in items:
            yield item
            shown.update(1)
