"""Edits that were ticked in the history, and what one does with several at once."""

from __future__ import annotations

import streamlit as st

from workbench.ui.compare import page
from workbench.ui.compare.facts import FEWEST, MOST
from workbench.ui.history import files
from workbench.ui.history.tree import Filter, Forest
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import count
from workbench.ui.shell.words import say

_TICKED = "history_ticked"


def ticked() -> list[str]:
    """Ids of the ticked edits in the order of ticking; they stay over pages and filters."""
    found: list[str] = st.session_state.setdefault(_TICKED, [])
    return found


def tick(name: str) -> None:
    """Keep what the checkbox of an edit was changed to."""
    if st.session_state.get(f"ticked_{name}"):
        ticked().append(name)
    else:
        st.session_state[_TICKED] = [n for n in ticked() if n != name]


def tick_none() -> None:
    """Forget all ticks."""
    for name in ticked():
        st.session_state.pop(f"ticked_{name}", None)
    st.session_state[_TICKED] = []


def bar(backend: Backend, forest: Forest, wanted: Filter) -> None:
    """What can be done with the ticked edits."""
    names = [n for n in ticked() if n in forest.records and (n in forest.binned) == wanted.binned]
    if not names:
        return
    with st.container(key="card_ticked", horizontal=True, vertical_alignment="center"):
        st.markdown(say("history.edits_selected", edits=count(len(names), "edit")))
        st.space("stretch")
        if wanted.binned:
            st.button(
                say("history.restore"),
                key="restore_ticked",
                icon=":material/restore_from_trash:",
                on_click=_move,
                args=(backend, names, False),
            )
        else:
            _compare(forest, names)
            files.menu(backend, names, name="history-selection", key="zip_ticked")
            st.button(
                say("history.delete"),
                key="delete_ticked",
                icon=":material/delete:",
                help=say("history.delete_help_2"),
                on_click=_move,
                args=(backend, names, True),
            )
        st.button(
            say("common.clear_selection"), key="tick_none", type="tertiary", on_click=tick_none
        )


def _compare(forest: Forest, names: list[str]) -> None:
    with_picture = [n for n in names if forest.records[n].result is not None]
    possible = FEWEST <= len(with_picture) <= MOST
    if st.button(
        say("common.compare"),
        key="compare_ticked",
        icon=":material/compare:",
        type="primary",
        disabled=not possible,
        help=None
        if possible
        else say("history.select_fewest_to_most_edits", fewest=FEWEST, most=MOST),
    ):
        page.choose(with_picture)
        query = {**router.params(), "edits": ",".join(with_picture)}
        st.switch_page(router.PAGES["compare"][0], query_params=query)


def _move(backend: Backend, names: list[str], to_bin: bool) -> None:
    with guard():
        move(backend, names, to_bin)
        tick_none()


def move(backend: Backend, names: list[str], to_bin: bool) -> None:
    """Put edits into the bin or take them out, and say so."""
    if to_bin:
        backend.store.bin(names)
        st.toast(
            say("history.edits_moved_to_the_bin", edits=count(len(names), "edit")),
            icon=":material/delete:",
        )
    else:
        backend.store.restore(names)
        st.toast(f"{count(len(names), 'edit')} restored.", icon=":material/restore_from_trash:")
