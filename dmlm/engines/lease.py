"""Leases: files that record which process works on what, without a lock service, file locking or a shared clock.

A lease is a file that one process creates (by a hard link or O_EXCL) and rewrites at every beat, a few seconds apart.
Another process decides in one of two ways whether it is abandoned:

* The holder is a process of the same machine, with Linux: the lease is abandoned once that process is dead, and never
  before, even if the process is stopped or cannot write.
* Otherwise: the lease is abandoned if its content does not change for the grace period, measured on the clock of the
  observer. Clocks of two machines are never compared, so a wrong or jumping clock has no effect.

A machine that slept may thus lose a lease to another one; `HeldLease` tells the work that continues on it.
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

BEAT_S = 5.0  # interval between two beats
GRACE_S = 60.0  # time without a beat after which a lease of another machine is abandoned


class Busy(Exception):
    """Another process holds the lease; the message names it."""


class HeldLease:
    """A lease that this process works under, for checks that no other process has taken it over."""

    def __init__(self, path: Path) -> None:
        """The present holder must be this process, or the process that it works for."""
        self._path, self._token, self._checked_at = path, _read(path).get("token"), time.monotonic()

    def confirm_if_due(self) -> None:
        """Call `confirm` if the last call was at least a beat ago. Cheap, so it can be called at every step."""
        if time.monotonic() - self._checked_at >= BEAT_S:
            self.confirm()

    def confirm(self) -> None:
        """Check that the lease has not changed hands.

        Raises:
            Busy: another process has taken it over, or it is gone.
        """
        self._checked_at = time.monotonic()
        if _read(self._path).get("token") != self._token:
            raise Busy(_taken_over(self._path))


class Leases:
    """Takes leases, and remembers what this process has seen of the leases of other processes."""

    def __init__(self, grace_s: float = GRACE_S, beat_s: float = BEAT_S) -> None:
        self.grace_s, self.beat_s = grace_s, beat_s
        self._seen: dict[Path, tuple[str | None, float]] = {}  # content, and when this content was first seen

    @contextmanager
    def hold(self, path: Path) -> Iterator[None]:
        """Hold a lease for the duration of the context.

        Raises:
            Busy: another process holds it; or the work failed after another process had taken it over.
        """
        token = uuid.uuid4().hex
        if not self._create(path, token):
            if not self.is_abandoned(path):
                raise Busy(f"{path.parent} is being worked on by {holder(path)}")
            self._remove(path)
            if not self._create(path, token):
                raise Busy(f"{path.parent} has just been taken by {holder(path)}")
        stop = threading.Event()
        heart = threading.Thread(target=self._beat, args=(path, token, stop), daemon=True)
        heart.start()
        try:
            yield
        except Exception as error:
            if _read(path).get("token") != token:
                raise Busy(_taken_over(path)) from error
            raise
        finally:
            stop.set()
            heart.join()
            if _read(path).get("token") == token:
                path.unlink(missing_ok=True)

    @contextmanager
    def hold_when_free(self, path: Path, say: Callable[[str], None]) -> Iterator[None]:
        """Wait until a lease is free, then hold it. `say` is called once with the process that is waited for."""
        announced = False
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self.hold(path))
                    break
                except Busy as busy:
                    if not announced:
                        say(f"{busy}; waiting for it.")
                    announced = True
                    time.sleep(self.beat_s / 5)
            yield

    def is_abandoned(self, path: Path) -> bool:
        """Whether the holder is dead or, if that cannot be known here, wrote no beat for the grace period."""
        content = _text(path)
        if content is None:
            return True
        if (alive := _alive(_read(path))) is not None:
            return not alive
        now = time.monotonic()
        seen, since = self._seen.get(path, (None, now))  # an empty file, as a loss of power leaves it, is a content too
        if content != seen:
            self._seen[path] = content, now
            return False
        return now - since > self.grace_s

    def _create(self, path: Path, token: str) -> bool:
        """Create the lease file; False if there is one already."""
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
        """Remove an abandoned lease; if several processes try, one succeeds."""
        content, aside = _text(path), path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        if _text(aside) != content:  # another process replaced it in between: put the new lease back
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)

    def _beat(self, path: Path, token: str, stop: threading.Event) -> None:
        """Rewrite the lease at every beat until `stop` is set or another process has taken it over."""
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
                continue  # perhaps a full disk; the next beat may succeed


def live(path: Path) -> bool:
    """Whether a lease exists and its process is not known to be dead."""
    record = _read(path)
    return bool(record) and _alive(record) is not False


def holder(path: Path) -> str:
    """Describe the process that holds a lease, for messages."""
    record = _read(path)
    return f"process {record['pid']} on {record['host']}" if {"pid", "host"} <= record.keys() else "another process"


def _record(token: str, beat: int) -> str:
    """Content of the lease file."""
    pid = os.getpid()
    process = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}
    return json.dumps({"token": token, **process, "beat": beat}) + "\n"


def _taken_over(path: Path) -> str:
    return f"{path.parent} was taken over by {holder(path)}, because this process was not heard of"


def _machine() -> str:
    """Identify this machine since its last boot, and the PID namespace: process numbers are only unique inside."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _alive(record: dict) -> bool | None:
    """Whether the process that wrote a lease is alive; None if that cannot be known here.

    Another process that got the same number later is told apart by its start time.
    """
    if record.get("machine") != _machine():
        return None
    try:
        os.kill(int(str(record.get("pid"))), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    started = _started(record["pid"])
    return None if started is None or record.get("started") is None else started == record["started"]


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, or "ended" once it has ended; None without `/proc`."""
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
        record = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
