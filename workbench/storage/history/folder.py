"""A folder of sealed JSON files, one per id, read again only where something changed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from workbench.core.errors import BadInput, StoreError
from workbench.storage.files import sync_folder, write_atomic
from workbench.storage.history.format import seal, unseal
from workbench.storage.ulid import is_ulid

log = logging.getLogger(__name__)
T = TypeVar("T")

_MOST_BYTES = 32 * 2**20  # a record is some 10 kB; a larger "record" was not written by us
_TICK = 100_000_000  # ns
_FILE = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\.json")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is there and cannot be read, and why."""

    name: str  # relative to the history folder
    reason: str


@dataclass(frozen=True, slots=True)
class _Seen(Generic[T]):
    stamp: tuple[int, int, int] | None  # None: read too soon after its writing to be sure of it
    value: T | Unreadable


class JsonFolder(Generic[T]):
    """`<folder>/<ULID>.json`, each parsed once per change; safe to share between threads."""

    def __init__(self, folder: Path, temp: Path, parse: Callable[[str, dict[str, Any]], T]) -> None:
        """`parse(id, data)` makes the value and raises `BadInput` where it cannot."""
        self.folder = folder
        self._temp = temp
        self._parse = parse
        self._seen: dict[str, _Seen[T]] = {}
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """Where an id's file lies.

        Raises:
            BadInput: when the id has not the form of one; no other text ever reaches the disk.
        """
        if not is_ulid(name):
            raise BadInput(f"{name!r:.60} is no id of the history; an id has 26 characters.")
        return self.folder / f"{name}.json"

    def load(self) -> dict[str, T]:
        """All readable values by id."""
        seen = self._scan()
        return {k: s.value for k, s in seen.items() if not isinstance(s.value, Unreadable)}

    def unreadable(self) -> list[Unreadable]:
        """All files that cannot be read, by name."""
        values = (s.value for _, s in sorted(self._scan().items()))
        return [v for v in values if isinstance(v, Unreadable)]

    def ids(self) -> list[str]:
        """All ids, readable or not, oldest first; no file is opened."""
        try:
            return sorted(e.name[:-5] for e in os.scandir(self.folder) if _FILE.fullmatch(e.name))
        except FileNotFoundError:
            return []

    def one(self, name: str) -> T:
        """The value of one id.

        Raises:
            BadInput: when there is none.
            StoreError: when its file cannot be read.
        """
        path = self.path(name)
        with self._lock:
            try:
                value = self._look(path).value
            except OSError as exc:
                self._seen.pop(name, None)
                raise BadInput(f"There is no {path.parent.name[:-1]} {name} here.") from exc
        if isinstance(value, Unreadable):
            raise StoreError(f"{value.name} cannot be read: {value.reason}")
        return value

    def write(self, name: str, data: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Seal and write; False when the id exists and `overwrite` is False.

        Raises:
            BadInput: for data that JSON does not know.
            StoreError: when the disk refuses.
        """
        return write_atomic(self.path(name), seal(data), temp=self._temp, overwrite=overwrite)

    def remove(self, name: str) -> None:
        """Remove an id's file if it is there.

        Raises:
            StoreError: when the disk refuses.
        """
        try:
            self.path(name).unlink(missing_ok=True)
            sync_folder(self.folder)
        except OSError as exc:
            raise StoreError(f"{name}.json could not be removed ({exc.strerror}).") from exc
        with self._lock:
            self._seen.pop(name, None)

    def texts(self) -> list[str]:
        """The raw text of every file, readable or not (to see what still refers to a blob)."""
        paths = (self.folder / f"{name}.json" for name in self.ids())
        return [p.read_text(encoding="utf-8", errors="replace") for p in paths if p.exists()]

    def _scan(self) -> dict[str, _Seen[T]]:
        with self._lock:
            current: dict[str, _Seen[T]] = {}
            for name in self.ids():
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    current[name] = self._look(self.folder / f"{name}.json")
            self._seen = current
            return dict(current)

    def _look(self, path: Path) -> _Seen[T]:
        name = path.stem
        info = path.stat()
        stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
        known = self._seen.get(name)
        if known is None or known.stamp != stamp:
            # Two writes within one tick of the file system's clock have the same time, and an inode
            # is soon used again: a file this young is read once more the next time (as git does).
            young = abs(time.time_ns() - info.st_mtime_ns) < _TICK
            known = _Seen(None if young else stamp, self._read(path, info.st_size))
            self._seen[name] = known
            if isinstance(known.value, Unreadable):
                log.warning("%s cannot be read: %s", known.value.name, known.value.reason)
        return known

    def _read(self, path: Path, size: int) -> T | Unreadable:
        where = f"{path.parent.name}/{path.name}"
        if size > _MOST_BYTES:
            return Unreadable(where, f"It has {size} bytes; no file of ours is that large.")
        try:
            return self._parse(path.stem, unseal(path.read_bytes(), path.parent.name))
        except FileNotFoundError:
            raise
        except OSError as exc:
            return Unreadable(where, f"The disk refuses it ({exc.strerror}).")
        except BadInput as exc:
            return Unreadable(where, str(exc))
