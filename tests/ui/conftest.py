"""Fixtures of the page tests: an App of the process on the micro model, and AppTest as a server acts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import HANG
from streamlit.runtime.pages_manager import PagesManager
from streamlit.testing.v1 import AppTest

from workbench.app import App, close_app, get_app

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep AppTest out of Streamlit's legacy mode.

    It forgets before each run that the app has its own navigation, runs the page alone, and our
    router then starts anew, by which a click is lost. A server forgets only when it is started.
    """
    begin = PagesManager.__init__

    def begun(self: PagesManager, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        PagesManager.uses_pages_directory = False

    monkeypatch.setattr(PagesManager, "__init__", begun)


@pytest.fixture
def app(own_cache: Path, micro_sd: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """The process's App on the micro model, with a history of its own."""
    own_cache.mkdir()
    text = f'[micro]\npath = "{micro_sd.as_posix()}"\ntitle = "Micro"\nnative_size = 64\n'
    own_cache.joinpath("models.toml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("WORKBENCH_MODEL", "micro")
    # torch is not loaded behind a page that is gone again before it has come
    monkeypatch.setattr(App, "warm_up", lambda _self, name="": None)
    close_app()
    yield get_app()
    close_app()


@pytest.fixture
def visit() -> Callable[..., AppTest]:
    """`visit(project=...)`: the first page of that address, run once."""

    def go(**query: str) -> AppTest:
        page = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=HANG)
        for name, value in query.items():
            page.query_params[name] = value
        page.run()
        assert not page.exception
        return page

    return go
