"""The Compare page: two to six edits against each other, and sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

import streamlit as st

from workbench.canvas.sheets import heatmap, sheet
from workbench.core.config import method_label
from workbench.core.errors import BadInput
from workbench.core.record import EditRecord
from workbench.ui import components
from workbench.ui.compare import facts
from workbench.ui.compare.facts import (
    FEWEST,
    MOST,
    PART,
    choose,
    chosen_ids,
    session_key,
    show_part,
)
from workbench.ui.shell import figures, shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.edits import EditView, one_line, picture_of
from workbench.ui.shell.forms import count, plain, say, when
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace

VIEWS = {
    say("common.side_by_side"): "side",
    say("compare.slider"): "slider",
    say("common.flicker"): "flicker",
    say("common.difference"): "heat",
}
SHOWN = 48  # thumbnails in the choice, without a search
_HERE = Path(__file__).parent


# --- which edits ------------------------------------------------------------------------------------


def open_with(backend: Backend, record: EditRecord) -> NoReturn:
    """Go to the page with an edit beside the newest other one of its picture, if there is any."""
    mine = backend.store.records(image=record.request.image.id)
    others = [r.id for r in mine if r.id != record.id and facts.has_picture(r)]
    names = [*others[:1], record.id]
    st.session_state["compare_open"] = len(names) < FEWEST
    st.session_state[session_key("edits")] = ",".join(names)
    query = {**shell.params(), "part": PARTS[0].lower(), "edits": ",".join(names)}
    st.switch_page(shell.PAGES["compare"][0], query_params=query)
    raise AssertionError("unreachable: switch_page ends the script")


def _records(backend: Backend, space: Workspace | None) -> list[EditRecord]:
    """The chosen edits; what cannot be shown is said and left out."""
    ids = chosen_ids()
    if (
        not ids and session_key("edits") not in st.session_state
    ):  # nothing was chosen yet: the last two
        of = space.image.id if space else None
        newest = [r for r in backend.store.records(image=of) if facts.has_picture(r)]
        ids = [r.id for r in reversed(newest[:2])]
    found, gone = [], 0
    for name in ids:
        try:
            record = backend.store.record(name)
        except BadInput:
            gone += 1
            continue
        if facts.has_picture(record):
            found.append(record)
        else:
            gone += 1
    if gone:
        st.warning(say("compare.edits_from_this_address_cannot", edits=count(gone, "edit")))
    choose([r.id for r in found])
    return found


PARTS = ("Compare", "Sweep")


def part() -> str:
    """The switch between the page's two parts. The address decides; without one, the last choice."""
    named = str(st.query_params.get("part") or "").capitalize()
    if named not in PARTS:
        named = st.session_state.get(PART, PARTS[0])
        for name, of in (("edits", PARTS[0]), ("sweep", PARTS[1])):
            named = of if name in st.query_params else named
    st.session_state[PART] = named
    key = f"compare_part_{named}"
    return str(
        st.segmented_control(
            say("compare.part"),
            PARTS,
            default=named,
            required=True,
            key=key,
            label_visibility="collapsed",
            on_change=lambda: show_part(str(st.session_state[key])),
        )
    )


def body(backend: Backend, space: Workspace | None) -> None:
    """Edits against each other."""
    st.html(_style())
    records = _records(backend, space)
    _choice(backend, space, records)
    if len(records) < FEWEST:
        st.info(say("compare.select_fewest_to_most_edits", fewest=FEWEST, most=MOST))
        return
    names = facts.names(records)
    views = [EditView(backend.store, r) for r in records]
    _pictures(views, names)
    with guard():
        _facts(backend, records, views, names)
    with guard():
        _sheet(views, names)


@cache
def _style() -> str:
    return f"<style>{(_HERE / 'compare_page.css').read_text(encoding='utf-8')}</style>"


