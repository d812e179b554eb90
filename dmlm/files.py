"""Atomic writing: a file is complete or absent, flushed to disk, and can have a seal (its digest) beside it."""

import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dmlm.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, remove it on an exception.

    A kill at any instruction leaves the old file or the new one, never a part of one. The file is flushed before the
    context ends, so a power failure after that does not undo the write. Only a plain file is replaced: a link stays
    and the file that it leads to is replaced; a named pipe or a device is written into, once all is there.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with TemporaryDirectory() as folder:
            yield (temporary := Path(folder) / path.name)
            with temporary.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    if path.is_symlink():
        path = Path(os.path.realpath(path))
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


def write_for_user(path: Path, content: bytes) -> bool:
    """Write a file that the user named; return whether that was standard output, as `-` or by any name that it has.

    Raises:
        UserError: it cannot be written, such as a folder.
    """
    try:
        if is_standard_output(path):
            if sys.stdout is None:
                raise UserError("Standard output is closed; give a file.")
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return True
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a file.")
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give another file.") from None
    return False


def is_standard_output(path: Path) -> bool:
    """Whether a path is `-`, or leads to what standard output is connected to, such as `/dev/stdout`."""
    if str(path) == "-" or sys.stdout is None:
        return str(path) == "-"
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except OSError:  # there is no such file, or standard output has no number
        return False


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


def below(folder: Path) -> list[Path]:
    """List the files below a folder, sorted. Links to folders are followed, each folder once.

    Raises:
        UserError: a folder cannot be listed.
    """
    seen: set[str] = set()
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}); change its permissions.") from None

    for at, folders, names in os.walk(folder, onerror=fail, followlinks=True) if folder.is_dir() else ():
        if (here := os.path.realpath(at)) in seen:  # by a link, such as one to a folder above
            folders.clear()
            continue
        seen.add(here)
        folders.sort()
        found += [Path(at, name) for name in names]
    return sorted(found)
