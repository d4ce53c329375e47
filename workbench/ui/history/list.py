"""The tree of the history page: one page of rows, each an edit under the one it came from."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from workbench.core.record import JobState
from workbench.ui.history import actions
from workbench.ui.history.actions import tick, ticked
from workbench.ui.history.tree import Forest, Row, branch_of, line_of, title_of
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import count, inert
from workbench.ui.shell.words import say

PER_PAGE = 20
PICTURE_SIDE = 320  # px of a thumbnail, shown at half that width


def tree(
    backend: Backend,
    forest: Forest,
    rows: list[Row],
    chosen: Row,
    below: Callable[[], None] | None = None,
) -> None:
    """One page of rows; the family's heading stands above its first one on the page.

    `below` shows the chosen edit under its row, where there is no room beside the list.
    """
    pages = -(-len(rows) // PER_PAGE)
    at = 1 + rows.index(chosen) // PER_PAGE
    page = _page(pages, at)
    shown = rows[(page - 1) * PER_PAGE : page * PER_PAGE]
    family = ""
    for row in shown:
        if row.family != family:
            family = row.family
            _heading(backend, forest, family, binned=row.record.id in forest.binned)
        with guard():
            _row(backend, row, row.record.id == chosen.record.id)
        if below is not None and row.record.id == chosen.record.id:
            with st.container(key="card_history_detail"):
                below()
    if pages > 1:
        with st.container(horizontal=True, horizontal_alignment="center"):
            st.pagination(pages, default=page, key=_page_key(pages))


def _page_key(pages: int) -> str:
    return f"history_page_{pages}"


def _page(pages: int, at: int) -> int:
    """The page at hand: the one that was turned to, at first that of the chosen edit."""
    key = _page_key(pages)
    turned = st.session_state.get(key)
    return min(pages, int(turned)) if turned else at


def _heading(backend: Backend, forest: Forest, image: str, *, binned: bool) -> None:
    """The picture with which a family began, and its download."""
    family = forest.families[image]
    with st.container(key=f"family_{image[-12:]}", horizontal=True, vertical_alignment="center"):
        with guard():
            st.image(backend.thumbnail(image, 128), width=48, alt="")
        asset = family.image
        st.markdown(f"**{inert(asset.name, 50)}**")
        edits = "" if binned else f" · {count(family.edits, 'edit')}"
        st.caption(f"{asset.width} × {asset.height} px{edits}")
        st.space("stretch")
        if not binned:
            names = forest.of_family(image)
            actions.menu(
                backend, names, name=asset.name, key=f"zip_family_{image[-12:]}", quiet=True
            )


def _row(backend: Backend, row: Row, here: bool) -> None:
    """One edit: a tick, its picture, what it is called, how it ended. A click anywhere opens it."""
    record, name = row.record, row.record.id
    ended = "" if record.status is JobState.DONE else "_without"
    key = f"edit_{'on_' if here else ''}{name}{ended}"
    with st.container(key=key, horizontal=True, vertical_alignment="center", gap="small"):
        if row.depth:
            st.html(branch_of(row), width="content")
        with st.container(key=f"tick_{name}", width="content"):
            st.checkbox(
                say("history.select_title_of", title_of=inert(title_of(record, row.notes), 40)),
                key=f"ticked_{name}",
                value=name in ticked(),
                label_visibility="collapsed",
                on_change=tick,
                args=(name,),
            )
        picture = record.result.image if record.result else record.request.image.id
        st.image(backend.thumbnail(picture, PICTURE_SIDE), width=148, alt="")
        with st.container(key=f"words_{name}", gap=None):
            st.button(
                inert(title_of(record, row.notes)),
                key=f"open_{name}",
                type="tertiary",
                on_click=router.remember,
                args=("edit", name),
            )
            st.caption(inert(record.request.prompt, 90) or say("history.no_prompt"))
            st.markdown(line_of(row))
        with st.container(key=f"star_{name}", width="content"):
            star = row.notes.favourite
            st.button(
                ":orange[★]" if star else "☆",
                key=f"star_{'on' if star else 'off'}_{name}",
                type="tertiary",
                help=say("history.remove_from_favourites")
                if star
                else say("history.add_to_favourites"),
                on_click=_star,
                args=(backend, name, not star),
            )


def _star(backend: Backend, name: str, on: bool) -> None:
    with guard():
        backend.store.annotate(name, favourite=on)
