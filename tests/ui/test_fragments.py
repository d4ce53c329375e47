"""Fragments of a page stand beside each other, never inside each other.

When a fragment is run again, Streamlit drops what that fragment had sent and the browser had not yet got,
but keeps what a fragment inside it had sent. The browser then gets elements whose container is missing and
stops with "Bad delta path index".
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
from patience import HANG
from streamlit.runtime.fragment import MemoryFragmentStorage
from streamlit.testing.v1 import AppTest
from test_drag_page import PAIR, disc

from workbench.app import App
from workbench.canvas.drawing import Arrow, Drawing
from workbench.core.request import TrainTask
from workbench.jobs import run_job
from workbench.ui.shell.shell import PAGES
from workbench.ui.shell.workspace import Workspace

SETTINGS = {"model": "micro"}


@pytest.fixture
def parents(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The fragment around each fragment that a page has made; None: the page itself."""
    found: list[str | None] = []
    register = MemoryFragmentStorage.register

    def noted(self: MemoryFragmentStorage, key: str, fragment: Any, **more: Any) -> None:
        found.append(more.get("parent_fragment_id"))
        register(self, key, fragment, **more)

    monkeypatch.setattr(MemoryFragmentStorage, "register", noted)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_no_fragment_stands_inside_another(
    app: App,
    visit: Callable[..., AppTest],
    parents: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
    page: str,
) -> None:
    done = threading.Event()
    monkeypatch.setattr(run_job, "perform", lambda _app, _task: done.wait(HANG))
    asset = app.store.put_image(disc(), "Disc")
    drawing = Drawing((Arrow(PAIR),)).to_json()
    space = Workspace.create(app.store, asset, title="Disc", settings=SETTINGS, drawing=drawing)
    request = space.request((PAIR,), None)
    space.add_job(app.submit_edit(request))
    app.submit_train(TrainTask(request=dataclasses.replace(request, seed=1)))  # waits behind it
    try:
        shown = visit(project=space.id, job=space.jobs[0])
        shown.query_params["project"] = space.id
        shown.switch_page(PAGES[page][0]).run()
        assert not shown.exception
    finally:
        done.set()
    assert parents
    assert not any(parents)
