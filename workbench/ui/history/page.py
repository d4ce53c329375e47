"""The history page: search and filters, the tree of edits, and what one does with several."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import streamlit as st

from workbench.core.record import JobState
from workbench.storage.history import empty_bin
from workbench.ui import components
from workbench.ui.history import actions
from workbench.ui.history import (
    detail as history_detail,
)
from workbench.ui.history import (
    list as history_list,
)
from workbench.ui.history.tree import (
    Family,
    Filter,
    Forest,
    Row,
)
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import (
    count,
    inert,
    plain,
    size,
)
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace

NARROW = 880  # CSS px; below it the chosen edit opens under its row
_HERE = Path(__file__).parent


def body(backend: Backend, space: Workspace | None) -> None:
    """The whole page below the heading."""
    st.html(_style())
    unreadable(backend)
    forest = Forest(backend.store)
    wanted = _filters(forest)
    rows = forest.rows(wanted)
    _tools(backend, forest, wanted, rows)
    if not rows:
        _empty(forest, wanted)
        return
    chosen = _chosen(rows)

    def detail() -> None:
        with guard():
            history_detail.detail(backend, space, forest, chosen, binned=wanted.binned)

    with st.container(key="history_room"):
        room = components.room(key="history_width")[0]
    if 0 < room < NARROW:
        actions.bar(backend, forest, wanted)
        history_list.tree(backend, forest, rows, chosen, below=detail)
        return
    left, right = st.columns([6, 5], gap="large")
    with left:
        actions.bar(backend, forest, wanted)
        history_list.tree(backend, forest, rows, chosen)
    with right, st.container(key="history_detail"):
        detail()


@cache
def _style() -> str:
    return f"<style>{(_HERE / 'history.css').read_text(encoding='utf-8')}</style>"


def unreadable(backend: Backend) -> None:
    """Files that are there and cannot be read: said, and otherwise left alone."""
    found = backend.store.unreadable()
    if not found:
        return
    label = say("history.files_of_the_history_could", files=count(len(found), "file"))
    with st.expander(f":orange[:material/warning:] {label}"):
        st.caption(say("history.nothing_was_deleted_and_all"))
        for item in found:
            st.markdown(f"**{inert(item.name)}** — {inert(item.reason, 300)}")


# --- filters and tools ------------------------------------------------------------------------------


def _filters(forest: Forest) -> Filter:
    pictures = forest.families
    # Not by `bind`: every other parameter that a page writes would take a bound one out again.
    st.session_state.setdefault("search", router.current("search") or "")
    with st.container(key="history_filters", horizontal=True, vertical_alignment="center"):
        words = st.text_input(
            say("history.search"),
            key="search",
            type="search",
            placeholder=say("history.search_placeholder"),
            live=True,
            max_chars=64,
            label_visibility="collapsed",
            width=340,
        )
        router.remember("search", plain(words) or None)
        options = ["", *pictures]
        if st.session_state.get("picture", "") not in options:
            st.session_state["picture"] = ""
        picture = st.selectbox(
            say("common.picture"),
            options,
            key="picture",
            format_func=lambda image: _picture_name(pictures.get(image)),
            label_visibility="collapsed",
            width=240,
        )
        status = st.pills(
            say("history.status"),
            [s for s in JobState if s.ended],
            selection_mode="multi",
            format_func=lambda s: s.label,
            key="status",
            label_visibility="collapsed",
        )
        stars = st.toggle(say("history.favourites"), key="favourites")
        st.space("stretch")
        binned = st.toggle(say("history.bin_number", number=len(forest.binned)), key="bin")
    return Filter(
        words=str(words or ""),
        favourites=bool(stars),
        picture=str(picture or ""),
        status=frozenset(status or ()),
        binned=bool(binned),
    )


def _picture_name(family: Family | None) -> str:
    if family is None:
        return say("history.all_pictures")
    return f"{plain(family.image.name, 40)} ({family.edits})"


def _tools(backend: Backend, forest: Forest, wanted: Filter, rows: list[Row]) -> None:
    """How much there is, and what one does with all of it: download, import, empty the bin."""
    with st.container(key="history_tools", horizontal=True, vertical_alignment="center"):
        st.caption(_how_many(forest, wanted, rows))
        st.space("stretch")
        if wanted.binned:
            with st.popover(
                say("history.empty_the_bin"), icon=":material/delete_forever:", disabled=not rows
            ):
                _emptying(backend, len(forest.binned))
            return
        with st.popover(
            say("history.download"), icon=":material/download:", disabled=not forest.records
        ):
            lora = actions.lora_switch("history_all_lora")
            if wanted.narrows and rows:
                names = [r.record.id for r in rows]
                words = say("history.these_results_number", number=len(names))
                actions.download(
                    backend, words, names, name="history-part", key="zip_shown", with_lora=lora
                )
            actions.download(
                backend,
                say("history.complete_history_zip"),
                None,
                name="history",
                key="zip_all",
                with_lora=lora,
                disabled=len(forest.binned) == len(forest.records),
            )
            st.caption(say("history.a_zip_with_pictures_masks"))
        with st.popover(say("common.import"), icon=":material/upload:"):
            actions.importer(backend)


def _how_many(forest: Forest, wanted: Filter, rows: list[Row]) -> str:
    here = forest.binned if wanted.binned else forest.records.keys() - forest.binned
    where = say("history.in_the_bin") if wanted.binned else ""
    if len(rows) == len(here):
        return f"{count(len(rows), 'edit')}{where}"
    return f"{len(rows)} of {count(len(here), 'edit')}{where}"


def _emptying(backend: Backend, number: int) -> None:
    st.markdown(say("history.permanently_delete_edits", edits=count(number, "edit")))
    st.caption(say("history.pictures_that_no_other_edit"))
    if st.button(say("history.delete_permanently"), type="primary", key="empty_bin_really"):
        with guard():
            removed, freed = empty_bin(backend.store)
            actions.tick_none()
            st.toast(
                say(
                    "history.edits_deleted_size_freed",
                    edits=count(removed, "edit"),
                    size=size(freed),
                )
            )
            st.rerun()


def _empty(forest: Forest, wanted: Filter) -> None:
    with st.container(key="card_empty"):
        if wanted.narrows:
            st.markdown(say("history.no_matches_remove_a_filter"))
        elif wanted.binned:
            st.markdown(say("history.the_bin_is_empty_deleted"))
        else:
            st.markdown(say("history.no_edits_yet_every_run"))
            router.link("train", say("common.upload_train"), icon=":material/arrow_forward:")


def _chosen(rows: list[Row]) -> Row:
    """The edit of the address if it is shown, else the first one.

    It is put into the address, so that a newer edit does not take its place while one looks.
    """
    name = router.current("edit")
    found = next((r for r in rows if r.record.id == name), rows[0])
    router.remember("edit", found.record.id)
    return found