def _choice(backend: Backend, space: Workspace | None, records: Sequence[EditRecord]) -> None:
    """Thumbnails of all edits, this picture's first; a click takes one in or out."""
    open_at_first = st.session_state.setdefault("compare_open", len(records) < FEWEST)
    # the words stay the same: with another label it would be another, closed, expander
    with st.expander(say("compare.select_edits_up_to_most", most=MOST), expanded=open_at_first):
        words = st.text_input(
            say("compare.find"),
            key="compare_find",
            placeholder=say("compare.find_placeholder"),
            help=say("compare.find_help"),
        )
        found = backend.store.search(words) if words.strip() else backend.store.records()
        found = [r for r in found if facts.has_picture(r)]
        if not found:
            st.caption(say("compare.no_edit_with_a_picture"))
            return
        mine = [r for r in found if space is not None and space.image.id in _pictures_of(r)]
        own = {r.id for r in mine}
        others = [r for r in found if r.id not in own]
        most = st.session_state.setdefault("compare_most", SHOWN)
        groups = [
            (say("compare.this_picture"), mine[:most]),
            (say("compare.other_pictures"), others[: max(6, most - len(mine))]),
        ]
        if space is None:
            groups = [(say("compare.all_edits"), others[:most])]
        data = {"groups": [
            {"title": title, "cells": [_cell(backend, r) for r in part]}
            for title, part in groups if part
        ]}  # fmt: skip
        components.board(
            data,
            [r.id for r in records],
            most=MOST,
            key="compare_board",
            on_change=lambda: choose(st.session_state["compare_board"].get("chosen") or []),
        )
        rest = len(found) - sum(len(part) for _, part in groups)
        with st.container(horizontal=True):
            if rest > 0:
                st.button(
                    say("compare.show_rest_more", rest=min(rest, SHOWN)),
                    key="compare_more",
                    on_click=lambda: st.session_state.update(compare_most=most + SHOWN),
                )
            if records:
                st.button(
                    say("common.clear_selection"), key="compare_none", on_click=choose, args=([],)
                )


def _pictures_of(record: EditRecord) -> tuple[str, ...]:
    return (record.request.image.id, record.result.image if record.result else "")


def _cell(backend: Backend, record: EditRecord) -> dict[str, str]:
    picture = record.result.image if record.result else record.request.image.id
    name, words = plain(record.request.image.name, 40), one_line(record)
    return {
        "id": record.id,
        "src": components.data_url(backend.thumbnail(picture, 160)),
        "title": ", ".join(filter(None, (f"{name}: {words}", when(record.finished)))),
        "note": f"{method_label(record.request.drag.method)}\n{_when_and_steps(record)}",
        "state": "done",
    }


def _when_and_steps(record: EditRecord) -> str:
    steps = record.result.iterations if record.result else 0
    return ", ".join(filter(None, (count(steps, "step"), when(record.finished))))


# --- pictures ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pane:
    """A picture that can be looked at: an edit's result ("after") or what it began with ("before")."""

    label: str
    view: EditView
    what: str

    def encoded(self) -> bytes:
        """For the page: small, with losses that one does not see."""
        return picture_of(self.view.store, self.view.record.id, self.what)

    def pixels(self) -> figures.U8:
        """For measuring: as stored, at display size, uint8 [h,w,3]."""
        return self.view.after() if self.what == "after" else self.view.before()


def _pictures(views: Sequence[EditView], names: Sequence[str]) -> None:
    """The chosen edits in one of four ways; zoom and place stay when the way changes."""
    panes = [Pane(name, view, "after") for name, view in zip(names, views, strict=True)]
    with st.container(horizontal=True, vertical_alignment="center", key="compare_bar"):
        mode = VIEWS[
            st.segmented_control(
                say("common.view"),
                list(VIEWS),
                default=say("common.side_by_side"),
                required=True,
                key="compare_view",
                label_visibility="collapsed",
            )
        ]
        # of two pictures either may be an original; side by side it takes room, so it is asked for
        if mode != "side" or st.toggle(
            say("compare.show_original"),
            key="compare_original",
            help=say("compare.show_original_help"),
        ):
            several = len({v.request.image.id for v in views}) > 1
            for view in {v.request.image.id: v for v in views}.values():
                of = f" of {plain(view.request.image.name, 30)}" if several else ""
                panes.append(Pane(say("compare.original_of", of=of), view, "before"))
        st.space("stretch")
        first, second = (0, 1) if mode == "side" else _two([p.label for p in panes])
    with guard(), st.spinner(say("common.loading"), show_time=False):
        if mode == "side":
            every = [(p.label, p.encoded()) for p in panes]
            columns = {2: 2, 4: 2}.get(len(panes), 3)
            height = 560 if len(panes) <= 3 else 440
            _show(every, mode, max_height=height, columns=columns)
            return
        two = [(p.label, p.encoded()) for p in (panes[first], panes[second])]
        if mode != "heat":
            _show(two, mode)
            return
        a, b = panes[first].pixels(), panes[second].pixels()
        fitted = facts.fitting(a, b)
        if fitted is None:
            st.info(say("compare.these_two_pictures_have_different"))
            return
        heat = figures.encode(heatmap(a, fitted))
        _show([*two, (say("common.difference"), heat)], "side", columns=3)
        st.caption(_difference(a, fitted))


