"""FAULTS 25, 27-29, 31 and 32: whatever happens to the cache's folder, the work goes on.

Numbers in the names are the rows of the fault list (docs/faults.md).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diskcache
import pytest

from workbench.bytesdisk import BytesDisk, Damaged
from workbench.cache import Cache

REPO = Path(__file__).resolve().parents[2]


class Bomb:
    """Unpickling it makes a file: the proof that something was executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "derived", limit_bytes=1_000_000)
    cache.put("kept", b"kept value", kind="lora", label="robot")
    cache.put("k", b"true value", kind="lora", label="robot")
    return cache


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


# --- 25: what was planted is never executed ----------------------------------------------------


def test_fault_25_jsondisk_would_execute_a_planted_row(tmp_path: Path) -> None:
    """The premise: diskcache's own safe-looking choice runs what it finds (CVE-2025-69872)."""
    mark = tmp_path / "executed"
    stock = diskcache.Cache(str(tmp_path / "stock"), disk=diskcache.JSONDisk)
    stock["k"] = 1
    with contextlib.closing(sqlite3.connect(tmp_path / "stock" / "cache.db")) as con, con:
        con.execute(
            "UPDATE Cache SET mode = 4, filename = NULL, value = ?", (pickle.dumps(Bomb(mark)),)
        )
    with contextlib.suppress(Exception):
        stock.get("k")
    stock.close()
    assert mark.exists()


@pytest.mark.parametrize("mode", [1, 2, 3, 4, None, "4", 99])
def test_fault_25_a_planted_value_is_a_miss(cache: Cache, tmp_path: Path, mode: Any) -> None:
    mark = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(mark))
    sql(cache, "UPDATE Cache SET mode=?, filename=NULL, value=? WHERE key='k'", mode, bomb)
    assert cache.get("k") is None
    assert not mark.exists()
    still_works(cache)


