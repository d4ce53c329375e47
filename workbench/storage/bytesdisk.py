"""diskcache storage for text keys and bytes values; nothing is ever unpickled.

A row of diskcache's table says how its value is read (mode) and where it lies (filename); the stock
`Disk` believes both and unpickles what it finds (CVE-2025-69872, JSONDisk too). `BytesDisk` accepts
one mode and the file names that it makes, reads regular files inside the folder only, and verifies
a checksum over key and bytes, so a row cannot point at another entry's file.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import stat
import threading
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_BINARY, UNKNOWN

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
