"""Sweep: one drag over a grid of methods and parameters, queued as one, shown as one sheet."""

from __future__ import annotations

import streamlit as st

from workbench.core.errors import WorkbenchError
from workbench.core.record import JobState
from workbench.sweeps import Plan
from workbench.sweeps.results import Outcome, metrics_csv, verdict
from workbench.ui import components
from workbench.ui.compare import facts, sweep_form
from workbench.ui.compare.facts import FEWEST, MOST
from workbench.ui.compare.sweep_form import Standing
from workbench.ui.draw import run_panel
from workbench.ui.shell import shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import Guess, count, inert, say, seconds
from workbench.ui.shell.shell import cancel_button, guard
from workbench.ui.shell.workspace import Workspace

POLL = 1.0  # seconds between two looks
_WORDS = {
    "waiting": "waiting",
    "running": "running",
    "failed": say("compare.failed"),
    "missing": say("compare.not_run"),
}


def body(backend: Backend, space: Workspace | None) -> None:
    """The whole part below the switch."""
    name = str(st.query_params.get("sweep") or st.session_state.get(_key()) or "")
    if not name:
        _new(backend, space)
        return
    try:
        plan = sweep_form.load(backend, name)
    except WorkbenchError as exc:
        _leave()
        st.warning(inert(str(exc)))
        _new(backend, space)
        return
    if st.query_params.get("sweep") != name or st.session_state.get(_key()) != name:
        _open(name)
    _shown(backend, space, plan)


def _new(backend: Backend, space: Workspace | None) -> None:
    """The form, and what was swept before."""
    with st.container(key="card_sweep"):
        st.markdown(say("compare.one_edit_many_settings"))
        wish = sweep_form.form(backend, space)
        if wish.plan is not None or wish.reason:
            started = sweep_form.start(backend, space, wish)
            if started:
                _open(started)
                st.rerun()
    found = sweep_form.listed(backend, space) if space is not None else {}
    if found:
        st.subheader(say("compare.previous_sweeps_of_this_picture"), anchor=False)
        for name, title in found.items():
            st.button(
                title,
                key=f"sweep_{name}",
                icon=":material/grid_view:",
                on_click=_open,
                args=(name,),
            )


def _key() -> str:
    return facts.session_key("sweep")


def _open(name: str) -> None:
    """Put a sweep into address and session."""
    facts.show_part("Sweep")
    st.session_state[_key()] = name
    st.query_params["sweep"] = name


def _leave() -> None:
    """Back to the form."""
    facts.show_part("Sweep")
    st.session_state.pop(_key(), None)
    if "sweep" in st.query_params:
        del st.query_params["sweep"]


def _shown(backend: Backend, space: Workspace | None, plan: Plan) -> None:
    """One sweep: how far it is, the sheet, what can be taken away."""
    at_entry = sweep_form.standing(backend, plan)
    left = backend.seconds(at_entry.left) if at_entry.live else None

    def part() -> None:
        with guard():
            now = sweep_form.standing(backend, plan)
            if at_entry.live and not now.live:
                st.rerun()  # once, as a whole: buttons and downloads follow
            _head(backend, space, now, left)
            _sheet(backend, now)
            _reasons(now)
            _onwards(backend, now)

    st.fragment(part, run_every=POLL if at_entry.live else None)()


def _head(backend: Backend, space: Workspace | None, now: Standing, guess: Guess | None) -> None:
    """Varied parameters, progress, and buttons to cancel or run the rest."""
    plan, job = now.plan, now.job
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(inert(plan.title), anchor=False)
        st.space("stretch")
        if now.live and job is not None:
            cancel_button(backend, job, say("compare.cancel_all"), key="cancel_sweep")
        elif now.left:
            label = say("compare.run_the_missing_ones_number", number=len(now.left))
            if st.button(label, key="sweep_rest", icon=":material/play_arrow:"):
                sweep_form.submit(backend, sweep_form.home(backend, space, plan), plan, now.left)
                st.rerun()
        if st.button(say("compare.new_sweep"), key="sweep_new", icon=":material/add:"):
            _leave()
            st.rerun()
    if not now.live or job is None:
        if job is not None and job.state is JobState.CANCELLED:
            st.info(say("compare.cancelled_finished_edits_are_kept"))
        elif job is not None and job.error:
            st.error(inert(job.error))
        return
    done, total = now.share()
    words = say("compare.done_of_runs_done", done=done, runs=count(total, "run"))
    if job.state is JobState.QUEUED:
        words += f" · {run_panel.describe(job)[0].lower()}"
    elif job.progress is not None:
        words += f" · {run_panel.describe(job)[0].partition(' · about')[0]}"
    time_left = now.seconds_left(guess.seconds if guess else None)
    if time_left is not None and job.state is JobState.RUNNING:
        words += say("compare.about_time_left", time=seconds(time_left))
    st.progress(done / total if total else 0.0, text=inert(words))


