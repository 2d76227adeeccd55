"""A lock file with a heartbeat, so that only one process at a time trains in a run directory. Imports no jax.

The lock is the file `lock` of the run directory. To take the lock, a process writes its card, a JSON object that
identifies the process, to a file with a unique name. It then makes `lock` a hard link to that file. Making a hard link
fails if the name is taken, on local disks and on NFS alike, so two processes never both succeed. (Where a file system
has no hard links, the file is created exclusively instead.) The owner then touches the file every HEARTBEAT seconds.

A lock is stale when its process no longer runs on this machine, or when its last heartbeat is older than STALE seconds.
Ages are differences between two times of the file system, so clocks of different machines need not agree.
The next process renames a stale lock and checks that this was the lock that it had examined. An owner has lost the lock
if it finds another card, or none, in `lock` at a heartbeat; its run then ends.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dreamer.errors import UserError
from dreamer.runtime.files.atomic import disk_error
from dreamer.runtime.files.run_dir import LOCK

HEARTBEAT = 10.0  # seconds
STALE = 60.0  # seconds
_LARGEST = 1 << 16  # bytes of a card
_ROUNDS = 20  # attempts to move a stale lock away


class Card(NamedTuple):
    """Identifies the process that holds a lock.

    token: an id that only this lock has | host, user, pid: the host, the user and the process ID
    machine: identifies the boot of the machine and the process namespace; "": unknown
    started: the start of the process in clock ticks since the boot; 0: unknown | since: the time of locking, as text
    """

    token: str
    host: str
    user: str
    machine: str
    pid: int
    started: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


# Stands for a card that cannot be read, for example after a full disk. Such a lock is stale by its age alone.
UNKNOWN = Card("", "?", "?", "", 0, 0, "?")


class Held(NamedTuple):
    """A lock that some process holds or has left behind.

    card: identifies the process | age: the seconds since the last heartbeat
    gone: the process ran on this machine and has ended | runs: the process runs on this machine
    If the process belongs to another machine, gone and runs are False.
    """

    card: Card
    age: float
    gone: bool
    runs: bool = False

    @property
    def stale(self) -> bool:
        """Whether the next process may replace the lock."""
        return self.gone or self.age > STALE


class RunLock:
    """Owns the lock of a run directory and the thread of its heartbeat. Use as a context manager, or call close()."""

    def __init__(self, run_dir: Path, report: Callable[[str], None], lost: Callable[[UserError], None]):
        """Takes the lock; the directory must exist.

        report: called with a line to print if a stale lock was replaced.
        lost: called with the error, in another thread, if this process has lost the lock.
        Raises UserError naming the process if another one holds the lock, and UserError if the directory cannot be
        written.
        """
        self._path, self._lost = run_dir / LOCK, lost
        self.card = _own_card()
        self._closing = threading.Event()
        mine = self._path.with_name(f"{LOCK}.{self.card.token}")
        try:
            mine.write_text(json.dumps(self.card._asdict()))
            try:
                self._take(mine, report)
            finally:
                mine.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self._path) from error
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Releases the lock, if this process still holds it. May be called again."""
        self._closing.set()
        self._thread.join()
        if _card(self._path) == self.card:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, mine: Path, report: Callable[[str], None]) -> None:
        for _ in range(_ROUNDS):
            if _link(mine, self._path):
                return
            held = look(self._path.parent, mine.stat().st_mtime)
            if held is None:
                continue  # it was released meanwhile
            if not held.stale:
                raise UserError(refusal(self._path.parent, held))
            if self._move_away(held):
                why = "that process is gone" if held.gone else f"its last heartbeat was {held.age:.0f} s ago"
                report(f"replaced the lock of {held.card}: {why}")
        raise UserError(f"{self._path} exists and cannot be replaced; remove it if no process trains here")

    def _move_away(self, held: Held) -> bool:
        """Moves a stale lock away. Returns False if another process was faster."""
        aside = self._path.with_name(f"{LOCK}.{self.card.token}.stale")
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return False
        try:
            moved = _card(aside) or UNKNOWN
            if moved != held.card:  # a fresh lock: another process was faster
                _link(aside, self._path)
            return moved == held.card
        finally:
            aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._closing.wait(HEARTBEAT):
            try:
                found = _card(self._path)
                if found == self.card:
                    os.utime(self._path)
                    continue
            except OSError:
                continue  # the disk is unavailable for a moment; the run reports it at its next write
            by = f"by {found}" if found else "and is gone"
            self._lost(UserError(f"{self._path.parent}: the lock of this run was taken {by}; this process stops"))
            return


def look(run_dir: Path, now: float | None = None) -> Held | None:
    """Returns the lock of a run directory, or None if there is no lock. Changes nothing.

    now: the current time on the file system's clock; None: the time on this machine's clock.
    Raises UserError if `lock` is not a file.
    """
    path = run_dir / LOCK
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a lock file; remove it")
    age = max(0.0, (time.time() if now is None else now) - status.st_mtime)
    card = _card(path)
    if card is None:
        return Held(UNKNOWN, age, False)
    here = card.host == socket.gethostname() and card.machine == _machine()
    runs = here and _started(card.pid) == card.started
    return Held(card, age, here and not runs, runs)


def refusal(run_dir: Path, held: Held) -> str:
    """Returns the text of the error for a run directory whose lock another process holds."""
    return (
        f"{run_dir} is in use by {held.card}, last heartbeat {held.age:.0f} s ago; wait for it, stop it, or give "
        "another --run-dir"
    )


def _own_card() -> Card:
    pid = os.getpid()
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name for this uid, as in some containers
        user = str(os.getuid())
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return Card(uuid.uuid4().hex, socket.gethostname(), user, _machine(), pid, _started(pid), now)


def _card(path: Path) -> Card | None:
    """Returns the card in a lock file, or None if the file is missing or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            values = json.loads(file.read(_LARGEST))
        kinds = {name: int if name in ("pid", "started") else str for name in Card._fields}
        if values.keys() == kinds.keys() and all(type(values[name]) is kind for name, kind in kinds.items()):
            return Card(**values)
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    return None


def _link(source: Path, target: Path) -> bool:
    """Makes `target` a hard link to `source`, or a copy if that is not supported. Returns False if `target` exists."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        try:
            with open(target, "xb") as file:
                file.write(source.read_bytes())
        except FileExistsError:
            return False
    return True


def _machine() -> str:
    """Returns the ID of this machine's current boot and that of the process namespace, as one text; "" if unknown."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> int:
    """Returns the start of a process in clock ticks since the boot, or 0 if it runs but its start is unknown.

    Returns -1 if the process does not run on this machine.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return -1
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return -1
        except OSError:
            pass
        return 0
    state, *fields = text.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(fields[18])
