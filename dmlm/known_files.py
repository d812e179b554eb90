"""What is known of files by their content: their digests, and what was found when one was read to its end.

One SQLite file, `checks.sqlite` in the home folder. A file whose path, size and times are those of before is not read
again; any other is, and what was found in a file of that content, wherever it lay, is found again by the digest.
"""

import hashlib
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from dmlm import files, paths, processes, progress
from dmlm.errors import UserError

SETTLED_NS = 2_000_000_000  # a file that changed less than this ago may change again within one tick of its clock
MANY = 1_000  # files to read from which on a progress bar is shown
ROWS = 500  # per SQL statement
TABLES = """
create table if not exists files (path text primary key, size int, mtime_ns int, ctime_ns int, digest text) without rowid;
create table if not exists facts (digest text, kind text, facts text, primary key (digest, kind)) without rowid;
"""


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """Open the database, which is made on first use; commit at the end.

    Raises:
        UserError: the file is damaged.
    """
    path = paths.home() / "checks.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
            connection.executescript(TABLES)
            yield connection
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path}: {error}; remove it, and every file is read again.") from None


def digests(wanted: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of the files that exist, in hexadecimal. Only files that are new or changed are read.

    Raises:
        UserError: a file cannot be read.
    """
    stats = {path: stat for path in wanted if (stat := _stat(path))}
    found: dict[Path, str] = {}
    with _database() as database:
        for some in _slices(map(str, stats)):
            rows = database.execute(f"select * from files where path in ({','.join('?' * len(some))})", some)
            found |= {Path(path): digest for path, *known, digest in rows if tuple(known) == stats[Path(path)]}
    unknown = [path for path in stats if path not in found]
    read = dict(zip(unknown, _read(unknown), strict=True))
    settled_ns = time.time_ns() - SETTLED_NS
    settled = [
        (str(path), *stats[path], digest)
        for path, digest in read.items()
        if max(stats[path][1:]) < settled_ns and _stat(path) == stats[path]
    ]
    if settled:
        with _database() as database:
            database.executemany("insert or replace into files values (?, ?, ?, ?, ?)", settled)
    return {path: found.get(path) or read[path] for path in stats}


def _stat(path: Path) -> tuple[int, int, int] | None:
    """Return size, time of the last change of content, and of the last change at all; None if there is no such file."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read(unknown: Sequence[Path]) -> list[str]:
    """Return the digest of each file, read on all cores."""
    try:
        with ThreadPoolExecutor(processes.count()) as threads:
            found = threads.map(files.digest, unknown)
            if len(unknown) < MANY:
                return list(found)
            return list(progress.track(found, "reading files", len(unknown), "file"))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); restore it.") from None


def facts(kind: str, wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what was found in files, by their digest; those of which nothing is known are left out.

    Args:
        kind: what was looked for, such as `audio/1`; the number changes with the program that looks.
        wanted: digests of files.
    """
    found: dict[str, dict[str, Any]] = {}
    with _database() as database:
        for some in _slices(wanted):
            query = f"select digest, facts from facts where kind = ? and digest in ({','.join('?' * len(some))})"
            found.update((digest, json.loads(text)) for digest, text in database.execute(query, [kind, *some]))
    return found


def keep(kind: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what was found in files, by their digest; see `facts`."""
    with _database() as database:
        rows = [(digest, kind, json.dumps(values)) for digest, values in found.items()]
        database.executemany("insert or replace into facts values (?, ?, ?)", rows)


def _slices(items: Iterable[str]) -> Iterator[list[str]]:
    """Yield at most `ROWS` items at a time."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, ROWS)):
        yield some


def digest_of(parts: Iterable[str]) -> str:
    """Return one SHA-256 over several strings, such as the digests of files; their order matters.

    >>> digest_of(["a", "b"]) == digest_of(["b", "a"])
    False
    """
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
