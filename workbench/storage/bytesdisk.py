"""diskcache's storage layer with bytes as its only type, and nothing unpickled, ever.

A row of diskcache's table says how its value is to be read (mode) and where it lies (filename), and
the stock `Disk` believes both. This one believes neither: the mode must be "binary file", the name
must have the form that it gives itself, the file must be a regular file inside the folder, and the
bytes must match a checksum that covers the key as well, so that a row cannot point at another
entry's file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_BINARY, UNKNOWN

_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")
_MAGIC = b"WBC1"


class Damaged(Exception):
    """The entry is not what was stored; the text says in which way."""


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Text keys, bytes values, each in a file `MAGIC | blake2b-128(key, bytes) | bytes`."""

    OVERHEAD = len(_MAGIC) + 16

    def __init__(self, directory: str, min_file_size: int = 0, pickle_protocol: int = 0) -> None:
        """Take diskcache's arguments; a planted setting of another name is a TypeError."""
        super().__init__(directory, min_file_size=0, pickle_protocol=0)
        self.most_bytes = 2**33
        self._root = Path(directory)
        self._key = threading.local()

    def put(self, key: Any) -> tuple[str, bool]:
        """Database form of a key: the text itself."""
        if type(key) is not str:
            raise TypeError(f"a cache key is text, not {type(key).__name__}")
        self._key.now = key
        return key, True

    def get(self, key: Any, raw: Any) -> str:
        """Key from its database form; what is not plain text is refused, not unpickled."""
        if raw != 1 or type(key) is not str:
            raise Damaged("its key is not plain text")
        return key

    def store(
        self, value: Any, read: bool, key: Any = UNKNOWN
    ) -> tuple[int, int, str | None, None]:
        """Write the bytes to a new file; (size, mode, relative name, None) for the row."""
        if type(value) is not bytes or read or type(key) is not str:
            raise TypeError(f"a cache value is bytes, not {type(value).__name__}")
        token = secrets.token_hex(16)
        name = f"{token[:2]}/{token[2:4]}/{token[4:]}.val"
        path = self._root / name
        self._key.written = path
        raw = _MAGIC + _check(key, value) + value
        for attempt in range(5):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
            except FileNotFoundError:  # another process has just removed the empty folder
                if attempt == 4:
                    raise
                continue
            try:
                view = memoryview(raw)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
            break
        return len(raw), MODE_BINARY, name, None

    @contextlib.contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Remove the value file written inside the block when the block fails."""
        self._key.written = None
        try:
            yield
        except BaseException:
            if self._key.written is not None:
                with contextlib.suppress(OSError):
                    self._key.written.unlink()
            raise

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes:
        """The bytes of a row.

        Raises:
            Damaged: when mode, name, file or checksum is not as `store` made it.
        """
        if mode != MODE_BINARY or value is not None or read:
            raise Damaged(f"its mode is {mode!r:.20}, only plain bytes are read")
        path = self._inside(filename)
        try:
            fd = os.open(path, os.O_RDONLY | _CAREFUL | _BINARY)
        except OSError as exc:
            raise Damaged(f"its file cannot be opened: {os.strerror(exc.errno or 0)}") from exc
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size > self.most_bytes + self.OVERHEAD:
                raise Damaged("its file is no regular file of a possible size")
            raw = file.read()
        body = raw[self.OVERHEAD :]
        if raw[: len(_MAGIC)] != _MAGIC or raw[len(_MAGIC) : self.OVERHEAD] != _check(
            self._key.now, body
        ):
            raise Damaged("its checksum does not match")
        return body

    def remove(self, file_path: Any) -> None:
        """Remove a value file; a name that is not ours is left alone, wherever it points."""
        with contextlib.suppress(Damaged, OSError):
            path = self._inside(file_path)
            path.unlink()
            os.removedirs(path.parent)

    def _inside(self, name: Any) -> Path:
        if type(name) is not str or not _NAME.fullmatch(name):
            raise Damaged("its file name is not one that the cache gives")
        path = self._root / name
        if not path.parent.resolve().is_relative_to(self._root.resolve()):
            raise Damaged("its file lies outside the cache")
        return path


_BINARY = getattr(os, "O_BINARY", 0)
_CAREFUL = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)  # no pipe, no link


def _check(key: str, body: bytes) -> bytes:
    tag = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16)
    tag.update(body)
    return tag.digest()
