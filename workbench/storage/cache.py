"""Disk cache for derived data: LoRAs, inverted latents, features.

diskcache culls, expires and counts. Ours are the Disk that stores bytes only, so that nothing is ever
unpickled (CVE-2025-69872), and one computation per key across threads and processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import diskcache
from diskcache.core import MODE_BINARY, UNKNOWN
from filelock import FileLock, Timeout

from workbench.core.keys import digest
from workbench.storage.files import file_lock, release, remove_if_free

_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")
_MAGIC = b"WBC1"


class Damaged(OSError):
    """The entry differs from what was stored (diskcache counts an OSError as a miss)."""


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Each value in a file `MAGIC | blake2b-128(key, bytes) | bytes`."""

    OVERHEAD = len(_MAGIC) + 16

    def __init__(self, directory: str, min_file_size: int = 0, pickle_protocol: int = 0) -> None:
        """Take diskcache's arguments; a planted setting of another name is a TypeError."""
        super().__init__(directory)
        self.most_bytes = 2**33  # of a value
        self._root = Path(directory)
        self._now = threading.local()  # key and file of this thread's call: `fetch` is told neither

    def put(self, key: Any) -> tuple[str, bool]:
        """Return the database form of a key: the text itself."""
        if type(key) is not str:
            raise TypeError(f"a cache key is text, not {type(key).__name__}")
        self._now.key = key
        return key, True

    def get(self, key: Any, raw: Any) -> str:
        """Return the key of a row; refuses everything that is not plain text."""
        if raw != 1 or type(key) is not str:
            raise Damaged("its key is not plain text")
        return key

    def store(self, value: Any, read: bool, key: Any = UNKNOWN) -> tuple[int, int, str, None]:
        """Write the bytes to a new file; return size, mode and name for the row."""
        if type(value) is not bytes or read or type(key) is not str:
            raise TypeError(f"a cache value is bytes, not {type(value).__name__}")
        self._now.written, path = self.filename(key, value)
        size = self._write(path, iter((_MAGIC, _checksum(key, value), value)), "xb")
        return size, MODE_BINARY, self._now.written, None

    def undo(self) -> None:
        """Remove the value file that this thread wrote last (its row was not committed)."""
        self.remove(getattr(self._now, "written", None))

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes:
        """Return the bytes of a row; raises Damaged when anything differs from what `store` made."""
        if mode != MODE_BINARY or value is not None or read:
            raise Damaged(f"its mode is {mode!r:.20}, only plain bytes are read")
        path = self._inside(filename)
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > self.most_bytes + self.OVERHEAD:
            raise Damaged("its file is not a regular file of a possible size")
        raw = path.read_bytes()
        body = raw[self.OVERHEAD :]
        if raw[: self.OVERHEAD] != _MAGIC + _checksum(self._now.key, body):
            raise Damaged("its checksum does not match")
        return body

    def remove(self, file_path: Any) -> None:
        """Remove a value file; a name that `store` did not make is left alone."""
        with contextlib.suppress(Damaged):
            self._inside(file_path)
            super().remove(file_path)

    def _inside(self, name: Any) -> Path:
        if type(name) is not str or not _NAME.fullmatch(name):
            raise Damaged("its file name was not made by the cache")
        path = self._root / name
        if path.parent.resolve() != (self._root.resolve() / name).parent:
            raise Damaged("its file lies outside the cache")
        return path


def _checksum(key: str, body: bytes) -> bytes:
    tag = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16)
    tag.update(body)
    return tag.digest()


log = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_LIMIT = 4 * 2**30
EXPIRY = {"state": 30 * 86400.0}  # seconds; other kinds leave by eviction only
_POLL = 0.1  # seconds between two attempts at a lock that another thread or process holds
_BUSY = 5.0  # seconds to wait for a database that another process writes to
_RETRY = 30.0  # seconds before a folder that could not be opened is tried again
_FULL = 0.8  # share of the limit from which every write drops an old entry
_SETTINGS = {
    "eviction_policy": "least-recently-used",
    "cull_limit": 1,  # entries dropped per write; with more, the new one may be among them
    "statistics": 1,
    "tag_index": 1,
    "disk_min_file_size": 0,  # every value in its own file, where its checksum is
    "sqlite_mmap_size": 0,  # a mapped file that another process truncates is a SIGBUS
}


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One line of the listing; times are seconds since 1970."""

    key: str
    kind: str
    label: str
    bytes: int
    created: float
    used: float


class Cache:
    """Bytes by key, on disk, shared by threads and processes; `problem` says why it is off."""

    def __init__(self, folder: str | Path, limit_bytes: int = DEFAULT_LIMIT) -> None:
        """Open or create the cache in `folder`; never fails (see `problem`).

        The least recently used entries are dropped before values and database exceed `limit_bytes`
        (which may be changed later).
        """
        self.folder = Path(folder)
        self.limit_bytes = int(limit_bytes)
        self.problem: str | None = None
        self._db = self.folder / "db"
        self._retry_at = 0.0
        self._disk: Any = None
        self._setup = threading.Lock()
        self._do("open", self._sweep, None)

    def get(self, key: str) -> bytes | None:
        """Return the verified bytes of a key, or None; marks the entry as used."""

        def read(disk: Any) -> bytes | None:
            found: bytes | None = disk.get(key)
            if found is None and key in disk:
                log.warning("cache entry %s is damaged: computed again", key)
            return found

        return self._do("read", read, None)

    def has(self, key: str) -> bool:
        """True when an entry has this key (only `get` verifies its checksum)."""
        return self._do("read", lambda disk: key in disk, False)

    def put(self, key: str, raw: bytes, *, kind: str, label: str = "") -> bool:
        """Store bytes; returns False (and logs why) when that was not possible.

        Raises:
            TypeError: when the key is not a str or the value not bytes.
        """
        if not isinstance(key, str) or not isinstance(raw, bytes):
            raise TypeError("the cache stores bytes under text keys, nothing else")
        if len(raw) > self.limit_bytes:
            log.info("%s of %d bytes is above the limit, not cached", kind, len(raw))
            return False

        def write(disk: Any) -> bool:
            disk.reset("size_limit", int(self.limit_bytes * _FULL))
            try:
                disk.set(key, raw, expire=EXPIRY.get(kind), tag=_tag(kind, label))
            except BaseException:
                disk.disk.undo()
                raise
            if disk.volume() > self.limit_bytes:
                disk.cull()  # ten at a time, until it is no longer full
            return True

        return self._do("write", write, False)

    def get_or_make(
        self,
        key: str,
        make: Callable[[], bytes],
        *,
        kind: str,
        label: str = "",
        on_wait: Callable[[], None] | None = None,
    ) -> tuple[bytes, bool]:
        """Return the bytes of a key and whether they were stored already; else `make` them, once.

        While one thread or process makes a value, the others wait for it; if it dies or fails, the
        next one makes it. `on_wait` is called about ten times a second meanwhile and may raise
        (`Cancelled`) to give up. Errors of `make` pass through, and nothing is stored.
        """
        found = self.get(key)
        if found is not None:
            return found, True
        with self._single_flight(key, on_wait):
            found = self.get(key)
            if found is not None:
                return found, True
            raw = make()
            self.put(key, raw, kind=kind, label=label)
            return raw, False

    def try_lock(self, key: str) -> FileLock | None:
        """The lock under which `get_or_make` computes a key, or None while another one holds it.

        Where no lock file can be made, the lock that is returned is not held.
        """
        lock = self._lock(key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as exc:
            log.warning("cache: no lock between processes (%s)", _reason(exc))
        return lock

    def entries(self) -> list[CacheEntry]:
        """All entries, last used first."""
        none: list[CacheEntry] = []
        return sorted(self._do("list", self._rows, none), key=lambda e: -e.used)

    def size(self) -> int:
        """Bytes of all values together."""
        return sum(e.bytes for e in self.entries())

    def hits(self) -> tuple[int, int]:
        """Hits and misses since the cache was created."""
        return self._do("read", lambda disk: disk.stats(), (0, 0))

    def clear(self, kind: str | None = None, keys: Iterable[str] | None = None) -> int:
        """Remove entries by kind and/or key, or all; returns how many."""
        if kind is None and keys is None:  # by row, without reading keys: planted ones go too
            return self._do("clear", lambda disk: disk.clear(), 0)
        found = [e for e in self.entries() if kind in (None, e.kind)]
        if keys is None:
            tags = {_tag(e.kind, e.label) for e in found}
            return self._do("clear", lambda disk: sum(disk.evict(tag) for tag in tags), 0)
        chosen = {e.key for e in found} & set(keys)
        return self._do("clear", lambda disk: sum(disk.delete(key) for key in chosen), 0)

    def check(self) -> list[str]:
        """Return the keys whose value is missing or fails its checksum, and rows without a key."""

        def bad(disk: Any) -> list[str]:
            out = []
            for row in self._table():
                key = row["key"]
                if row["raw"] != 1 or type(key) is not str:
                    out.append(f"row {row['rowid']}")
                elif disk.get(key) is None and key in disk:
                    out.append(key)
            return out

        return self._do("check", bad, [])

    # --- the database, and what to do when it fails -----------------------------------------------

    def _do(self, what: str, work: Callable[[Any], T], otherwise: T) -> T:
        """Run one operation on the database; every failure is logged and gives `otherwise`.

        The connection is closed each time (1 ms against the seconds that an entry saves): none
        outlives its thread, and a deleted or replaced folder is noticed.
        """
        disk = None
        try:
            disk = self._open()
            return otherwise if disk is None else work(disk)
        except Exception as exc:  # flipped bytes surface as UnicodeDecodeError, TypeError, ...
            log.warning("cache: could not %s (%s)", what, _reason(exc))
            if _is_damage(exc):
                self._begin_again()
            return otherwise
        finally:
            if disk is not None:
                with contextlib.suppress(sqlite3.Error):
                    disk.close()

    def _open(self) -> Any:
        if self._disk is not None and (self._db / diskcache.core.DBNAME).exists():
            return self._disk
        with self._setup:
            if time.monotonic() < self._retry_at:
                return None
            try:
                self._disk = self._connect()
                self.problem = None
            except Exception as exc:
                self._disk, self._retry_at = None, time.monotonic() + _RETRY
                self.problem = f"The cache in {self.folder.name}/ is off: {_reason(exc)}."
                log.warning("%s Work continues without it.", self.problem)
            return self._disk

    def _connect(self) -> Any:
        settings = {**_SETTINGS, "size_limit": int(self.limit_bytes * _FULL)}
        for attempt in (1, 2):
            for folder in (self.folder, self._db):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if os.name == "posix" and folder.stat().st_mode & 0o077:
                    folder.chmod(0o700)
            try:
                disk = diskcache.Cache(str(self._db), timeout=_BUSY, disk=BytesDisk, **settings)
                disk.disk.most_bytes = max(self.limit_bytes, 2**20)
                return disk
            except Exception as exc:  # a planted Settings table can raise anything
                if attempt == 2 or not _is_damage(exc):
                    raise
                self._begin_again()

    def _begin_again(self) -> None:
        """Move a damaged database aside; the next operation begins a new one."""
        log.warning("the cache's database is damaged; starting a new one")
        self._disk = None
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder / "damaged", ignore_errors=True)
            self._db.rename(self.folder / "damaged")

    def _table(self) -> list[dict[str, Any]]:
        """The table, read directly: diskcache lists keys only, and decodes them."""
        path = (self._db / diskcache.core.DBNAME).resolve().as_uri()
        with contextlib.closing(sqlite3.connect(f"{path}?mode=ro", uri=True, timeout=_BUSY)) as con:
            con.row_factory = sqlite3.Row
            return [dict(row) for row in con.execute("SELECT * FROM Cache").fetchall()]

    def _rows(self, _disk: Any) -> list[CacheEntry]:
        out = []
        for row in self._table():
            numbers = row["size"], row["store_time"], row["access_time"]
            if type(row["key"]) is str and all(isinstance(n, (int, float)) for n in numbers):
                payload = max(0, int(numbers[0]) - BytesDisk.OVERHEAD)
                out.append(CacheEntry(row["key"], *_read_tag(row["tag"]), payload, *numbers[1:]))
        return out

    def _sweep(self, disk: Any) -> None:
        """Remove entries beyond limit and expiry, and what killed processes left."""
        disk.cull()
        for path in (self.folder / "locks").glob("*.lock"):
            remove_if_free(path)
        known = {row["filename"] for row in self._table()}
        for file in self._db.glob("??/??/*.val"):
            old = time.time() - file.lstat().st_mtime > 86400  # a younger one may get its row yet
            if old and file.relative_to(self._db).as_posix() not in known:
                file.unlink(missing_ok=True)

    def _lock(self, key: str) -> FileLock:
        return file_lock(self.folder / "locks" / f"{digest(key.encode()).split(':')[1]}.lock")

    @contextlib.contextmanager
    def _single_flight(self, key: str, on_wait: Callable[[], None] | None) -> Iterator[None]:
        """Hold the key's file lock; continues without one if no lock file can be made."""
        lock = self._lock(key)
        wait = on_wait or (lambda: None)
        try:
            lock.acquire(poll_interval=_POLL, cancel_check=lambda: bool(wait()))
        except OSError as exc:
            log.warning("cache: no lock between processes (%s)", _reason(exc))
        try:
            yield
        finally:
            if lock.is_locked:
                release(lock)


def _tag(kind: str, label: str) -> str:
    return json.dumps({"kind": kind, "label": label})


def _read_tag(tag: Any) -> tuple[str, str]:
    try:
        data = json.loads(tag)
        return str(data["kind"]), str(data["label"])
    except (TypeError, ValueError, KeyError):
        return "unknown", ""


def _is_damage(exc: BaseException | None) -> bool:
    """True for a database that will never open again; False for busy, full or forbidden."""
    if isinstance(exc, diskcache.Timeout):
        exc = exc.__context__
    if isinstance(exc, sqlite3.Error):
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # none: Python's own
        return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return not isinstance(exc, OSError)


def _reason(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno)
    return f"{type(exc).__name__}: {exc.__context__ or exc}"