def _sheet(backend: Backend, now: Standing) -> None:
    """Rows and columns with thumbnails; a click chooses one for the comparison."""
    plan = now.plan
    rows = [{"label": label, "cells": []} for label in plan.row_labels]
    for one in now.outcomes:
        cells = rows[one.cell.row]["cells"]
        assert isinstance(cells, list)
        cells.append(_cell(backend, one, 256 if plan.columns > 3 else 384))
    image = plan.base.image
    table = {"columns": plan.column_labels, "rows": rows, "corner": ""}
    components.board(
        {"table": table, "shape": max(0.5, min(2.0, image.width / image.height))},
        _chosen(now),
        most=MOST,
        key="sweep_board",
        on_change=lambda: facts.choose(st.session_state["sweep_board"].get("chosen") or []),
    )


def _reasons(now: Standing) -> None:
    """Why runs failed, in full: the cells have little room."""
    failed: dict[str, list[str]] = {}
    for one in now.outcomes:
        if one.state == "failed":
            failed.setdefault(one.reason, []).append(one.cell.name)
    for reason, names in failed.items():
        cells = "; ".join(names[:4]) + (
            say("compare.and_number_more", number=len(names) - 4) if len(names) > 4 else ""
        )
        st.error(
            say(
                "compare.runs_failed_cells_reason",
                runs=count(len(names), "run"),
                cells=inert(cells),
                reason=inert(reason),
            )
        )


def _chosen(now: Standing) -> list[str]:
    """The chosen edits that are on this sheet."""
    return [name for name in facts.chosen_ids() if name in now.edits]


def _cell(backend: Backend, one: Outcome, side: int) -> dict[str, str]:
    record = one.record
    if one.state != "done" or record is None or record.result is None:
        return {
            "id": "",
            "title": one.cell.name,
            "note": _WORDS[one.state],
            "state": one.state,
            "reason": one.reason,
        }
    return {
        "id": record.id,
        "src": components.data_url(backend.thumbnail(record.result.image, side)),
        "title": f"{one.cell.name}: {verdict(record)}",
        "note": verdict(record),
        "state": "done",
    }


def _onwards(backend: Backend, now: Standing) -> None:
    """Compare, open, take away."""
    with st.container(horizontal=True, key="sweep_onwards"):
        inside = _chosen(now)
        if st.button(
            say("compare.compare_selected_number", number=len(inside)),
            key="sweep_compare",
            icon=":material/compare:",
            disabled=len(inside) < FEWEST,
            help=say("compare.compare_selected_number_help", fewest=FEWEST, most=MOST),
        ):
            facts.choose(inside)
            facts.show_part("Compare")
            st.rerun()
        if len(inside) == 1 and st.button(say("common.open_in_results"), key="sweep_open"):
            shell.remember("edit", inside[0])
            shell.go("results")
        st.space("stretch")
        if not now.edits:
            return
        st.download_button(
            say("compare.contact_sheet"),
            data=lambda: sweep_form.sheet(backend, sweep_form.standing(backend, now.plan)),
            file_name="sweep.png",
            mime="image/png",
            key="sweep_png",
            on_click="ignore",
            icon=":material/download:",
            help=say("compare.contact_sheet_help_2"),
        )
        st.download_button(
            say("compare.measurements_csv"),
            data=lambda: metrics_csv(
                now.plan, sweep_form.standing(backend, now.plan).outcomes
            ).encode(),
            file_name="sweep.csv",
            mime="text/csv",
            key="sweep_csv",
            on_click="ignore",
            icon=":material/table:",
            help=say("compare.measurements_csv_help"),
        )
