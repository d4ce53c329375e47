"""One edit of the history, large: its pictures, facts and figures, and the actions on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, ParamSpec

import streamlit as st

from workbench.canvas.overlay import overlay
from workbench.core.record import EditRecord, JobState
from workbench.core.request import EditRequest
from workbench.jobs import Job
from workbench.storage.history import Store
from workbench.storage.history.folder import Notes, empty_bin
from workbench.ui import components
from workbench.ui.draw import run_panel
from workbench.ui.history.tree import SIGNS, Forest, Row, download, lora_switch, move, title_of
from workbench.ui.shell import edits, figures, shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.edits import EditView, parameters, picture_of
from workbench.ui.shell.forms import count, facts_list, inert, plain, say, seconds, size, when
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace, settings_of

SHOWN = 768  # longest side of the large picture, px
LONGEST_TITLE, LONGEST_NOTE = 120, 4000
_MENU = "history_more"  # key of the menu; its value is whether it is open
P = ParamSpec("P")


def detail(
    backend: Backend, space: Workspace | None, forest: Forest, row: Row, *, binned: bool
) -> None:
    """The right half of the page."""
    record = row.record
    with guard():
        _pictures(backend.store, record)
    _how(record)
    _actions(backend, space, record, binned=binned)
    with guard():
        replay_panel(backend, forest.records, record)
    notes, facts, options, made = st.tabs(
        [
            say("history.notes"),
            say("history.facts"),
            say("common.all_parameters"),
            say("history.environment"),
        ]
    )
    with notes:
        _notes(backend, row)
    with facts, guard():
        facts_list(_facts(forest, row))
    with options:
        facts_list(parameters(record.request))
    with made:
        facts_list(
            dict(sorted(record.environment.items()))
            or {say("history.versions"): say("history.not_recorded")}
        )


def _pictures(store: Store, record: EditRecord) -> None:
    """Before and after with a divider; what was drawn, where nothing came out."""
    if record.result is not None and record.status is JobState.DONE:
        two = [(say("common.before"), picture_of(store, record.id, "before"))]
        two.append((say("common.after"), picture_of(store, record.id, "after")))
        components.viewer(two, key="history_viewer", max_height=380)
    else:
        with st.container(key="history_drawn", horizontal_alignment="center"):
            st.image(
                _drawn(store, record.request),
                width="stretch",
                alt=say("history.picture_with_mask_and_arrows"),
            )


@lru_cache(maxsize=16)
def _drawn(store: Store, request: EditRequest) -> bytes:
    """The picture with mask and arrows, WebP bytes at display size."""
    image = request.image
    to = figures.frame(image.width, image.height, SHOWN)
    mask = store.mask(request.mask.id) if request.mask else None
    if mask is not None:
        mask = figures.fit_mask(mask, to.out_width, to.out_height)
    rgb = figures.shown(store.image(image.id), SHOWN)
    return figures.encode(overlay(rgb, mask, figures.fit_pairs(request.pairs, to)))


def _how(record: EditRecord) -> None:
    """Outcome of the edit."""
    if record.status is not JobState.DONE or record.result is None:
        icon, colour = SIGNS.get(record.status, (":material/help:", "gray"))
        st.markdown(f":{colour}[{icon}] **{record.status.label}**")
        if record.error:
            st.caption(inert(record.error, 400))


def _actions(
    backend: Backend, space: Workspace | None, record: EditRecord, *, binned: bool
) -> None:
    if binned:
        _bin_actions(backend, record)
        return
    done = record.result is not None and record.status is JobState.DONE
    with st.container(key="history_actions", horizontal=True, gap="xsmall"):
        if done and st.button(
            say("common.open_in_results"),
            key="to_results",
            type="primary",
            icon=":material/open_in_full:",
        ):
            with guard():
                edits.enter(edits.home_of(backend, record), edit=record.id)
                shell.go("results")
        if done and st.button(
            say("common.edit_this_result"),
            key="branch",
            icon=":material/forward:",
            help=say("common.edit_this_result_help"),
        ):
            with guard():
                edits.enter(edits.continued(backend, record))
                shell.go("drag")
        if st.button(
            say("common.reuse_mask_and_settings"),
            key="reuse",
            icon=":material/tune:",
            help=say("history.reuse_mask_and_settings_help"),
        ):
            with guard():
                edits.enter(backend.project_of(record.request))
                shell.go("drag")
        with st.popover(say("common.more"), key=_MENU, on_change="rerun"):
            _more(backend, space, record, done)


def _more(backend: Backend, space: Workspace | None, record: EditRecord, done: bool) -> None:
    """Download, replay, settings for another picture, delete."""
    lora = lora_switch("history_one_lora")
    download(
        backend,
        say("history.download_this_edit"),
        [record.id],
        name=f"{record.request.image.name} {record.id[-6:]}",
        key="zip_one",
        with_lora=lora,
    )
    if done:
        st.button(
            say("common.reproduce"),
            key="replay",
            icon=":material/replay:",
            help=say("common.reproduce_help"),
            on_click=_and_close(start_replay),
            args=(backend, record.id),
        )
    if space is not None and space.image.id != record.request.image.id:
        st.button(
            say("history.apply_settings_to_title", title=inert(space.title, 24)),
            key="settings_only",
            icon=":material/input:",
            help=say("history.apply_settings_to_title_help"),
            on_click=_and_close(_take_settings),
            args=(space, record.request),
        )
    st.button(
        say("history.delete"),
        key="delete_one",
        icon=":material/delete:",
        help=say("history.delete_help"),
        on_click=_and_close(_move),
        args=(backend, record.id, True),
    )


def _and_close(act: Callable[P, None]) -> Callable[P, None]:
    """Does it and shuts the menu: left open it would stand there for the edit that comes next."""

    def both(*args: P.args, **kwargs: P.kwargs) -> None:
        st.session_state[_MENU] = False
        act(*args, **kwargs)

    return both


def _bin_actions(backend: Backend, record: EditRecord) -> None:
    with st.container(horizontal=True, gap="small"):
        st.button(
            say("history.restore"),
            key="restore_one",
            type="primary",
            icon=":material/restore_from_trash:",
            on_click=_move,
            args=(backend, record.id, False),
        )
        with st.popover(say("history.delete_permanently"), icon=":material/delete_forever:"):
            st.caption(say("history.this_cannot_be_undone"))
            if st.button(say("history.delete_this_edit"), key="remove_one", type="primary"):
                with guard():
                    _, freed = empty_bin(backend.store, [record.id])
                    st.toast(say("history.deleted_size_freed", size=size(freed)))
                    st.rerun()


def _move(backend: Backend, name: str, to_bin: bool) -> None:
    with guard():
        move(backend, [name], to_bin)


def _take_settings(space: Workspace, request: EditRequest) -> None:
    with guard():
        form = int(space.get("drag_form", 0)) + 1
        space.set(**settings_of(request), drag_form=form, lora_form=form)
        st.toast(
            say("history.title_now_uses_these_settings", title=inert(space.title, 40)),
            icon=":material/check:",
        )


# --- recomputing --------------------------------------------------------------------------------------


def start_replay(backend: Backend, name: str) -> None:
    """Queue the recomputing of an edit, for `on_click`."""
    with guard():
        backend.submit_replay(name)


def replay_panel(backend: Backend, known: Collection[str], record: EditRecord) -> None:
    """The recomputing of this edit, while it runs and what it found; `known`: ids one can go to."""
    job = _replay_job(backend, record.id)
    if job is None:
        return
    with st.container(key="card_replay"):
        if job.state is not JobState.DONE:
            run_panel.job_panel(backend, job.id, key=f"replay_{job.id}")
            return
        st.markdown(inert(verdict(job.result)))
        for notice in job.result.get("notices", ()):
            st.caption(f":material/info: {inert(str(notice))}")
        for name, (then, now) in job.result.get("environment", {}).items():
            was, is_now = (inert(str(v)) or say("history.not_recorded") for v in (then, now))
            st.caption(
                say("history.name_was_before_is_now", name=inert(name), was=was, is_now=is_now)
            )
        again = str(job.result["replayed"])
        if again in known:
            st.button(
                say("history.show_the_new_edit"),
                key="see_replayed",
                icon=":material/arrow_forward:",
                on_click=shell.remember,
                args=("edit", again),
            )


def _replay_job(backend: Backend, name: str) -> Job | None:
    """The newest job that recomputed (or recomputes) an edit."""
    for job in backend.recent("replay"):
        payload = job.payload
        if isinstance(payload, dict) and payload.get("edit") == name:
            return job
    return None


def verdict(found: Mapping[str, Any]) -> str:
    """Result of a replay (see `run_job.replay`) in one sentence."""
    if found["identical"]:
        return say("history.reproduced_the_picture_is")
    most, mean = found["max"], found["mean"]
    expected = found.get("expected")  # missing in jobs of before version 2
    if expected is None:
        return say("history.reproduced_the_pictures_differ_by", max=most, mean=mean)
    if expected == 0:
        return say("history.reproduced_unexpectedly", max=most, mean=mean)
    if found["as_expected"]:
        return say("history.reproduced_elsewhere", max=most, mean=mean, expected=expected)
    return say("history.reproduced_too_far_off", max=most, mean=mean, expected=expected)


# --- words and figures --------------------------------------------------------------------------------


def _notes(backend: Backend, row: Row) -> None:
    """Title and note, saved as they are written."""
    name = row.record.id
    title, note = f"title_{name}", f"note_{name}"

    def save(field: str, key: str) -> None:
        with guard():
            backend.store.annotate(name, **{field: str(st.session_state.get(key) or "")})

    st.text_input(
        say("history.title"),
        value=row.notes.title,
        max_chars=LONGEST_TITLE,
        key=title,
        placeholder=title_of(row.record, row.notes),
        on_change=save,
        args=("title", title),
    )
    st.text_area(
        say("history.note"),
        value=row.notes.note,
        max_chars=LONGEST_NOTE,
        key=note,
        height=80,
        placeholder=say("history.note_placeholder"),
        on_change=save,
        args=("note", note),
    )


def _facts(forest: Forest, row: Row) -> dict[str, str]:
    """When, with what, how far."""
    record, request = row.record, row.record.request
    rows = {
        say("common.picture"): f"{plain(request.image.name, 60)}, {request.image.width} × "
        f"{request.image.height} px",
        say("common.prompt"): plain(request.prompt, 300) or "(none)",
        say("common.created"): when(record.finished or record.started),
    }
    if record.result is not None:
        view = EditView(forest.store, record)
        ways = (f"{max(0.0, a.share):.0%} of {a.length:.0f} px" for a in view.arrivals())
        cached = count(len(record.result.cached), "stage")
        rows[say("common.stopped_because")] = view.outcome()
        rows[say("common.arrows")] = "; ".join(ways)
        rows[say("history.took")] = say(
            "history.time_cached_from_the_cache", time=seconds(view.total()), cached=cached
        )
    rows[say("common.method")] = say(
        "history.method_up_to_steps_steps", method=request.drag.method, steps=request.drag.steps
    )
    rows[say("common.model")] = request.model.name
    parent = forest.records.get(request.parent or "")
    if parent is not None:
        rows[say("history.based_on")] = title_of(parent, forest.notes.get(parent.id, Notes()))
    if row.notes.imported:
        rows[say("history.imported_from")] = plain(row.notes.imported, 80)
    return rows
