"""The cache when all is well: what goes in comes out, oldest go first, each value is made once."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.errors import Cancelled
from workbench.storage import cache as cache_module
from workbench.storage.cache import Cache, CacheEntry


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "derived", limit_bytes=10_000)


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
    cache = Cache(tmp_path_factory.getbasetemp() / "any", limit_bytes=100_000)
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
    for name in "abcde":
        cache.put(name, b"x" * 2000, kind="k")
    assert cache.get("a") is not None  # used: b is the oldest now
    cache.put("f", b"x" * 2000, kind="k")
    assert sorted(e.key for e in cache.entries()) == ["a", "c", "d", "e", "f"]
    assert cache.size() <= cache.limit_bytes
    assert len(list(cache.folder.rglob("*.val"))) == 5


def test_one_large_value_pushes_out_as_many_as_it_needs_and_no_more(cache: Cache) -> None:
    for name in "abcde":
        cache.put(name, b"x" * 2000, kind="k")
    cache.put("large", b"x" * 5000, kind="k")
    assert sorted(e.key for e in cache.entries()) == ["d", "e", "large"]


def test_diskcache_itself_drops_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own culling takes ten entries at a time, the one just written among them."""
    monkeypatch.setitem(cache_module._SETTINGS, "size_limit", 1)
    small = Cache(cache.folder, limit_bytes=10_000)
    for name in "abc":
        small.put(name, b"x" * 100, kind="k")
    assert len(small.entries()) == 3


def test_the_new_entry_stays_though_the_clock_went_back(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcde":
        cache.put(name, b"x" * 2000, kind="k")
    monkeypatch.setattr(time, "time", lambda: 5.0)
    cache.put("new", b"x" * 2000, kind="k")
    assert cache.get("new") is not None
    assert len(cache.entries()) == 5


def test_a_value_above_the_limit_is_not_stored_and_pushes_nothing_out(cache: Cache) -> None:
    cache.put("a", b"x" * 100, kind="k")
    assert not cache.put("huge", b"x" * 10_001, kind="k")
    assert [e.key for e in cache.entries()] == ["a"]


def test_nobody_else_may_look(tmp_path: Path) -> None:
    (tmp_path / "derived").mkdir(mode=0o755)
    cache = Cache(tmp_path / "derived")
    cache.put("a", b"x", kind="k")
    for folder in (cache.folder, cache.folder / "db"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in cache.folder.rglob("*.val"))


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
        release.wait(10)
        return b"v"

    worker = threading.Thread(target=cache.get_or_make, args=("k", slow), kwargs={"kind": "k"})
    worker.start()
    entered.wait(10)

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
    other = Cache(cache.folder, limit_bytes=10_000)
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
