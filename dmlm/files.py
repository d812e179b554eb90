"""Atomic writing: a file is complete or absent, flushed to disk, and can have a seal (its digest) beside it."""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, remove it on an exception.

    A kill at any instruction leaves the old file or the new one, never a part of one. The file is flushed before the
    context ends, so a power failure after that does not undo the write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a random name, not the process number: containers that share a folder can have equal process numbers
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk, if its file system can flush it."""
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
    """Seal a finished file: write its digest beside it as NAME.sha256, so that `sealed` can check it."""
    write_text(path.with_suffix(".sha256"), digest(path) + "\n")


def sealed(path: Path) -> bool:
    """Whether a file exists and matches its seal."""
    seal_path = path.with_suffix(".sha256")
    return path.is_file() and seal_path.is_file() and seal_path.read_bytes().strip() == digest(path).encode()


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
