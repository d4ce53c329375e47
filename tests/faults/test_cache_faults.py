"""Whatever lies in the cache's folder, nothing of it runs and no damage is served.

docs/faults.md 25 and 27.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import diskcache
import pytest
from cache_tools import Bomb, sql, still_works, value_file

from workbench.storage.cache import BytesDisk, Cache, Damaged


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "derived", limit_bytes=1_000_000)
    cache.put("kept", b"kept value", kind="lora", label="robot")
    cache.put("k", b"true value", kind="lora", label="robot")
    return cache


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
    assert cache.check() == ["row 3"]
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
        path.write_bytes(new.get(damage, b"NOPE" + raw[4:]))
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


def test_fault_27_a_sparse_giant_is_not_read_into_memory(cache: Cache) -> None:
    with value_file(cache).open("r+b") as file:
        file.truncate(200 * 2**30)
    assert cache.get("k") is None
    still_works(cache)
