"""Which page, which project, which job: the URL, the session, and the way from page to page.

Streamlit drops the query on its own links and the session on reload. So both hold `project` and
`job`, and every page writes back what one of them lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import streamlit as st

from workbench.ui.shell.words import say

# a local file: a named icon would be fetched from a font server
ICON = Path(__file__).resolve().parents[1] / "assets" / "icon.png"

PAGES: dict[str, tuple[str, str]] = {
    "train": ("pages/train.py", say("common.upload_train")),
    "drag": ("pages/drag.py", say("common.mask_points")),
    "results": ("pages/results.py", say("common.results")),
    "compare": ("pages/compare.py", say("common.compare")),
    "history": ("pages/history.py", say("common.history")),
    "settings": ("pages/settings.py", say("common.settings")),
}
KEPT = ("project", "job", "edit")


def ensure_router() -> None:
    """Leave Streamlit's legacy mode, in which a `pages/` folder runs without streamlit_app.py.

    A fresh server is in that mode until streamlit_app.py has run once, so a deep link to a page as
    the very first request would show it without frame and menu. The import is private and guarded:
    without it the page still works, only its frame is missing on that first request.
    """
    try:
        from streamlit.runtime.pages_manager import PagesManager
    except ImportError:
        return
    if PagesManager.uses_pages_directory:
        PagesManager.uses_pages_directory = False
        st.rerun()


def current(name: str) -> str | None:
    """The `project`, `job` or `edit` at hand: the URL's, else the session's."""
    value = st.query_params.get(name) or st.session_state.get(f"at_{name}")
    return str(value)[:64] if value else None


def remember(name: str, value: str | None) -> None:
    """Put a `project`, `job` or `edit` into the URL and the session, or take it out with None."""
    if value:
        st.session_state[f"at_{name}"] = value
        if st.query_params.get(name) != value:
            st.query_params[name] = value
    else:
        st.session_state.pop(f"at_{name}", None)
        if name in st.query_params:
            del st.query_params[name]


def restore() -> None:
    """Make URL and session agree; the URL wins. To be called at the top of each page."""
    for name in KEPT:
        remember(name, current(name))


def params() -> dict[str, str]:
    """The query that keeps project, job and edit on the way to another page."""
    return {name: value for name in KEPT if (value := current(name))}


def go(page: str) -> NoReturn:
    """Go to a page with the present project, job and edit."""
    st.switch_page(PAGES[page][0], query_params=params())
    raise AssertionError("unreachable: switch_page ends the script")


def link(
    page: str, label: str, *, icon: str | None = None, help: str | None = None, part: str = ""
) -> None:
    """A link to a page (or a part of it) that keeps project, job and edit."""
    query = params() | ({"part": part} if part else {})
    st.page_link(PAGES[page][0], label=label, icon=icon, help=help, query_params=query)
