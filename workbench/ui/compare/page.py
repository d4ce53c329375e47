"""Two to six edits against each other: choosing them, pictures, measures, parameters, one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

import streamlit as st

from workbench.canvas import preview
from workbench.canvas.sheets import sheet
from workbench.core.errors import BadInput
from workbench.core.record import EditRecord
from workbench.ui import components
from workbench.ui.compare import facts
from workbench.ui.compare.facts import FEWEST, MOST
from workbench.ui.results import figures
from workbench.ui.results.edits import EditView, one_line, picture_of
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import count, plain, when
from workbench.ui.shell.workspace import Workspace

VIEWS = {
    "Side by side": "side",
    "Slider": "slider",
    "Flicker": "flicker",
    "Difference": "heat",
}
SHOWN = 48  # thumbnails in the choice, without a search
_PART = "compare_at"
_HERE = Path(__file__).parent


# --- which edits ------------------------------------------------------------------------------------


def session_key(what: str) -> str:
    """Under which the session remembers a choice: each picture has its own."""
    return f"at_{what}_{router.current('project') or ''}"


def chosen_ids() -> list[str]:
    """The edits of this address, else those of this session."""
    text = st.query_params.get("edits") or st.session_state.get(session_key("edits")) or ""
    return facts.ids(str(text))


def choose(ids: Sequence[str]) -> None:
    """Put the choice into address and session."""
    text = ",".join(ids)
    st.session_state[session_key("edits")] = text
    if text:
        if st.query_params.get("edits") != text:
            st.query_params["edits"] = text
    elif "edits" in st.query_params:
        del st.query_params["edits"]


def open_with(backend: Backend, record: EditRecord) -> NoReturn:
    """Go to the page with an edit beside the newest other one of its picture, if there is any."""
    mine = backend.store.records(image=record.request.image.id)
    others = [r.id for r in mine if r.id != record.id and facts.has_picture(r)]
    names = [*others[:1], record.id]
    st.session_state["compare_open"] = len(names) < FEWEST
    st.session_state[session_key("edits")] = ",".join(names)
    query = {**router.params(), "part": PARTS[0].lower(), "edits": ",".join(names)}
    st.switch_page(router.PAGES["compare"][0], query_params=query)
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
        st.warning(
            f"{count(gone, 'edit')} of this address cannot be shown: not in this history, or ended "
            "without a picture."
        )
    choose([r.id for r in found])
    return found


PARTS = ("Compare", "Sweep")


def part() -> str:
    """The switch between the page's two parts. The address decides; without one, the last choice."""
    named = str(st.query_params.get("part") or "").capitalize()
    if named not in PARTS:
        named = st.session_state.get(_PART, PARTS[0])
        for name, of in (("edits", PARTS[0]), ("sweep", PARTS[1])):
            named = of if name in st.query_params else named
    st.session_state[_PART] = named
    key = f"compare_part_{named}"
    return str(
        st.segmented_control(
            "Part",
            PARTS,
            default=named,
            required=True,
            key=key,
            label_visibility="collapsed",
            on_change=lambda: show_part(str(st.session_state[key])),
        )
    )


def show_part(name: str) -> None:
    """Turn to a part of the page."""
    st.session_state[_PART] = name
    st.query_params["part"] = name.lower()


def body(backend: Backend, space: Workspace | None) -> None:
    """Edits against each other."""
    st.html(_style())
    records = _records(backend, space)
    _choice(backend, space, records)
    if len(records) < FEWEST:
        st.info(f"Choose {FEWEST} to {MOST} edits to see them against each other.")
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
    with st.expander(f"Choose edits (at most {MOST})", expanded=open_at_first):
        words = st.text_input(
            "Find",
            key="compare_find",
            placeholder="Prompt, name, method, note …",
            help="Shows the edits that hold every word.",
        )
        found = backend.store.search(words) if words.strip() else backend.store.records()
        found = [r for r in found if facts.has_picture(r)]
        if not found:
            st.caption("No edit with a picture was found.")
            return
        mine = [r for r in found if space is not None and space.image.id in _pictures_of(r)]
        own = {r.id for r in mine}
        others = [r for r in found if r.id not in own]
        most = st.session_state.setdefault("compare_most", SHOWN)
        groups = [
            ("This picture", mine[:most]),
            ("Other pictures", others[: max(6, most - len(mine))]),
        ]
        if space is None:
            groups = [("All edits", others[:most])]
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
                    f"Show {min(rest, SHOWN)} more",
                    key="compare_more",
                    on_click=lambda: st.session_state.update(compare_most=most + SHOWN),
                )
            if records:
                st.button("Choose none", key="compare_none", on_click=choose, args=([],))


