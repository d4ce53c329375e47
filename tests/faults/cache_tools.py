"""What the tests of the cache's faults share: looking into its database and files."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from workbench.storage.cache import Cache


class Bomb:
    """Unpickling it makes a file: the proof that something was executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def sql(cache: Cache, statement: str, *args: Any) -> list[Any]:
    with contextlib.closing(sqlite3.connect(cache.folder / "db" / "cache.db")) as con, con:
        return con.execute(statement, args).fetchall()


def value_file(cache: Cache, key: str = "k") -> Path:
    ((name,),) = sql(cache, "SELECT filename FROM Cache WHERE key = ?", key)
    return cache.folder / "db" / str(name)


def still_works(cache: Cache) -> None:
    """The next good job succeeds: compute, store, hit; and the other entry is untouched."""
    assert cache.get_or_make("k", lambda: b"new", kind="lora") == (b"new", False)
    assert cache.get_or_make("k", lambda: b"never", kind="lora") == (b"new", True)
    assert cache.get("kept") == b"kept value"
