"""The cache when all is well: what goes in comes out, oldest go first, each value is made once."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import diskcache
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import HANG

from workbench.core.errors import Cancelled
from workbench.storage.cache import Cache, CacheEntry


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "derived", limit_bytes=1_000_000)


def test_bytes_go_in_and_come_out(cache: Cache) -> None:
    assert cache.get("a") is None
    assert cache.put("a", b"\x00\xffone", kind="lora", label="robot")
    assert cache.get("a") == b"\x00\xffone"
    assert cache.has("a")
    assert not cache.has("b")
    cache.put("a", b"two", kind="lora")
    assert cache.get("a") == b"two"
    assert cache.put("empty", b"", kind="x")
    assert cache.get("empty") == b""
    assert cache.problem is None


def test_it_is_there_after_reopening(cache: Cache) -> None:
    cache.put("a", b"kept", kind="lora", label="über – 日本")
    again = Cache(cache.folder)
    assert again.get("a") == b"kept"
    assert again.entries()[0].label == "über – 日本"


@settings(max_examples=25, deadline=None)
@given(key=st.text(min_size=1, max_size=40), raw=st.binary(max_size=300))
def test_any_text_key_and_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, key: str, raw: bytes
) -> None:
    cache = Cache(tmp_path_factory.getbasetemp() / "any", limit_bytes=1_000_000)
    assert cache.put(key, raw, kind="k")
    assert cache.get(key) == raw


@pytest.mark.parametrize("value", ["text", 1, None, bytearray(b"x"), memoryview(b"x"), {"a": 1}])
def test_only_bytes_are_values(cache: Cache, value: object) -> None:
    with pytest.raises(TypeError):
        cache.put("a", value, kind="x")  # type: ignore[arg-type]
    assert cache.entries() == []


@pytest.mark.parametrize("key", [b"bytes", 1, None, ("a", "b")])
def test_only_text_is_a_key(cache: Cache, key: object) -> None:
    with pytest.raises(TypeError):
        cache.put(key, b"x", kind="x")  # type: ignore[arg-type]


def test_the_listing(cache: Cache) -> None:
    before = time.time()
    cache.put("a", b"1" * 10, kind="lora", label="robot")
    cache.put("b", b"2" * 20, kind="inversion", label="robot")
    cache.get("a")
    first, second = cache.entries()
    assert isinstance(first, CacheEntry)
    assert (first.key, first.kind, first.label, first.bytes) == ("a", "lora", "robot", 10)
    assert (second.key, second.bytes) == ("b", 20)
    assert before <= first.created <= first.used <= time.time()
    assert first.used > second.used
    assert cache.size() == 30


def test_clearing_by_kind_by_key_and_all(cache: Cache) -> None:
    for name, kind in (("a", "lora"), ("b", "lora"), ("c", "inversion"), ("d", "features")):
        cache.put(name, b"x", kind=kind)
    assert cache.clear(kind="lora", keys=["b", "c"]) == 1
    assert cache.clear(keys=["c", "nothing"]) == 1
    assert cache.clear(kind="lora") == 1
    assert [e.key for e in cache.entries()] == ["d"]
    assert cache.clear() == 1
    assert cache.entries() == []
    assert not list(cache.folder.rglob("*.val"))


def test_the_least_recently_used_goes_first(cache: Cache) -> None:
    for name in "abcd":
        cache.put(name, b"x" * 170_000, kind="k")
    assert cache.get("a") is not None  # used: b is the oldest now
    cache.put("e", b"x" * 170_000, kind="k")
    assert sorted(e.key for e in cache.entries()) == ["a", "c", "d", "e"]
    assert len(list(cache.folder.rglob("*.val"))) == 4


def test_a_lower_limit_holds_from_the_next_write_and_the_next_start(cache: Cache) -> None:
    for name in "abcd":
        cache.put(name, b"x" * 170_000, kind="k")
    cache.limit_bytes = 500_000
    cache.put("e", b"x" * 10, kind="k")
    assert cache.size() <= 500_000
    assert Cache(cache.folder, limit_bytes=100).entries() == []


def test_unfinished_work_expires(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put("state", b"x", kind="state")
    cache.put("lora", b"x", kind="lora")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 40 * 86400)
    assert not cache.has("state")
    assert cache.has("lora")
    assert [e.key for e in Cache(cache.folder).entries()] == ["lora"]


def test_reads_are_counted(cache: Cache) -> None:
    cache.put("a", b"x", kind="k")
    cache.get("a")
    cache.get("b")
    assert Cache(cache.folder).hits() == (1, 1)


def test_a_value_above_the_limit_is_not_stored_and_pushes_nothing_out(cache: Cache) -> None:
    cache.put("a", b"x" * 100, kind="k")
    assert not cache.put("huge", b"x" * 1_000_001, kind="k")
    assert [e.key for e in cache.entries()] == ["a"]


def test_nobody_else_may_look(tmp_path: Path) -> None:
    (tmp_path / "derived").mkdir(mode=0o755)
    cache = Cache(tmp_path / "derived")
    cache.put("a", b"x", kind="k")
    for folder in (cache.folder, cache.folder / "db"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_get_or_make(cache: Cache) -> None:
    made = []

    def make() -> bytes:
        made.append(1)
        return b"value"

    assert cache.get_or_make("k", make, kind="lora", label="l") == (b"value", False)
    assert cache.get_or_make("k", make, kind="lora", label="l") == (b"value", True)
    assert made == [1]
    assert (cache.entries()[0].kind, cache.entries()[0].label) == ("lora", "l")


def test_a_failed_making_stores_nothing_and_frees_the_key(cache: Cache) -> None:
    def fail() -> bytes:
        raise ValueError("NaN")

    with pytest.raises(ValueError, match="NaN"):
        cache.get_or_make("k", fail, kind="lora")
    assert cache.entries() == []
    assert cache.get_or_make("k", lambda: b"good", kind="lora") == (b"good", False)
    assert list((cache.folder / "locks").iterdir()) == []


def test_making_one_may_need_another(cache: Cache) -> None:
    def outer() -> bytes:
        inner, _hit = cache.get_or_make("inner", lambda: b"i", kind="k")
        return inner + b"o"

    assert cache.get_or_make("outer", outer, kind="k") == (b"io", False)


def test_many_threads_one_computation(cache: Cache) -> None:
    made: list[int] = []
    answers: list[tuple[bytes, bool]] = []
    barrier = threading.Barrier(8)

    def make() -> bytes:
        made.append(1)
        time.sleep(0.1)
        return b"v"

    def ask() -> None:
        barrier.wait()
        answers.append(cache.get_or_make("k", make, kind="k"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert made == [1]
    assert sorted(answers) == [(b"v", False)] + [(b"v", True)] * 7


def test_other_keys_do_not_wait(cache: Cache) -> None:
    order: list[str] = []

    def slow() -> bytes:
        cache.get_or_make("other", lambda: b"o", kind="k", on_wait=lambda: order.append("waited"))
        return b"s"

    cache.get_or_make("slow", slow, kind="k")
    assert order == []


def test_waiting_can_be_cancelled(cache: Cache) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow() -> bytes:
        entered.set()
        release.wait(HANG)
        return b"v"

    worker = threading.Thread(target=cache.get_or_make, args=("k", slow), kwargs={"kind": "k"})
    worker.start()
    entered.wait(HANG)

    def give_up() -> None:
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        cache.get_or_make("k", lambda: b"never", kind="k", on_wait=give_up)
    release.set()
    worker.join()
    assert cache.get_or_make("k", lambda: b"never", kind="k") == (b"v", True)


def test_no_handle_and_no_thread_is_left(cache: Cache) -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0

    cache.put("a", b"x", kind="k")
    before = handles()
    for i in range(20):
        cache.get_or_make(f"k{i}", lambda: b"x" * 100, kind="k")
        cache.get("a")
    assert handles() <= before


def test_a_second_cache_on_the_folder_sees_the_same(cache: Cache) -> None:
    other = Cache(cache.folder, limit_bytes=1_000_000)
    cache.put("a", b"1", kind="k")
    assert other.get("a") == b"1"
    other.clear()
    assert cache.get("a") is None


def test_nothing_heavy_is_imported() -> None:
    code = "import workbench.storage.cache, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_check_names_damaged_entries(cache: Cache) -> None:
    cache.put("good", b"1", kind="k")
    cache.put("bad", b"2", kind="k")
    assert cache.check() == []
    newest = max(cache.folder.rglob("*.val"), key=lambda f: f.read_bytes()[-1])
    newest.write_bytes(b"short")
    assert cache.check() == ["bad"]


def test_the_folder_of_version_1_is_read(tmp_path: Path) -> None:
    """Its database had no tag index, no culling and no statistics; its rows and files are alike."""
    db = tmp_path / "derived" / "db"
    old = diskcache.Cache(str(db), tag_index=0, statistics=0, cull_limit=0, disk_min_file_size=0)
    check = hashlib.blake2b(b"wb1:k" + b"value", digest_size=16).digest()
    old.set("wb1:k", b"WBC1" + check + b"value", tag='{"kind": "lora", "label": "robot"}')
    old.close()
    cache = Cache(tmp_path / "derived")
    assert cache.get("wb1:k") == b"value"
    assert [(e.kind, e.label, e.bytes) for e in cache.entries()] == [("lora", "robot", 5)]
    assert cache.check() == []


def test_what_killed_processes_left_is_swept(cache: Cache) -> None:
    cache.put("kept", b"x", kind="k")
    left = cache.folder / "db" / "00" / "11" / f"{'a' * 28}.val"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    os.utime(left, (1e9, 1e9))
    (cache.folder / "locks").mkdir()
    (cache.folder / "locks" / "dead.lock").touch()
    assert Cache(cache.folder).get("kept") == b"x"
    assert not left.exists()
    assert list((cache.folder / "locks").iterdir()) == []