def _pictures_of(record: EditRecord) -> tuple[str, ...]:
    return (record.request.image.id, record.result.image if record.result else "")


def _cell(backend: Backend, record: EditRecord) -> dict[str, str]:
    picture = record.result.image if record.result else record.request.image.id
    name, words = plain(record.request.image.name, 40), one_line(record)
    return {
        "id": record.id,
        "src": components.data_url(backend.thumbnail(picture, 160)),
        "title": ", ".join(filter(None, (f"{name}: {words}", when(record.finished)))),
        "note": f"{facts.METHOD_NAMES[record.request.drag.method]}\n{_when_and_steps(record)}",
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
                "View",
                list(VIEWS),
                default="Side by side",
                required=True,
                key="compare_view",
                label_visibility="collapsed",
            )
        ]
        if st.toggle(
            "With the original",
            key="compare_original",
            help="Shows the picture before the drag, too.",
        ):
            several = len({v.request.image.id for v in views}) > 1
            for view in {v.request.image.id: v for v in views}.values():
                of = f" of {plain(view.request.image.name, 30)}" if several else ""
                panes.append(Pane(f"Original{of}", view, "before"))
        st.space("stretch")
        first, second = (0, 1) if mode == "side" else _two([p.label for p in panes])
    with guard(), st.spinner("Drawing …", show_time=False):
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
            st.info("These two pictures have different shapes; choose two of one shape.")
            return
        heat = figures.encode(preview.heatmap(a, fitted))
        _show([*two, ("Difference", heat)], "side", columns=3)
        st.caption(_difference(a, fitted))


def _show(
    images: Sequence[tuple[str, bytes]], mode: str, *, max_height: int = 640, columns: int = 0
) -> None:
    components.viewer(
        images, mode=mode, key="compare_pictures", max_height=max_height, columns=columns
    )


def _two(labels: list[str]) -> tuple[int, int]:
    """Which two pictures stand against each other."""
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
            for n, name in enumerate(("First picture", "Second picture"))
        )
    return labels.index(first), labels.index(second)


def _difference(a: figures.U8, b: figures.U8) -> str:
    """How much two pictures of one size differ, in words."""
    delta = abs(a.astype("int16") - b.astype("int16")).max(axis=2)
    share = 100 * float((delta > 8).mean())
    return (
        f"Dark: no difference, bright: strong. {share:.1f} % of the picture differs by more than 8 of "
        f"255 levels; the largest difference is {int(delta.max())}, "
        f"the mean {float(delta.mean()):.2f}."
    )


# --- facts ------------------------------------------------------------------------------------------


def _facts(
    backend: Backend,
    records: Sequence[EditRecord],
    views: Sequence[EditView],
    names: Sequence[str],
) -> None:
    st.subheader("What came out", anchor=False)
    st.html(facts.table(facts.metric_rows(views), names, caption="What came out", marked=False))
    rows = facts.parameter_rows(backend.store, records)
    unlike = [row for row in rows if row.differs]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("Parameters", anchor=False)
        st.space("stretch")
        every = st.toggle(
            "Show all",
            key="compare_all",
            help="Also the parameters that are the same for all chosen edits.",
        )
    if not unlike:
        st.caption("The chosen edits were asked for with the same parameters.")
    if unlike or every:
        shown = rows if every else unlike
        st.html(facts.table(shown, names, caption="Parameters", marked=every))


def _sheet(views: Sequence[EditView], names: Sequence[str]) -> None:
    """All chosen edits as one labelled picture, made when it is asked for."""
    st.download_button(
        "Contact sheet",
        data=lambda: contact_sheet(views, names),
        file_name="compared-edits.png",
        mime="image/png",
        key="compare_sheet",
        on_click="ignore",
        icon=":material/download:",
        help="One picture: the original and the chosen edits with their names and results.",
    )


def contact_sheet(views: Sequence[EditView], names: Sequence[str]) -> bytes:
    """The originals and the edits, each with its name and how far it came, PNG."""
    pictures, labels = [], []
    several = len({v.request.image.id for v in views}) > 1
    for view in {v.request.image.id: v for v in views}.values():
        of = f" of {plain(view.request.image.name, 30)}" if several else ""
        pictures.append(view.marked())
        labels.append(f"Original{of}, with mask and arrows")
    for view, name in zip(views, names, strict=True):
        left = [a.left for a in view.arrivals()]
        far = f"{max(left):.1f} px to go, " if left else ""
        pictures.append(view.after())
        labels.append(f"{name}\n{far}{count(view.result.iterations, 'step')}")
    return figures.encode(sheet(pictures, labels, cell=384), "PNG")
