"""Atomic files, locks between processes, and ULIDs."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from workbench.core.errors import StoreError

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EMLINK)


def write_atomic(
    path: Path, raw: bytes, *, temp: Path, overwrite: bool = True, durable: bool = True
) -> bool:
    """Write a whole file under its name, or leave things as they were.

    `temp` is a folder on the same file system. With `overwrite` False a file of that name stays as
    it is, and the answer is False. `durable` False leaves out the flushes (for what may be lost in
    a power cut).

    Raises:
        StoreError: with the system's reason (disk full, no permission).
    """
    part = temp / f"{os.getpid()}-{secrets.token_hex(8)}.part"
    named = False
    try:
        temp.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_all(part, raw, durable)
        if overwrite:
            part.replace(path)
        elif _name_once(part, path):
            named = True
        else:
            return False
        if durable:
            sync_folder(path.parent)
        return True
    except OSError as exc:
        _forget(part)
        if named:  # named but perhaps not durable: an unsure file must not look like a sure one
            _forget(path)
        raise StoreError(
            f"{path.name} could not be written ({os.strerror(exc.errno or 0)}); "
            "free some disk space or check the folder's permissions, and try again.",
            code="not-written",
        ) from exc
    except BaseException:
        _forget(part)
        raise


def _write_all(part: Path, raw: bytes, durable: bool) -> None:
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        view = memoryview(raw)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _name_once(part: Path, path: Path) -> bool:
    """Give the file its name unless the name is taken; a link does both in one step."""
    try:
        os.link(part, path)
    except FileExistsError:
        _forget(part)
        return False
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        # FAT and some network disks know no links. Names here are ULIDs or content hashes, so two
        # writers of one name are not expected and looking before renaming is enough.
        if path.exists():
            _forget(part)
            return False
        part.replace(path)
        return True
    _forget(part)
    return True


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that the names in it survive a power cut (not needed on Windows)."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _forget(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


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


ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_RANDOM_BITS = 80
_STEP_BITS = 64
_CENTURY = 100 * 365.25 * 24 * 3600  # seconds


def is_ulid(text: object) -> bool:
    """True for text in a ULID's form; nothing else ever becomes part of a path."""
    return isinstance(text, str) and _FORM.fullmatch(text) is not None


def encode(number: int) -> str:
    """The 26 characters of a number below 2^128."""
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def decode(text: str) -> int:
    """The number of a ULID.

    Raises:
        ValueError: when the text is not a ULID.
    """
    if not is_ulid(text):
        raise ValueError(f"{text!r:.60} is not a ULID")
    number = 0
    for letter in text:
        number = number << 5 | ALPHABET.index(letter)
    return number


def milliseconds(text: str) -> int:
    """The time that a ULID carries, in ms since 1970 (may run ahead after a clock was set back)."""
    return decode(text) >> _RANDOM_BITS


class UlidMaker:
    """Makes ids that only grow; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._clock = clock
        self._last = 0
        self._lock = threading.Lock()

    def seen(self, text: str) -> None:
        """Let every later id be larger than this one (found on disk, say).

        Other text is passed over, and so is an id of the far future: it was not made by a clock,
        and counting on from it would run out of numbers.
        """
        if is_ulid(text) and milliseconds(text) < (self._clock() + _CENTURY) * 1000:
            with self._lock:
                self._last = max(self._last, decode(text))

    def new(self) -> str:
        """An id larger than all before it."""
        with self._lock:
            now = max(0, int(self._clock() * 1000)) << _RANDOM_BITS
            if now >> _RANDOM_BITS > self._last >> _RANDOM_BITS:
                number = now | secrets.randbits(_RANDOM_BITS)
            else:  # the same millisecond, or the clock went back; a carry moves the time part on
                number = self._last + 1 + secrets.randbits(_STEP_BITS)
            self._last = number
            return encode(number)
