"""The cache of what can be computed again: LoRAs, inverted latents, features. Bytes only.

diskcache keeps the entries and evicts the least recently used; this module takes away what makes it
unsafe or brittle. diskcache 5.6.3 unpickles whatever lies in its folder (CVE-2025-69872, JSONDisk
too): `BytesDisk` knows text keys and bytes and nothing else. Each value carries a checksum over key
and bytes. Whatever goes wrong is a miss and a line in the log: the work is then done without a
cache, which is slow and right.

    <folder>/db/       diskcache: cache.db and one .val file per entry
    <folder>/locks/    one lock file per key being computed
    <folder>/damaged/  the last database that could not be read
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache

from workbench.core.keys import digest
from workbench.storage.bytesdisk import BytesDisk, Damaged
from workbench.storage.locks import FileLock

log = logging.getLogger(__name__)

DEFAULT_LIMIT = 4 * 2**30
_POLL = 0.1  # seconds between two looks at a lock that another holds
_PATIENCE = 5.0  # seconds to wait for a database that another process is writing to
_RETRY = 30.0  # seconds before a folder that could not be opened is tried again
_ORPHAN_AGE = 24 * 3600.0
_SETTINGS = {
    "eviction_policy": "least-recently-used",
    "cull_limit": 0,  # its own culling drops ten entries at a time, the new one among them
    "statistics": 0,
    "tag_index": 0,
    "disk_min_file_size": 0,  # every value in a file of its own, so that sizes are exact
    "sqlite_mmap_size": 0,  # a mapped file that another process cuts short is a SIGBUS
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
        """Open or make the cache in `folder`; never fails (see `problem`).

        Above `limit_bytes` (values only) the entries that were not used for longest are dropped.
        """
        self.folder = Path(folder)
        self.limit_bytes = int(limit_bytes)
        self.problem: str | None = None
        self._db = self.folder / "db"
        self._retry_at = 0.0
        self._disk: Any = None
        self._suspect = False  # something was wrong inside: look through all of it when reopening
        self._setup = threading.Lock()
        self._keys: dict[str, tuple[threading.Lock, int]] = {}
        self._keys_guard = threading.Lock()
        with self._opened("open"):
            self._drop_orphans()

    def get(self, key: str) -> bytes | None:
        """The bytes stored under a key, checked, or None; marks the entry as used."""
        found: bytes | None = None
        with self._opened("read", key) as disk:
            if disk is not None:
                try:
                    found = disk.get(key)
                except Damaged as exc:
                    log.warning("cache entry %s is damaged (%s): computed again", key, exc)
                    disk.delete(key)
        return found

    def has(self, key: str) -> bool:
        """True when an entry is listed under the key (its checksum is only proved by `get`)."""
        return any(e.key == key for e in self._rows("AND key = ?", (key,)))

    def put(self, key: str, raw: bytes, *, kind: str, label: str = "") -> bool:
        """Store bytes; False (and a line in the log) when that was not possible.

        Raises:
            TypeError: when the key is no text or the value no bytes; nothing else is ever stored.
        """
        if not isinstance(key, str) or not isinstance(raw, bytes):
            raise TypeError("the cache holds bytes under text keys, nothing else")
        if len(raw) > self.limit_bytes:
            log.info(
                "%s is not cached: %d bytes, the limit is %d", kind, len(raw), self.limit_bytes
            )
            return False
        stored = False
        with self._opened("write", key) as disk:
            if disk is not None:
                tag = json.dumps({"kind": kind, "label": label})
                with disk.disk.undone_on_error():
                    disk.set(key, raw, tag=tag)
                stored = True
                self._evict(disk, keep=key)
        return stored

    def get_or_make(
        self,
        key: str,
        make: Callable[[], bytes],
        *,
        kind: str,
        label: str = "",
        on_wait: Callable[[], None] | None = None,
    ) -> tuple[bytes, bool]:
        """The bytes under a key and whether they were there already; else `make` them, once.

        While one thread or process makes a value, the others wait for it; if it dies or fails, the
        next one makes it. `on_wait` is called about ten times a second meanwhile and may raise
        (`Cancelled`) to give up. What `make` raises passes through, and nothing is stored.
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

    def entries(self) -> list[CacheEntry]:
        """All entries, last used first."""
        return sorted(self._rows(), key=lambda e: -e.used)

    def size(self) -> int:
        """Bytes of all values together."""
        return sum(e.bytes for e in self._rows())

    def clear(self, kind: str | None = None, keys: Iterable[str] | None = None) -> int:
        """Remove entries by kind and/or key, or all; the number of removed ones."""
        removed = 0
        chosen = None if keys is None else set(keys)
        entries = self._rows() if kind is not None or chosen is not None else []
        with self._opened("clear") as disk:
            if disk is None:
                return 0
            if kind is None and chosen is None:
                return int(disk.clear())  # by row, without a look at keys: planted ones go too
            for entry in entries:
                if kind in (None, entry.kind) and (chosen is None or entry.key in chosen):
                    removed += bool(disk.delete(entry.key))
        return removed

    def close(self) -> None:
        """Nothing stays open between two calls; here for symmetry."""

    def check(self) -> list[str]:
        """Keys whose value is missing or fails its checksum (`doctor` shows them)."""
        bad = []
        with self._opened("check") as disk:
            for entry in self._rows() if disk is not None else []:
                try:
                    if disk.get(entry.key) is None:
                        bad.append(entry.key)
                except Damaged:
                    bad.append(entry.key)
        return bad

    # --- opening, and what to do when that fails -------------------------------------------------

    @contextlib.contextmanager
    def _opened(self, what: str, key: str = "") -> Iterator[Any]:
        """The diskcache for one operation, or None; takes care of every way in which it can fail.

        Its connection is closed each time (1 ms against the seconds that an entry saves): none
        outlives its thread, and a folder deleted or replaced meanwhile is noticed.
        """
        disk = self._connect()
        try:
            yield disk
        except Exception as exc:  # flipped bytes surface as UnicodeDecodeError, TypeError, ...
            log.warning("cache: could not %s %s(%s)", what, f"{key} " if key else "", _reason(exc))
            if _is_damage(exc):
                self._disk, self._suspect = None, True
        finally:
            if disk is not None:
                with contextlib.suppress(sqlite3.Error):
                    disk.close()

    def _connect(self) -> Any:
        if self._disk is not None and (self._db / diskcache.core.DBNAME).exists():
            return self._disk
        if time.monotonic() < self._retry_at:
            return None
        with self._setup:
            try:
                self._disk = self._open_or_replace()
            except Exception as exc:
                self._retry_at = time.monotonic() + _RETRY
                self._disk = None
                self.problem = f"The cache in {self.folder.name}/ is off: {_reason(exc)}."
                log.warning("%s Work goes on without it.", self.problem)
                return None
            self.problem, self._suspect = None, False
            return self._disk

    def _open_or_replace(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._db.mkdir(exist_ok=True)
        for folder in (self.folder, self._db):
            if os.name == "posix" and folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
        try:
            return self._open()
        except Exception as exc:  # a planted Settings table can raise anything at all
            if not _is_damage(exc):
                raise
        # One process at a time may put a broken database aside, and only after a second look: the
        # one before it may have done so already.
        lock = FileLock(self.folder / "replace.lock")
        deadline = time.monotonic() + 10
        while not lock.try_acquire() and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            return self._open()
        except Exception as exc:
            if not _is_damage(exc):
                raise
            aside = self.folder / "damaged"
            shutil.rmtree(aside, ignore_errors=True)
            self._db.rename(aside)
            self._db.mkdir(mode=0o700)
            log.warning("the cache's database was damaged (%s); a new one is begun", _reason(exc))
            return self._open()
        finally:
            lock.release()

    def _open(self) -> Any:
        disk = diskcache.Cache(str(self._db), timeout=_PATIENCE, disk=BytesDisk, **_SETTINGS)
        disk.disk.most_bytes = max(self.limit_bytes, 2**20)
        if self._suspect:
            with contextlib.closing(self._read_only()) as con:
                if con.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
                    raise Damaged("its pages are damaged")
                con.execute("SELECT * FROM Cache").fetchall()
        return disk

    def _read_only(self) -> sqlite3.Connection:
        path = (self._db / diskcache.core.DBNAME).resolve().as_uri()
        return sqlite3.connect(f"{path}?mode=ro", uri=True, timeout=_PATIENCE)

    def _rows(self, where: str = "", args: tuple[Any, ...] = ()) -> list[CacheEntry]:
        """The listing straight from the table: diskcache's own would decode keys."""
        rows: list[CacheEntry] = []
        with self._opened("list") as disk:
            if disk is None:
                return rows
            sql = "SELECT key, tag, size, store_time, access_time FROM Cache WHERE raw = 1 "
            with contextlib.closing(self._read_only()) as con:
                found = con.execute(sql + where, args).fetchall()
            for key, tag, size, created, used in found:
                numbers = all(isinstance(n, (int, float)) for n in (size, created, used))
                if isinstance(key, str) and numbers:  # else planted: `get` deals with it
                    kind, label = _read_tag(tag)
                    payload = max(0, int(size) - BytesDisk.OVERHEAD)
                    rows.append(CacheEntry(key, kind, label, payload, created, used))
        return rows

    def _evict(self, disk: Any, keep: str) -> None:
        entries = self.entries()
        total = sum(e.bytes for e in entries)
        for entry in reversed(entries):
            if total <= self.limit_bytes:
                return
            if entry.key != keep:
                disk.delete(entry.key)
                total -= entry.bytes
                log.info("cache: dropped %s %s (%d bytes)", entry.kind, entry.key, entry.bytes)

    def _drop_orphans(self) -> None:
        """Remove value files that no row knows: a process killed between the two left them."""
        if self._disk is None:
            return
        with contextlib.closing(self._read_only()) as con:
            known = {name for (name,) in con.execute("SELECT filename FROM Cache")}
        for file in self._db.glob("??/??/*.val"):
            old = time.time() - file.lstat().st_mtime > _ORPHAN_AGE
            if old and file.relative_to(self._db).as_posix() not in known:
                file.unlink(missing_ok=True)

    # --- one computation per key -----------------------------------------------------------------

    @contextlib.contextmanager
    def _single_flight(self, key: str, on_wait: Callable[[], None] | None) -> Iterator[None]:
        """Hold the key's lock: among threads by a mutex, among processes by a file lock."""
        with self._keys_guard:
            mutex, users = self._keys.get(key, (threading.Lock(), 0))
            self._keys[key] = (mutex, users + 1)
        try:
            while not mutex.acquire(timeout=_POLL):
                if on_wait is not None:
                    on_wait()
            try:
                lock = self._file_lock(key, on_wait)
                try:
                    yield
                finally:
                    if lock is not None:
                        lock.release()
            finally:
                mutex.release()
        finally:
            with self._keys_guard:
                mutex, users = self._keys[key]
                if users == 1:
                    del self._keys[key]
                else:
                    self._keys[key] = (mutex, users - 1)

    def _file_lock(self, key: str, on_wait: Callable[[], None] | None) -> FileLock | None:
        """The file lock of a key once it is free; None where no lock file can be made."""
        folder = self.folder / "locks"
        lock = FileLock(folder / f"{digest(key.encode()).split(':')[1]}.lock")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            while not lock.try_acquire():
                if on_wait is not None:
                    on_wait()
                time.sleep(_POLL * (0.5 + secrets.randbelow(100) / 100))
        except OSError as exc:
            log.warning("cache: no lock between processes (%s)", _reason(exc))
            return None
        return lock


def _read_tag(tag: Any) -> tuple[str, str]:
    try:
        data = json.loads(tag)
        return str(data["kind"]), str(data["label"])
    except (TypeError, ValueError, KeyError):
        return "unknown", ""


def _cause(exc: BaseException) -> BaseException:
    """Behind diskcache's Timeout stands the database's own error."""
    if isinstance(exc, diskcache.Timeout) and isinstance(exc.__context__, sqlite3.Error):
        return exc.__context__
    return exc


def _is_damage(exc: BaseException) -> bool:
    """True for a database that will never open again; False for busy, full or forbidden."""
    exc = _cause(exc)
    if isinstance(exc, sqlite3.Error):
        code = getattr(exc, "sqlite_errorcode", None)
        if code is None:  # raised by the Python layer: wrong number of columns and the like
            return True
        return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return not isinstance(exc, (OSError, diskcache.Timeout))


def _reason(exc: BaseException) -> str:
    exc = _cause(exc)
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno)
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
