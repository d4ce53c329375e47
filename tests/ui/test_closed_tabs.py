"""Memory of closed tabs, with Streamlit's own runtime: what a session held is given back by itself."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from streamlit.runtime import Runtime, RuntimeConfig
from streamlit.runtime.memory_media_file_storage import MemoryMediaFileStorage
from streamlit.runtime.memory_session_storage import MemorySessionStorage
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from streamlit.web.cache_storage_manager_config import create_default_cache_storage_manager

from tests.patience import HANG
from workbench.ui.shell.shell import _expire, tidied

TTL = 120


class Tab:
    """The browser's end of a session; nothing is read."""

    def write_forward_msg(self, _message: object) -> None:
        """Take a message."""


class Cycle:
    """Something that only a garbage collection removes."""

    def __init__(self) -> None:
        self.myself = self


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage collection that nobody asked for."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def storage() -> MemorySessionStorage:
    return MemorySessionStorage(ttl_seconds=TTL)


@pytest.fixture
def runtime(
    storage: MemorySessionStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Runtime:
    monkeypatch.setattr(Runtime, "_instance", None)
    script = tmp_path / "page.py"
    script.write_text("")
    return Runtime(RuntimeConfig(
        script_path=str(script),
        media_file_storage=MemoryMediaFileStorage("/media"),
        uploaded_file_manager=MemoryUploadedFileManager("/upload"),
        cache_storage_manager=create_default_cache_storage_manager(),
        session_storage=storage,
    ))  # fmt: skip


def open_tab(runtime: Runtime) -> tuple[str, list[weakref.ref[Any]]]:
    """Open a tab and upload a file; the session's id, and what is to die with it."""
    name = runtime.connect_session(Tab(), {})
    info = runtime._session_mgr.get_session_info(name)
    assert info is not None
    held = info.session.held = Cycle()  # type: ignore[attr-defined]
    runtime.uploaded_file_mgr.add_file(name, UploadedFileRec("f", "a.png", "image/png", b"a" * 999))
    return name, [weakref.ref(info.session), weakref.ref(held)]


def uploads(runtime: Runtime) -> int:
    return sum(len(files) for files in runtime.uploaded_file_mgr.file_storage.values())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_collection")
def test_fault_44_a_closed_tab_is_let_go_although_no_other_one_closes(
    runtime: Runtime, storage: MemorySessionStorage
) -> None:
    """Streamlit forgets an old session when the next one closes: the last 128 stayed for ever."""
    now = 1000.0
    storage._cache._timer = lambda: now  # type: ignore[attr-defined]

    async def life() -> None:
        nonlocal now
        await runtime.start()
        closed, parts = open_tab(runtime)
        _open, others = open_tab(runtime)
        runtime.disconnect_session(closed)
        now += TTL / 2
        assert _expire(runtime) == {closed}  # a tab may still come back
        assert uploads(runtime) == 2
        async with tidied(None, every=0.001):
            await asyncio.sleep(0.05)  # it is seen among the stored ones
            now += TTL
            await asyncio.wait_for(gone(parts), HANG)
        assert uploads(runtime) == 1
        assert all(other() is not None for other in others)
        runtime.stop()
        await runtime.stopped

    with ThreadPoolExecutor(
        1
    ) as thread:  # a browser test before this one leaves a loop in the main one
        thread.submit(asyncio.run, life()).result()


async def gone(parts: list[weakref.ref[Any]]) -> None:
    """Wait until all of them have died."""
    while any(part() is not None for part in parts):
        await asyncio.sleep(0.001)
