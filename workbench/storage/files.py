"""Files that are either all there or not there at all.

Every write goes to a temporary file of its own, is flushed to the disk, and is then given its name
in one step; last, the folder itself is flushed, because on POSIX systems a name is only durable
once its folder is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from pathlib import Path

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
            "free some disk space or check the folder's permissions, and try again."
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
