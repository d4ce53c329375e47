"""After a run: how it ended, its result over the canvas, and what can be done with it.

"Try again" holds the same drag with own pixels only and at each strength; one that the history has is
shown at once, the others are computed when they are clicked.
"""

from __future__ import annotations

import dataclasses

import streamlit as st

from workbench.canvas.drawing import Drawing
from workbench.core.config import SPECS, STRENGTHS, with_method
from workbench.core.record import EditRecord, JobState
from workbench.core.request import EditRequest
from workbench.jobs.job import Job
from workbench.ui import components
from workbench.ui.draw import run_panel
from workbench.ui.results import open_edit
from workbench.ui.results.edits import EditView
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import inert
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace

SHOWN = 1280  # longest side of a result on the canvas, px
_VARIANTS = {
    "own": say("draw.own_pixels"),
    "gentle": say("draw.gentle"),
    "normal": say("draw.normal"),
    "strong": say("draw.strong"),
}


def submit(
    backend: Backend, space: Workspace, request: EditRequest, *, base: str | None = None
) -> None:
    """Queue an edit of this project and show it; `base` is the edit that it is a variant of."""
    st.session_state[_base_key(space)] = base
    job = backend.submit_edit(request)
    space.add_job(job)
    st.session_state.pop(_chosen_key(space), None)
    router.remember("job", job)
    st.rerun(scope="app")


def panel(backend: Backend, space: Workspace, drawing: Drawing, job: Job | None) -> None:
    """The end of the last run and its result, if this drawing made it; nothing while one runs."""
    if job is not None and not job.state.ended:
        return
    record = _record(backend, space, job)
    if job is not None:
        run_panel.last_line(job)
    if record is None or record.result is None or record.request.pairs != drawing.pairs:
        components.shown(key="stage_shown")
        return
    view = EditView(backend.store, record)
    router.remember("edit", record.id)
    components.shown(
        "result",
        src=backend.shown(view.result.image, SHOWN),
        label=say("draw.result_picture"),
        of=record.id,
        key="stage_shown",
    )
    _outcome(view)
    with st.container(horizontal=True, gap="small", key="after_run"):
        if st.button(
            say("draw.keep_dragging"),
            key="keep_dragging",
            icon=":material/forward:",
            help=say("draw.keep_dragging_help"),
        ):
            with guard():
                open_edit.enter(open_edit.continued(backend, record))
                st.rerun(scope="app")
        st.download_button(
            say("draw.download"),
            data=view.png,
            file_name=view.name("edited.png"),
            mime="image/png",
            key="download_here",
            on_click="ignore",
            icon=":material/download:",
            help=say("draw.download_help"),
        )
        router.link("results", say("common.open_in_results"), icon=":material/arrow_forward:")
    _try_again(backend, space, record)


def _chosen_key(space: Workspace) -> str:
    return f"try_again_{space.id}"


def _base_key(space: Workspace) -> str:
    return f"try_base_{space.id}"


def _record(backend: Backend, space: Workspace, job: Job | None) -> EditRecord | None:
    """The edit to show: one that was chosen under "Try again", else what the last job made."""
    name = st.session_state.get(_chosen_key(space)) or (job and backend.edit_of(job.id))
    record = backend.store.record(name) if name else None
    return record if record and record.request.image.id == space.image.id else None


def _outcome(view: EditView) -> None:
    """How far each arrow got."""
    rows = []
    for a in view.arrivals():
        if a.arrived:
            rows.append(f":green[:material/check_circle:] {say('draw.arrow_arrived', n=a.number)}")
        else:
            share, left = f"{max(0.0, a.share):.0%}", f"{a.left:.1f}"
            text = say("draw.arrow_moved", n=a.number, share=share, left=left)
            rows.append(f":orange[:material/pending:] {inert(text)}")
    st.markdown("  \n".join(rows))


def _try_again(backend: Backend, space: Workspace, record: EditRecord) -> None:
    """The same drag at every strength as small pictures; what is not there yet is computed on a click."""
    base = _base(backend, space, record)
    request = base.request
    made = [
        r
        for r in backend.store.records(image=request.image.id)
        if r.status is JobState.DONE and r.result is not None
    ]
    st.caption(say("draw.try_again"), help=say("draw.try_again_help"))
    with st.container(horizontal=True, gap="small", key="try_again"):
        for name, wanted in variants(request).items():
            known = next((r for r in made if same_drag(r.request, wanted)), None)
            here = known is not None and known.id == record.id
            with st.container(
                key=f"tile_{'on_' if here else '' if known else 'todo_'}strength_{name}",
                width=74,
                gap=None,
            ):
                image = known.result.image if known and known.result else request.image.id
                st.image(backend.thumbnail(image, 160), width=74, alt="")
                if st.button(
                    _VARIANTS[name],
                    key=f"strength_{name}",
                    type="tertiary",
                    width="stretch",
                    icon=None if known else ":material/play_arrow:",
                ):
                    if known is None:
                        submit(backend, space, wanted, base=base.id)
                    st.session_state[_chosen_key(space)] = known.id if known else None
                    st.rerun(scope="app")


def _base(backend: Backend, space: Workspace, record: EditRecord) -> EditRecord:
    """The edit that the others are variants of: the one from which "Try again" was first clicked."""
    name = st.session_state.get(_base_key(space))
    if name is None:
        return record
    base = backend.store.record(name)
    same = base.request.pairs == record.request.pairs and base.request.mask == record.request.mask
    return base if same else record


def variants(request: EditRequest) -> dict[str, EditRequest]:
    """The same arrows and mask with the picture's own pixels only, and optimised at each strength."""
    own, inversion = with_method(request.drag, request.inversion, "auto")
    own = dataclasses.replace(own, refine=False)
    out = {"own": dataclasses.replace(request, drag=own, inversion=inversion)}
    spec = SPECS[request.drag.method]
    if not spec.optimises:
        return out
    for name in STRENGTHS:
        steps = spec.drag_config(name).steps
        drag = dataclasses.replace(request.drag, steps=steps, refine=spec.keeps_pixels)
        out[name] = dataclasses.replace(request, drag=drag)
    return out


def same_drag(a: EditRequest, b: EditRequest) -> bool:
    """Whether two edits would compute the same picture; who descends from what does not matter."""
    return dataclasses.replace(a, parent=b.parent, image=b.image) == b and a.image.id == b.image.id
