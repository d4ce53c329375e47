"""The sessions of tools/soak.py and tools/siege.py work on real pages, and both can fall short."""

from __future__ import annotations

import mmap
import random
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import Server

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import siege
import soak

from workbench.core.record import JobState


def test_a_session_uploads_draws_runs_and_sees_the_result(server: Server) -> None:
    chance = random.Random(7)
    crowd = soak.Crowd(server.port, think=0.01)
    tab = soak.Tab(server.port)
    tab.run()
    tab.upload(soak.picture(chance), "seven.png")
    assert "project=" in tab.query
    tab.draw(chance)
    assert tab.press("run")
    crowd._follow(tab, chance, "drag", cancel=False)
    found = re.search(r"edit=(\w+)", tab.query)
    assert found
    assert server.store.record(found[1]).status is JobState.DONE
    tab.go("history")
    assert tab.button(f"open_{found[1]}") is not None
    assert not tab.faults()
    tab.close()


def row(**values: float) -> dict[str, float]:
    return {
        "memory": 400.0,
        "handles": 100.0,
        "threads": 10.0,
        "edits": 10.0,
        "open": 0.0,
        **values,
    }


@pytest.mark.parametrize(
    ("last", "left", "falls"),
    [
        ({}, {}, 0),
        ({"memory": 480.0, "edits": 500.0}, {}, 0),
        ({"memory": 480.0}, {}, 1),
        ({"handles": 300.0}, {}, 1),
        ({"threads": 40.0}, {}, 1),
        ({}, {"handles": 120.0, "threads": 11.0}, 2),
        ({}, {"open": 2.0}, 1),
    ],
)
def test_what_grows_is_said(last: dict[str, float], left: dict[str, float], falls: int) -> None:
    watch: Any = soak.Watch.__new__(soak.Watch)
    watch.rows = [row(), row(), row(), row(), row(**last), row(**left)]
    assert len(watch.short()) == falls


def test_pages_of_files_are_no_memory_that_grew(tmp_path: Path) -> None:
    """A library's pages are one process's alone as soon as the others that had it have ended."""
    path, size = tmp_path / "library", 32 * 2**20
    path.write_bytes(b"a" * size)
    me = psutil.Process()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        before, alone = soak.anonymous(me), me.memory_full_info().uss
        assert pages.rfind(b"b") == -1  # reads all of them
        read = soak.anonymous(me) - before
        assert me.memory_full_info().uss - alone > size / 2
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as mine:  # not what was freed before
        for start in range(0, size, 4096):
            mine[start] = 1
        assert read < size / 2 < soak.anonymous(me) - before


def test_a_lost_edit_is_said() -> None:
    kept: Any = siege.Siege.__new__(siege.Siege)
    kept.over = SimpleNamespace(set=lambda: None)
    kept.servers, kept.commands = {}, {}
    kept.killed = Counter(command=1)
    kept.acknowledged = {"01ARZ3NDEKTSV4RRFFQ69G5FAV": "server 1"}
    kept.under_way = {"01ARZ3NDEKTSV4RRFFQ69G5FAW"}
    kept.store = SimpleNamespace(
        recover=lambda: None, records=lambda **_: [], pending=list, unreadable=list,
        close=lambda: None, files=list,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siege, "verify", lambda _store: SimpleNamespace(ok=True))
        assert len(kept.end()) == 2
