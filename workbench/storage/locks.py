"""Locks between processes that the operating system lets go when their holder dies.

diskcache's own Lock is a row in its database and stays held after a kill -9; a lock on an open file
does not. POSIX takes `flock` (not `lockf`: POSIX record locks belong to the process, so a second
thread would be let in), Windows takes `msvcrt.locking`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import sys
import threading
from pathlib import Path

_BUSY = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_NAME = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}\.alive")

if sys.platform == "win32":
    import msvcrt

    def _grab(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _grab(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """One holder at a time over all threads and processes; the file is removed on release."""

    def __init__(self, path: Path) -> None:
        """`path` names the lock's file; its folder must exist."""
        self._fd: int | None = None
        self.path = path

    @property
    def held(self) -> bool:
        """True while this object holds the lock."""
        return self._fd is not None

    def try_acquire(self) -> bool:
        """Take the lock if it is free; never waits.

        Raises:
            OSError: when the file cannot be made or the file system knows no locks.
        """
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            fd = os.open(self.path, flags, 0o600)
            try:
                _grab(fd)
                # The last holder may have removed the file between our open and our lock: then we
                # hold a lock on a file that nobody else can see, and must begin again.
                mine = os.fstat(fd)
                seen = self.path.stat() if self.path.exists() else None
            except OSError as exc:
                os.close(fd)
                if exc.errno in _BUSY:
                    return False
                if isinstance(exc, FileNotFoundError):
                    continue
                raise
            if seen is not None and (seen.st_dev, seen.st_ino) == (mine.st_dev, mine.st_ino):
                self._fd = fd
                return True
            os.close(fd)

    def release(self) -> None:
        """Remove the file and let go; does nothing when the lock is not held."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        with contextlib.suppress(OSError):  # Windows removes no open file: it stays, unlocked
            self.path.unlink()
        os.close(fd)

    def __del__(self) -> None:
        """A forgotten lock must not stay held, nor its file handle open."""
        self.release()


class Presence:
    """Says to other processes that this one lives, by a lock that dies with it.

    A process id alone lies: it is used again, and means nothing on another machine or in another
    container that shares the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Make and lock `<folder>/<pid>-<random>.alive`; the folder is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = f"{os.getpid()}-{secrets.token_hex(8)}.alive"
        self.host = socket.gethostname()
        self._guard = threading.Lock()
        self._lock = FileLock(folder / self.name)
        try:
            self._lock.try_acquire()
        except OSError:
            # No locks on this file system: others fall back to asking for our process id.
            (folder / self.name).touch()

    def lives(self, name: str, host: str) -> bool:
        """True unless the process that owns `name` is known to be gone."""
        if name == self.name:
            return True
        if not _NAME.fullmatch(name):
            return False
        path = self.folder / name
        with self._guard:
            if not path.exists():
                return False
            probe = FileLock(path)
            try:
                if not probe.try_acquire():
                    return True
            except OSError:
                return host != self.host or process_exists(int(name.split("-")[0]))
            probe.release()
            return False

    def sweep(self) -> None:
        """Remove the lock files that dead processes left."""
        for path in self.folder.glob("*.alive"):
            self.lives(path.name, self.host)  # a free lock is removed by the look at it

    def close(self) -> None:
        """Let go; what this process left unfinished counts as interrupted from now on."""
        self._lock.release()


def process_exists(pid: int) -> bool:
    """True when a process of this id runs on this machine (it may be another program by now)."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid > 0