def test_fault_25_a_planted_pickle_file_is_a_miss(cache: Cache, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    value_file(cache).write_bytes(pickle.dumps(Bomb(mark)))
    sql(cache, "UPDATE Cache SET mode = 4 WHERE key = 'k'")
    assert cache.get("k") is None
    assert not mark.exists()
    still_works(cache)


def test_fault_25_a_planted_pickled_key_is_neither_listed_nor_executed(
    cache: Cache, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    sql(
        cache,
        "INSERT INTO Cache(key, raw, store_time, access_time, size, mode, filename, value)"
        " VALUES (?, 0, 0, 0, 5, 4, NULL, ?)",
        pickle.dumps(Bomb(mark)),
        pickle.dumps(Bomb(mark)),
    )
    assert sorted(e.key for e in cache.entries()) == ["k", "kept"]
    assert cache.check() == []
    assert cache.clear(kind="nothing") == 0
    assert cache.get("k") == b"true value"
    assert cache.clear() == 3
    assert not mark.exists()
    assert cache.entries() == []


@pytest.mark.parametrize(
    "name",
    ["../../secret.val", "/etc/hostname", "ab/cd/../../../../secret.val", "cache.db", "", 7, b"x"],
)
def test_fault_25_a_planted_file_name_is_neither_read_nor_removed(
    cache: Cache, tmp_path: Path, name: Any
) -> None:
    secret = tmp_path / "secret.val"
    secret.write_bytes(b"WBC1" + bytes(16) + b"secret")
    sql(cache, "UPDATE Cache SET filename = ? WHERE key = 'k'", name)
    assert cache.get("k") is None
    sql(cache, "UPDATE Cache SET filename = ? WHERE key = 'kept'", name)
    cache.clear()
    assert secret.exists()
    assert (cache.folder / "db" / "cache.db").exists()
    assert cache.get_or_make("k", lambda: b"new", kind="lora") == (b"new", False)


def test_fault_25_a_row_cannot_point_at_another_entry(cache: Cache) -> None:
    ((name,),) = sql(cache, "SELECT filename FROM Cache WHERE key = 'kept'")
    sql(cache, "UPDATE Cache SET filename = ? WHERE key = 'k'", name)
    assert cache.get("k") is None


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_fault_25_only_regular_files_are_read(cache: Cache, tmp_path: Path, kind: str) -> None:
    path = value_file(cache)
    good = tmp_path / "elsewhere"
    path.rename(good)
    if kind == "link":
        path.symlink_to(good)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert cache.get("k") is None
    still_works(cache)


def test_fault_25_a_linked_folder_leads_nowhere(cache: Cache, tmp_path: Path) -> None:
    path = value_file(cache)
    shard = path.parent.parent
    shard.rename(tmp_path / "outside")
    shard.symlink_to(tmp_path / "outside")
    assert cache.get("k") is None
    assert list((tmp_path / "outside").rglob("*.val"))  # nor is anything removed there


def test_fault_25_planted_settings_open_a_fresh_cache(cache: Cache, tmp_path: Path) -> None:
    for key, value in (("disk_wild", 1), ("close", 2), ("eviction_policy", "none")):
        sql(cache, "INSERT OR REPLACE INTO Settings VALUES (?, ?)", key, value)
    again = Cache(cache.folder)
    assert again.get_or_make("k", lambda: b"new", kind="lora")[0] in (b"new", b"true value")
    assert again.get_or_make("k", lambda: b"never", kind="lora")[1]


def test_fault_25_the_disk_refuses_by_itself(tmp_path: Path) -> None:
    disk = BytesDisk(str(tmp_path))
    for value, read in (("text", False), (b"x", True), ({"a": 1}, False)):
        with pytest.raises(TypeError):
            disk.store(value, read, key="k")
    with pytest.raises(Damaged):
        disk.get(pickle.dumps("k"), False)
    with pytest.raises(Damaged):
        disk.get(b"k", True)


# --- 27: damaged and missing values ---------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "deleted", "flipped", "longer", "header"])
def test_fault_27_a_damaged_value_is_a_miss_and_made_again(
    cache: Cache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = value_file(cache)
    raw = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        flipped = raw[:-1] + bytes([raw[-1] ^ 1])
        new = {"cut": raw[:-3], "empty": b"", "flipped": flipped, "longer": raw + b"x"}
        path.write_bytes(new.get(damage, b"XXXX" + raw[4:]))
    with caplog.at_level(logging.WARNING):
        assert cache.get("k") is None
    assert "k" in caplog.text
    assert "damaged" in caplog.text
    still_works(cache)


def test_fault_27_diskcache_alone_would_return_the_truncated_value(tmp_path: Path) -> None:
    """The premise: without our checksum a cut file is served as if it were whole."""
    stock = diskcache.Cache(str(tmp_path / "stock"), disk_min_file_size=0)
    stock["k"] = b"0123456789"
    (file,) = (tmp_path / "stock").rglob("*.val")
    file.write_bytes(b"0123")
    assert stock["k"] == b"0123"
    stock.close()


def test_fault_27_a_sparse_giant_is_not_read_into_memory(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    with value_file(cache).open("r+b") as file:
        file.truncate(200 * 2**30)
    assert cache.get("k") is None
    assert "no regular file of a possible size" in caplog.text
    still_works(cache)


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
    with contextlib.closing(sqlite3.connect(cache.folder / "db" / "cache.db")) as con:
        con.execute("BEGIN EXCLUSIVE")
        cache._disk._timeout = 0.2
        monkeypatch.setattr("workbench.cache._PATIENCE", 0.2)
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
from workbench.cache import Cache
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


def test_fault_29_enospc_at_every_write_of_a_value(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full at the n-th write, for every n until all writes succeed."""
    write = os.write
    for nth in range(1, 20):
        calls = []

        def full(fd: int, raw: Any, nth: int = nth, calls: list[int] = calls) -> int:
            calls.append(1)
            if len(calls) == nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(fd, raw[:1000])  # short writes too

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            made = cache.get_or_make(f"n{nth}", lambda: b"v" * 5000, kind="k")
        assert made == (b"v" * 5000, False)
        stored = len(calls) < nth
        assert cache.get(f"n{nth}") == (b"v" * 5000 if stored else None)
        known = {value_file(cache, e.key) for e in cache.entries()}
        assert set(cache.folder.rglob("*.val")) == known  # no half file stays behind
        if stored:
            break
        assert "No space left" in caplog.text
        caplog.clear()
    assert nth > 3
    assert cache.get("kept") == b"kept value"


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


# --- 31: two processes -------------------------------------------------------------------------------

WORKER = """
import pathlib, sys, time
from workbench.cache import Cache
folder, log, seconds = sys.argv[1:4]
def make():
    with open(log, "a") as file:
        file.write("made\\n")
    time.sleep(float(seconds))
    return b"v" * 100_000
cache = Cache(folder)
print("ready", flush=True)
sys.stdin.readline()
value, hit = cache.get_or_make("k", make, kind="lora")
assert value == b"v" * 100_000
print("hit" if hit else "made", flush=True)
"""


def start(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(log), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out.strip()


def test_fault_31_two_processes_compute_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(tmp_path / "derived", log, 0.5) for _ in range(3)]
    for process in processes:
        go(process)
    assert sorted(end(p) for p in processes) == ["hit", "hit", "made"]
    assert log.read_text() == "made\n"


def test_fault_31_the_holder_is_killed_and_the_other_proceeds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    holder, other = start(tmp_path / "derived", log, 60), start(tmp_path / "derived", log, 0)
    go(holder)
    while not log.exists():
        time.sleep(0.01)
    go(other)
    time.sleep(0.3)
    assert other.poll() is None  # it waits for the holder
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert end(other) == "made"
    assert log.read_text() == "made\nmade\n"


def test_fault_31_diskcaches_own_lock_would_stay_held(tmp_path: Path) -> None:
    """The premise: its lock is a row, and a row does not notice that its writer was killed."""
    code = (
        "import diskcache, os, sys, signal;"
        "c = diskcache.Cache(sys.argv[1]); diskcache.Lock(c, 'l').acquire();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    cache = diskcache.Cache(str(tmp_path))
    assert diskcache.Lock(cache, "l").locked()
    cache.close()


# --- 32: eviction while a job runs --------------------------------------------------------------------


def test_fault_32_eviction_during_a_job_changes_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "derived", limit_bytes=1_000_000)
    noise = Cache(tmp_path / "derived", limit_bytes=1_000_000)

    def stage(name: str) -> bytes:
        raw, _hit = cache.get_or_make(name, lambda: name.encode() * 100_000, kind="k")
        for i in range(3):  # another job fills the cache in between
            noise.put(f"noise {name} {i}", bytes(400_000), kind="k")
        return raw

    for _round in range(2):
        for name in "abc":
            assert stage(name) == name.encode() * 100_000
    assert cache.size() <= 1_000_000
