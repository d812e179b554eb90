"""Sources of noise: what a file is from (a track, a speaker, a session), and which part hears which source."""

import bisect
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from dmlm.errors import UserError

PARTS = ("test", "val", "train")
CUTS = (0.2, 0.3)  # shares of the sources: a fifth for test, a tenth for val


def deal(sources: set[str]) -> dict[str, str]:
    """Return the part of each source. It depends on the source's name alone, except where a part would be empty.

    Sources stand in the order of the SHA-256 of their names, read as a fraction: below 0.2 they are for test, below 0.3
    for val, the others for training. Each part gets one at least, the next in this order, if there are three sources;
    of two, val gets none. So a source that is added or lost moves another only where a part has none by the first rule.

    >>> sorted(deal({"a", "b", "c"}).values())
    ['test', 'train', 'val']
    """
    keys = {int(hashlib.sha256(source.encode()).hexdigest(), 16) / 2**256: source for source in sources}
    order = sorted(keys)
    count = len(order)
    test = max(1, min(bisect.bisect(order, CUTS[0]), count - 2))
    val = max(min(test + 1, count - 1), min(bisect.bisect(order, CUTS[1]), count - 1))
    return {keys[key]: PARTS[(place >= test) + (place >= val)] for place, key in enumerate(order)}


def source_of(sources: str) -> Callable[[str, str], str | None] | None:
    """Return a function from a file's path in the noise folder and in that of its kind to its source; None: its content.

    Raises:
        UserError: `sources` is none of what it may be.
    """
    if sources == "file":
        return None
    if sources == "folder":
        return lambda path, name: PurePosixPath(name).parts[0] if "/" in name else None
    if os.path.isfile(table := os.path.expanduser(sources)):
        try:
            lines = Path(table).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"noise.sources: {table} is not UTF-8 text ({error.reason}); save it as UTF-8.") from None
        pairs = [line.rsplit(maxsplit=1) for line in lines if line.strip()]
        if short := [pair[0] for pair in pairs if len(pair) < 2]:
            raise UserError(f"{table}: {short[0]!r} has no source behind it; write RELATIVE_PATH SOURCE on each line.")
        by_path: dict[str, str] = {}
        for path, source in pairs:
            if by_path.setdefault(path.strip(), source) != source:
                raise UserError(
                    f"{table}: {path.strip()!r} has two sources, {by_path[path.strip()]} and {source}; keep one."
                )
        return lambda path, name: by_path.get(path)
    try:
        pattern = re.compile(sources)
    except re.error:
        pattern = re.compile("")
    if pattern.groups != 1:
        raise UserError(
            f"noise.sources: {sources!r} is none of `file`, `folder`, a file with lines RELATIVE_PATH SOURCE, and a regular"
            r" expression with one group for the source, such as ^(\d+)-"
        )
    return lambda path, name: match[1] or None if (match := pattern.search(name)) else None
