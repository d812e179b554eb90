"""What is known of files by their content: their digests, and what was found when one was read to its end.

One SQLite file, `checks.sqlite` in the home folder. A file whose path, inode, size and times are those of before is not read
again; any other is, and what was found in a file of that content, wherever it lay, is found again by the digest.
"""

import hashlib
import itertools
import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dmlm import files, paths, processes, progress
from dmlm.errors import UserError

SETTLED_NS = 2_000_000_000  # a file that changed less than this ago may change again within one tick of its clock
WAIT_S = 60  # for another process that writes
KEEP_EVERY_S = 2.0  # of long work; what a kill loses
MANY = 1_000  # files to read from which on a progress bar is shown
T = TypeVar("T")
ROWS = 500  # per SQL statement
TABLES = """
create table if not exists known (path blob primary key, stat text, digest text) without rowid;
create table if not exists facts (digest text, kind text, facts text, primary key (digest, kind)) without rowid;
"""
REMOVE = "remove it, and every file is read again"
WRITABLE = "make it and its folder writable, or set DMLM_HOME to a folder that is"
REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds it: wait for that one, or end it, and run the same command again",
    sqlite3.SQLITE_READONLY: WRITABLE,
    sqlite3.SQLITE_CANTOPEN: WRITABLE,
    sqlite3.SQLITE_PERM: WRITABLE,
    sqlite3.SQLITE_FULL: "free some space, and run the same command again",
    sqlite3.SQLITE_IOERR: "see whether its disk is full or fails, and run the same command again",
}


class _Stat(NamedTuple):
    """By what an unchanged file is known. Nobody can set `ctime_ns`, which every change of a file sets to the present."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def __str__(self) -> str:
        return " ".join(map(str, self))  # as text: an inode number may have 64 bits, an integer of SQLite 63


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """Open the database, which is made on first use; commit at the end.

    Raises:
        UserError: the file is damaged, or cannot be opened or written.
    """
    path = paths.home() / "checks.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT_S)) as connection, connection:
            connection.executescript(TABLES)
            yield connection
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        raise UserError(f"{path}: {error}; {REMEDIES.get(code, REMOVE)}.") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {WRITABLE}.") from None


def digests(wanted: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of the files that exist, in hexadecimal. Only files that are new or changed are read.

    Raises:
        UserError: a file cannot be read.
    """
    found, refused = readable(wanted)
    for path, reason in refused.items():
        raise UserError(f"{path} cannot be read ({reason}); restore it.")
    return found


def readable(wanted: Iterable[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return the digests of the files that exist and can be read, as `digests` does, and why the others cannot be read."""
    stats, refused = dict[Path, _Stat](), dict[Path, str]()
    for path in wanted:
        if isinstance(seen := _stat(path), _Stat):
            stats[path] = seen
        elif seen:
            refused[path] = seen
    keys = {path: os.fsencode(os.path.abspath(path)) for path in stats}  # bytes: a name need not be Unicode
    with _database() as database:
        found = _recalled(database, keys, stats)
        unknown = [path for path in stats if path not in found]
        settled_ns = (_clock_ns() if unknown else 0) - SETTLED_NS  # what changes from now on has a later time
    for some in in_batches(_read(unknown)):
        refused |= {path: reason for path, _, reason in some if reason}
        read = {path: digest for path, digest, reason in some if not reason}
        found |= read
        rows = [
            (keys[path], str(stats[path]), digest)
            for path, digest in read.items()
            if stats[path].ctime_ns < settled_ns and _stat(path) == stats[path]
        ]
        if rows:
            with _database() as database:
                database.executemany("insert or replace into known values (?, ?, ?)", rows)
    return {path: found[path] for path in stats if path in found}, refused


def _recalled(database: sqlite3.Connection, keys: Mapping[Path, bytes], stats: Mapping[Path, _Stat]) -> dict[Path, str]:
    """Return the digests of the files that are as they were when they were read."""
    paths_by_key = {key: path for path, key in keys.items()}
    found = {}
    for some in _slices(paths_by_key):
        rows = database.execute(f"select * from known where path in ({','.join('?' * len(some))})", some)
        for key, known, digest in rows:
            if known == str(stats[path := paths_by_key[key]]):
                found[path] = digest
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of one file, as `digests` does.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if found := digests([path]):
        return found[path]
    raise UserError(f"There is no file {path}.")


def by_content(values: Any) -> Any:
    """Return a copy of nested settings in which the digest of a file or folder stands for its absolute path.

    Raises:
        UserError: a file cannot be read.
    """
    if isinstance(values, dict):
        return {key: by_content(value) for key, value in values.items()}
    if isinstance(values, list):
        return [by_content(value) for value in values]
    if not (isinstance(values, str) and os.path.isabs(values) and os.path.exists(values)):
        return values
    path = Path(values)
    found = digests([path] if path.is_file() else files.below(path))
    return digest_of(f"{file.relative_to(path)} {digest}" for file, digest in sorted(found.items()))


def _stat(path: Path) -> _Stat | str | None:
    """Return what a file is known by; None if there is no such file, or why it cannot be read."""
    try:
        seen = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # such as a name that is too long, or links in a circle
        return _reason(error)
    if not stat.S_ISREG(seen.st_mode):
        return "it is a folder" if stat.S_ISDIR(seen.st_mode) else "it is not an ordinary file"
    return _Stat(seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _clock_ns() -> int:
    """Return the time by this machine or by the file system of the database, whichever is earlier."""
    path = paths.home() / "checks.sqlite"
    path.touch()
    return min(time.time_ns(), path.stat().st_mtime_ns)


def _read(unknown: Sequence[Path]) -> Iterator[tuple[Path, str, str]]:
    """Yield each file, read on all cores, with its digest, or an empty one and why it cannot be read."""
    with ThreadPoolExecutor(processes.count()) as threads:
        try:
            found = threads.map(_digest, unknown)
            yield from found if len(unknown) < MANY else progress.track(found, "reading files", len(unknown), "file")
        finally:
            threads.shutdown(cancel_futures=True)


def _digest(path: Path) -> tuple[Path, str, str]:
    try:
        return path, files.digest(path), ""
    except OSError as error:
        return path, "", _reason(error)


def in_batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the results of long work in batches, one every `KEEP_EVERY_S`, so that they can be kept meanwhile."""
    batch, started_s = list[T](), time.monotonic()
    for item in items:
        batch.append(item)
        if time.monotonic() - started_s >= KEEP_EVERY_S:
            yield batch
            batch, started_s = [], time.monotonic()
    if batch:
        yield batch


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
            found.update((digest, _parsed(text)) for digest, text in database.execute(query, [kind, *some]))
    return found


def _parsed(text: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (TypeError, ValueError):
        parsed = None
    if not isinstance(parsed, dict):
        raise sqlite3.DatabaseError("what was found in a file is damaged")
    return parsed


def keep(kind: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what was found in files, by their digest; see `facts`."""
    with _database() as database:
        rows = [(digest, kind, json.dumps(values)) for digest, values in found.items()]
        database.executemany("insert or replace into facts values (?, ?, ?)", rows)


def _slices(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield at most `ROWS` items at a time."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, ROWS)):
        yield some


def digest_of(parts: Iterable[str]) -> str:
    """Return one SHA-256 over several strings, such as the digests of files; their order matters.

    >>> digest_of(["a", "b"]) == digest_of(["b", "a"])
    False
    """
    return hashlib.sha256(json.dumps([*parts]).encode()).hexdigest()
