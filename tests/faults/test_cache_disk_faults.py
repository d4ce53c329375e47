"""Garbage database, full disk, no rights, no folder: the work goes on without a cache.

docs/faults.md 28 and 29.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import diskcache
import pytest
from cache_tools import sql, value_file

from workbench.storage.cache import Cache

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "derived", limit_bytes=1_000_000)
    cache.put("kept", b"kept value", kind="lora", label="robot")
    cache.put("k", b"true value", kind="lora", label="robot")
    return cache


# --- 28: the database is garbage ---------------------------------------------------------------------


@pytest.mark.parametrize("garbage", ["noise", "empty", "text", "half", "other", "no tables"])
def test_fault_28_a_garbage_database_is_put_aside(
    cache: Cache, garbage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache.folder / "db" / "cache.db"
    sql(cache, "PRAGMA wal_checkpoint(TRUNCATE)")
    raw = path.read_bytes()
    if garbage in ("other", "no tables"):
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as con, con:
            if garbage == "other":
                con.execute("CREATE TABLE Cache(a, b)")
    else:
        noise = bytes(i * 37 % 251 for i in range(len(raw)))
        contents = {"noise": noise, "empty": b"", "text": b"hello", "half": raw[: len(raw) // 2]}
        path.write_bytes(contents[garbage])
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_make("k", lambda: b"new", kind="lora") == (b"new", False)
        assert cache.get_or_make("k", lambda: b"never", kind="lora") == (b"new", True)
    assert cache.problem is None
    if garbage in ("noise", "text", "half"):
        assert "damaged" in caplog.text
        assert (cache.folder / "damaged" / "cache.db").exists()


def test_fault_28_the_premise_garbage_is_no_operational_error(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        diskcache.Cache(str(tmp_path))
    assert not isinstance(caught.value, sqlite3.OperationalError)


def test_fault_28_a_busy_database_is_not_called_damaged(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diskcache tries for a minute to open a busy database: a clock a hundred times as fast is enough."""
    begun = time.time()
    fast = types.SimpleNamespace(time=lambda: begun + 100 * (time.time() - begun), sleep=time.sleep)
    monkeypatch.setattr(diskcache.core, "time", fast)
    with contextlib.closing(sqlite3.connect(cache.folder / "db" / "cache.db")) as con:
        con.execute("BEGIN EXCLUSIVE")
        cache._disk._timeout = 0.2
        monkeypatch.setattr("workbench.storage.cache._BUSY", 0.2)
        assert cache.get("k") is None
        assert cache.get_or_make("k", lambda: b"by hand", kind="lora") == (b"by hand", False)
        con.execute("ROLLBACK")
    assert not (cache.folder / "damaged").exists()
    cache._retry_at = 0.0
    assert cache.get("k") == b"true value"


def test_fault_28_every_flipped_byte_of_the_database_is_survived(cache: Cache) -> None:
    """Flip bytes all over the file: never an exception, never a wrong value."""
    path = cache.folder / "db" / "cache.db"
    sql(cache, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        found, _hit = cache.get_or_make("k", lambda: b"true value", kind="lora")
        assert found == b"true value"
        cache.entries()
        fresh, _hit = cache.get_or_make(f"fresh {at}", lambda: b"fresh", kind="k")
        assert fresh == b"fresh"
        assert cache.get(f"fresh {at}") == b"fresh"  # it heals within one operation


# --- 29: no room, no rights, no folder ----------------------------------------------------------------


def test_fault_29_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "derived").write_text("I am a file")
    cache = Cache(tmp_path / "derived")
    assert cache.problem is not None
    assert cache.get("k") is None
    assert not cache.put("k", b"x", kind="k")
    assert cache.get_or_make("k", lambda: b"made", kind="k") == (b"made", False)
    assert (cache.entries(), cache.size(), cache.clear(), cache.check()) == ([], 0, 0, [])
    assert (tmp_path / "derived").read_text() == "I am a file"


def test_fault_29_it_comes_back_when_the_cause_is_gone(tmp_path: Path) -> None:
    (tmp_path / "derived").write_text("I am a file")
    cache = Cache(tmp_path / "derived")
    (tmp_path / "derived").unlink()
    cache._retry_at = 0.0
    assert cache.get_or_make("k", lambda: b"made", kind="k") == (b"made", False)
    assert cache.get("k") == b"made"
    assert cache.problem is None


@pytest.mark.parametrize("what", ["all", "db", "cache.db"])
def test_fault_29_the_folder_vanishes_while_in_use(cache: Cache, what: str) -> None:
    import shutil

    gone = {"all": cache.folder, "db": cache.folder / "db"}.get(what)
    if gone:
        shutil.rmtree(gone)
    else:
        (cache.folder / "db" / "cache.db").unlink()
    assert cache.get("k") is None
    assert cache.get_or_make("k", lambda: b"new", kind="lora") == (b"new", False)
    assert cache.get_or_make("k", lambda: b"never", kind="lora") == (b"new", True)


def test_fault_29_a_read_only_folder() -> None:
    """In a process without root's rights: the job is done, nothing raises."""
    code = """
import os, sys
from workbench.storage.cache import Cache
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
cache = Cache(sys.argv[1])
assert cache.get_or_make("k", lambda: b"made", kind="k")[0] in (b"made", b"stored")
assert cache.get_or_make("new", lambda: b"made", kind="k") == (b"made", False)
assert not cache.put("new", b"x", kind="k")
print("worked", bool(cache.problem))
"""
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: another user cannot walk to it
        folder = Path(name) / "derived"
        Cache(folder).put("k", b"stored", kind="k")
        tree = [Path(name), folder, *folder.rglob("*")]
        for path in tree:
            path.chmod(0o555 if path.is_dir() else 0o444)
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=REPO
        )
        for path in tree:
            path.chmod(0o700 if path.is_dir() else 0o600)
    assert done.stdout.strip() == "worked True", done.stderr


def test_fault_29_the_disk_fills_while_a_value_is_written(cache: Cache) -> None:
    """The limit on file size stands for the full disk: the write fails half-way, in the system."""
    code = """
import resource, signal, sys
from workbench.storage.cache import Cache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = Cache(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
assert cache.get_or_make("k2", lambda: b"v" * 900_000, kind="k") == (b"v" * 900_000, False)
assert not cache.has("k2")
assert cache.get("kept") == b"kept value"
assert cache.put("small", b"v", kind="k")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache.folder)], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 0, done.stderr
    assert "could not write" in done.stderr
    known = {value_file(cache, e.key) for e in cache.entries()}
    assert set(cache.folder.rglob("*.val")) == known  # no half file stays behind
    assert len(known) == 3


@pytest.mark.parametrize("when", ["INSERT", "BEGIN", "COMMIT", "UPDATE", "SELECT", "PRAGMA"])
def test_fault_29_a_full_disk_inside_the_database(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> Any:
            if statement.lstrip().startswith(when):
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return super().execute(statement, *args)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "factory": Full}))
        if when == "PRAGMA":
            cache._disk = None  # it is full while the cache is being opened
        assert cache.get_or_make("new", lambda: b"made", kind="k")[0] == b"made"
    assert not (cache.folder / "damaged").exists()
    cache._retry_at = 0.0
    assert cache.get("kept") == b"kept value"
    known = {value_file(cache, e.key) for e in cache.entries()}
    assert set(cache.folder.rglob("*.val")) == known
