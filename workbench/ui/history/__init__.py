"""The History page: search and filters, the tree of edits, and actions on several."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import streamlit as st

from workbench.core.record import JobState
from workbench.storage.history.folder import empty_bin
from workbench.ui import components
from workbench.ui.history import detail as history_detail
from workbench.ui.history.tree import (
    Family,
    Filter,
    Forest,
    Row,
    bar,
    branch_of,
    download,
    importer,
    line_of,
    lora_switch,
    menu,
    tick,
    tick_none,
    ticked,
    title_of,
)
from workbench.ui.shell import shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, inert, plain, say, size
from workbench.ui.shell.shell import guard
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
        bar(backend, forest, wanted)
        tree(backend, forest, rows, chosen, below=detail)
        return
    left, right = st.columns([6, 5], gap="large")
    with left:
        bar(backend, forest, wanted)
        tree(backend, forest, rows, chosen)
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
    st.session_state.setdefault("search", shell.current("search") or "")
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
        shell.remember("search", plain(words) or None)
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
    """Size of the history, and actions on all of it: download, import, empty the bin."""
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
            lora = lora_switch("history_all_lora")
            if wanted.narrows and rows:
                names = [r.record.id for r in rows]
                words = say("history.these_results_number", number=len(names))
                download(
                    backend, words, names, name="history-part", key="zip_shown", with_lora=lora
                )
            download(
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
            importer(backend)


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
            tick_none()
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
            shell.link("train", say("common.upload_train"), icon=":material/arrow_forward:")


def _chosen(rows: list[Row]) -> Row:
    """The edit of the address if it is shown, else the first one.

    It is put into the address, so that a newer edit does not take its place while one looks.
    """
    name = shell.current("edit")
    found = next((r for r in rows if r.record.id == name), rows[0])
    shell.remember("edit", found.record.id)
    return found


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
            menu(backend, names, name=asset.name, key=f"zip_family_{image[-12:]}", quiet=True)


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
                on_click=shell.remember,
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
