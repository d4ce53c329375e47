"""Locks that the operating system releases when their holder dies.

A row in a database (diskcache's Lock) stays held after a kill -9, and a process id is reused and
means nothing on another machine; filelock takes `flock` or `msvcrt.locking` on an open file.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import threading
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

_NAME = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}\.alive")


def file_lock(path: Path) -> FileLock:
    """A lock with one holder among all threads and processes."""
    return FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)


def release(lock: FileLock) -> None:
    """Release a held lock and remove its file (whoever waits for it creates a new one)."""
    with contextlib.suppress(OSError):  # Windows keeps the open file: it stays, unlocked
        Path(lock.lock_file).unlink()
    lock.release()


def remove_if_free(path: Path) -> bool:
    """Remove the lock file of a dead holder; returns False when its holder lives.

    Raises:
        OSError: when the file cannot be opened or the file system has no locks.
    """
    lock = file_lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    release(lock)
    return True


class ProcessLock:
    """Shows other processes that this one is alive, by a lock file that dies with it."""

    def __init__(self, folder: Path) -> None:
        """Create and lock `<folder>/<pid>-<random>.alive`; raises OSError where it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = f"{os.getpid()}-{secrets.token_hex(8)}.alive"
        self.host = socket.gethostname()
        self._guard = threading.Lock()
        self._lock: FileLock | None = None
        self.renew()

    def renew(self) -> None:
        """Create the lock file again if it was removed (called before work is announced)."""
        path = self.folder / self.name
        with self._guard:
            if not path.exists():
                self._lock = file_lock(path)  # the old one, if any, is released with its object
                try:
                    self._lock.acquire(blocking=False)
                except OSError:  # no locks on this file system: others ask for our process id
                    path.touch()

    def lives(self, name: str, host: str) -> bool:
        """False when the process that owns `name` is known to be dead."""
        path = self.folder / name
        if name == self.name:
            return True
        if not _NAME.fullmatch(name) or not path.exists():
            return False
        try:
            return not remove_if_free(path)
        except OSError:
            return host != self.host or psutil.pid_exists(int(name.split("-")[0]))

    def sweep(self) -> None:
        """Remove the lock files that dead processes left."""
        for path in self.folder.glob("*.alive"):
            self.lives(path.name, self.host)

    def close(self) -> None:
        """Release; whatever this process left unfinished counts as interrupted from now on."""
        if self._lock is not None:
            release(self._lock)
