"""Atomic writing: a file is whole or absent, flushed to the disk, and can carry a digest beside it."""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is flushed and renamed to `path`, else removed.

    A kill between any two instructions leaves the old file or the new one, never half of one; once it is left, a loss
    of power takes nothing back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".{path.name}.{secrets.token_hex(6)}.part"
    )  # containers on one folder share process numbers
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; not every file system can for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def seal(path: Path) -> None:
    """Write the digest of a finished file beside it, as NAME.sha256: whoever finds both knows that the file is whole."""
    write_text(path.with_suffix(".sha256"), digest(path) + "\n")


def sealed(path: Path) -> bool:
    """Whether a file is there and fits its digest."""
    marker = path.with_suffix(".sha256")
    return path.is_file() and marker.is_file() and marker.read_bytes().strip() == digest(path).encode()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
