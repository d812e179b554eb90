"""Who works on what, said with files alone: no lock service, no clock that machines share, no file locking.

A lease is a file that one process creates (O_EXCL) and rewrites every few seconds. Whoever finds one watches whether
it changes, on a clock of its own: what stands still for the grace is abandoned, and so is, at once, what a dead process
of this machine holds; what a living one holds never is, stopped or without a disk as it may be. Times that other
machines wrote are never compared, so a wrong or jumping clock steals nothing. A machine that slept may lose a lease:
`HeldLease` tells the work that goes on there.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

BEAT_S = 5.0
GRACE_S = 60.0


class Busy(Exception):
    """Another process holds the lease; the message says which."""


class HeldLease:
    """A lease that this process works under, watched: somebody else may have taken it over."""

    def __init__(self, path: Path) -> None:
        """Whoever holds the lease now is this process, or the one that it works for."""
        self._path, self._token, self._looked = path, _read(path).get("token"), time.monotonic()

    def look(self) -> None:
        """`confirm`, but once a beat at most: to be called often."""
        if time.monotonic() - self._looked >= BEAT_S:
            self.confirm()

    def confirm(self) -> None:
        """Go on only if the lease is still the same.

        Raises:
            Busy: it is that of another.
        """
        self._looked = time.monotonic()
        if _read(self._path).get("token") != self._token:
            raise Busy(_taken(self._path))


class Leases:
    """What this process has seen of the leases of others."""

    def __init__(self, grace_s: float = GRACE_S, beat_s: float = BEAT_S) -> None:
        self.grace_s, self.beat_s = grace_s, beat_s
        self._seen: dict[Path, tuple[str, float]] = {}  # content, and when it was first seen so

    @contextmanager
    def hold(self, path: Path) -> Iterator[None]:
        """Work under a lease.

        Raises:
            Busy: another process has it, or had taken it over when the work failed.
        """
        token = uuid.uuid4().hex
        if not self._create(path, token):
            if not self.abandoned(path):
                raise Busy(f"{path.parent} is being worked on by {holder(path)}")
            self._remove(path)
            if not self._create(path, token):
                raise Busy(f"{path.parent} has just been taken by {holder(path)}")
        stop = threading.Event()
        beating = threading.Thread(target=self._beat, args=(path, token, stop), daemon=True)
        beating.start()
        try:
            yield
        except Exception as error:
            if _read(path).get("token") != token:
                raise Busy(_taken(path)) from error
            raise
        finally:
            stop.set()
            beating.join()
            if _read(path).get("token") == token:
                path.unlink(missing_ok=True)

    @contextmanager
    def hold_when_free(self, path: Path, say: Callable[[str], None]) -> Iterator[None]:
        """Wait for a lease, and say once for whom; then work under it."""
        told = False
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self.hold(path))
                    break
                except Busy as busy:
                    if not told:
                        say(f"{busy}; waiting for it.")
                    told = True
                    time.sleep(self.beat_s / 5)
            yield

    def abandoned(self, path: Path) -> bool:
        """Whether the holder is dead or, where that cannot be told, has not been heard of for the grace."""
        content = _text(path)
        if content is None:
            return True
        if (alive := _alive(_read(path))) is not None:
            return not alive
        now = time.monotonic()
        seen, since = self._seen.get(path, ("", now))
        if content != seen:
            self._seen[path] = content, now
            return False
        return now - since > self.grace_s

    def _create(self, path: Path, token: str) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{token}")
        aside.write_text(_record(token, 0))
        try:
            os.link(aside, path)  # all or nothing, also over NFS
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with open(path, "x") as file:
                    file.write(_record(token, 0))
            except FileExistsError:
                return False
        finally:
            aside.unlink()
        return True

    def _remove(self, path: Path) -> None:
        """Take an abandoned lease away; of several that try, one succeeds."""
        seen, aside = _text(path), path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        if _text(aside) != seen:  # it was replaced in between: give it back to its new holder
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)

    def _beat(self, path: Path, token: str, stop: threading.Event) -> None:
        number = 0
        while not stop.wait(self.beat_s):
            number += 1
            aside = path.with_name(f".{path.name}.{token}")
            try:
                if _read(path).get("token") != token:
                    return  # taken over
                aside.write_text(_record(token, number))
                os.replace(aside, path)
            except OSError:
                continue  # a full disk: the next beat may succeed


def live(path: Path) -> bool:
    """Whether a lease is there, and its process not known to be dead."""
    record = _read(path)
    return bool(record) and _alive(record) is not False


def holder(path: Path) -> str:
    """The process that holds a lease, to be shown."""
    record = _read(path)
    return f"process {record['pid']} on {record['host']}" if record else "another process"


def _record(token: str, beat: int) -> str:
    own = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
    return json.dumps({"token": token, **own, "beat": beat}) + "\n"


def _taken(path: Path) -> str:
    return f"{path.parent} was taken over by {holder(path)}, because this process was not heard of"


def _machine() -> str:
    """This machine since it was started; process numbers mean something on it only."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _alive(record: dict) -> bool | None:
    """Whether the process that wrote a lease lives, and not just one with its number; None if nobody can tell here."""
    if record.get("machine") != _machine():
        return None
    try:
        os.kill(int(str(record.get("pid"))), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    started = _started(record["pid"])
    return None if started is None or record.get("started") is None else started == record["started"]


def _started(pid: int) -> str | None:
    """When a process began, as Linux counts it, and "ended" once it has; None where that is not shown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if state in "ZX" else fields[18]


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _read(path: Path) -> dict:
    try:
        return dict(json.loads(_text(path) or "{}"))
    except ValueError:
        return {}