def _show(
    images: Sequence[tuple[str, bytes]], mode: str, *, max_height: int = 640, columns: int = 0
) -> None:
    components.viewer(
        images, mode=mode, key="compare_pictures", max_height=max_height, columns=columns
    )


def _two(labels: list[str]) -> tuple[int, int]:
    """Selection of the two pictures to compare."""
    with st.container(horizontal=True, width="content", key="compare_two"):
        first, second = (
            st.selectbox(
                name,
                labels,
                index=n,
                key=f"compare_{n}_{len(labels)}",
                width=230,
                label_visibility="collapsed",
            )
            for n, name in enumerate((say("compare.first_picture"), say("compare.second_picture")))
        )
    return labels.index(first), labels.index(second)


def _difference(a: figures.U8, b: figures.U8) -> str:
    """Difference of two pictures of one size, in words."""
    delta = abs(a.astype("int16") - b.astype("int16")).max(axis=2)
    share = 100 * float((delta > 8).mean())
    return say(
        "compare.dark_no_difference_bright_a",
        share=share,
        delta=int(delta.max()),
        mean=float(delta.mean()),
    )


# --- facts ------------------------------------------------------------------------------------------


def _facts(
    backend: Backend,
    records: Sequence[EditRecord],
    views: Sequence[EditView],
    names: Sequence[str],
) -> None:
    st.subheader(say("common.results"), anchor=False)
    st.html(
        facts.table(facts.metric_rows(views), names, caption=say("common.results"), marked=False)
    )
    rows = facts.parameter_rows(backend.store, records)
    unlike = [row for row in rows if row.differs]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(say("compare.parameters"), anchor=False)
        st.space("stretch")
        every = st.toggle(
            say("compare.show_all"),
            key="compare_all",
            help=say("compare.show_all_help"),
        )
    if not unlike:
        st.caption(say("compare.the_selected_edits_have_the"))
    if unlike or every:
        shown = rows if every else unlike
        st.html(facts.table(shown, names, caption=say("compare.parameters"), marked=every))


def _sheet(views: Sequence[EditView], names: Sequence[str]) -> None:
    """All chosen edits as one labelled picture, made when it is asked for."""
    st.download_button(
        say("compare.contact_sheet"),
        data=lambda: contact_sheet(views, names),
        file_name="compared-edits.png",
        mime="image/png",
        key="compare_sheet",
        on_click="ignore",
        icon=":material/download:",
        help=say("compare.contact_sheet_help"),
    )


def contact_sheet(views: Sequence[EditView], names: Sequence[str]) -> bytes:
    """The originals and the edits, each with its name and how far it came, PNG."""
    pictures, labels = [], []
    several = len({v.request.image.id for v in views}) > 1
    for view in {v.request.image.id: v for v in views}.values():
        of = f" of {plain(view.request.image.name, 30)}" if several else ""
        pictures.append(view.marked())
        labels.append(say("compare.original_of_with_mask_and", of=of))
    for view, name in zip(views, names, strict=True):
        left = [a.left for a in view.arrivals()]
        far = say("compare.left_px_short", left=max(left)) if left else ""
        pictures.append(view.after())
        labels.append(f"{name}\n{far}{count(view.result.iterations, 'step')}")
    return figures.encode(sheet(pictures, labels, cell=384), "PNG")
