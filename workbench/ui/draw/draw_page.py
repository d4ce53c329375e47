"""The second page, which fits the window: canvas and tools on the left, run and its result on the right.

What a run sends is laid over the canvas by the stage (`components.shown`): the picture as it changes
while the run lasts, the result afterwards.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import streamlit as st

from workbench.canvas.checklist import Finding, by_level, check_prompt, checklist, ready
from workbench.canvas.drawing import Drawing
from workbench.core.errors import BadInput
from workbench.jobs.job import Job
from workbench.ui.draw import after, area, run_panel
from workbench.ui.draw.drag_form import drag_form
from workbench.ui.draw.drawpad import Drawpad
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import inert
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace

_SIGNS = {
    "block": ":material/radio_button_unchecked:",
    "warn": ":orange[:material/warning:]",
    "ok": ":green[:material/check_circle:]",
}


@cache
def _style() -> str:
    css = Path(__file__).with_name("draw.css").read_text(encoding="utf-8")
    return f"<style>{css}</style>"


def editor(backend: Backend, project: str) -> None:
    """Everything that a stroke changes stands in one fragment: only that is run again."""
    st.html(_style())
    whole = [True]  # the first run is part of the page's

    def part() -> None:
        with guard():
            space = Workspace.open(backend.store, project)
            with st.container(key="halves_drag"):
                left, right = st.columns([3, 1], gap="medium")
            with left, st.container(key="pad_all"):
                pad = Drawpad(backend, space)
                tool = pad.tools()
                brush = pad.options(tool)
                pad.canvas(tool, brush, _coach(space, tool))
            with right, st.container(key="card_run"):
                _panel(backend, space, pad)
        if not whole:
            run_panel.edited()
        whole.clear()

    st.fragment(part)()


def _coach(space: Workspace, tool: str) -> str:
    """What is said on the canvas while nothing is drawn."""
    hint = str(space.get("hint") or "")
    return (
        say("draw.try_it", hint=hint) if hint else say("draw.arrow_hint") if tool == "Arrow" else ""
    )


def _panel(backend: Backend, space: Workspace, pad: Drawpad) -> None:
    """Run (or its progress) first, so that it keeps its place; what it would use below it."""
    drawing = pad.drawing
    found = backend.areas.of(space, drawing)
    waiting = not (drawing.arrows or found.mask.any()) and area.unpainted(space) == "propose"
    checks = checklist(drawing, pad.size, found.mask, space.drag)
    checks = area.told(checks, found, waiting=waiting)
    checks = by_level([*checks, *check_prompt(space.project.prompt)])
    job = _job(backend, space)
    _run(backend, space, drawing, checks, job)
    after.panel(backend, space, drawing, job)
    st.markdown("  \n".join(f"{_SIGNS[c.level]} {inert(c.text)}" for c in checks))
    _example(space, pad)
    _unpainted(backend, space, pad)
    drag_form(space)
    with st.expander(say("draw.arrows"), key="arrows_table"):
        pad.table()
    run_panel.queue_panel(backend, key="queue", but=job.id if job else None)


def _job(backend: Backend, space: Workspace) -> Job | None:
    """The job of this address, else the newest of this picture that is still under way."""
    name = router.current("job")
    if name is None:
        name = next((j for j in reversed(space.jobs) if backend.is_live(j)), None)
        if name is None:
            return None
        router.remember("job", name)
    try:
        return backend.job(name)
    except BadInput:
        router.remember("job", None)
        st.info(say("draw.unknown_job"))
        return None


def _run(
    backend: Backend, space: Workspace, drawing: Drawing, checks: list[Finding], job: Job | None
) -> None:
    """The Run button; while a run lasts, its progress and Cancel in the same place."""
    reason = next((c.text for c in checks if c.level == "block"), None)
    live = job is not None and not job.state.ended
    editing = live and job is not None and job.kind in ("edit", "sweep")
    with st.container(key="run_place"):
        if live and job is not None:
            run_panel.job_panel(backend, job.id, key="drag", on_stage=job.kind == "edit")
        changed = not editing or _drawn_since(job, drawing)
        pressed = changed and st.button(
            say("draw.queue_another") if editing else say("draw.run"),
            key="queue_another" if editing else "run",
            type="secondary" if editing else "primary",
            width="stretch",
            icon=":material/playlist_add:" if editing else ":material/play_arrow:",
            disabled=not ready(checks),
            help=reason or (say("draw.queue_another_help") if editing else None),
            shortcut="Ctrl+Enter",
        )
    if pressed:
        request = space.request(drawing.pairs, backend.mask_asset(space, drawing))
        after.submit(backend, space, request)


def _drawn_since(job: Job | None, drawing: Drawing) -> bool:
    """Whether the arrows are other ones than those of a running edit."""
    return getattr(job and job.payload, "pairs", drawing.pairs) != drawing.pairs


def _example(space: Workspace, pad: Drawpad) -> None:
    """An example's own drag."""
    example = space.get("example")
    if not example or (pad.drawing.arrows and pad.drawing.has_mask):
        return
    st.button(
        say("draw.show_me"),
        key="show_example",
        icon=":material/auto_fix_high:",
        help=say("draw.show_me_help"),
        on_click=lambda: pad.change(Drawing.from_json(example)),
    )


def _unpainted(backend: Backend, space: Workspace, pad: Drawpad) -> None:
    """While nothing is painted: what will be edited, and the proposal as a mask to go on with."""
    painted = backend.areas.painted(pad.drawing, pad.size).any()
    if painted or not pad.drawing.pairs:
        return
    key = f"unpainted_{space.id}"
    found = backend.areas.of(space, pad.drawing)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.segmented_control(
            say("draw.no_mask_edit"),
            list(area.UNPAINTED),
            default=area.unpainted(space),
            format_func=area.UNPAINTED.__getitem__,
            required=True,
            key=key,
            label_visibility="collapsed",
            on_change=lambda: space.set(unpainted=st.session_state[key]),
        )
        if found.proposed:
            st.button(
                say("draw.turn_into_mask"),
                key="adopt_area",
                type="tertiary",
                icon=":material/format_paint:",
                help=say("draw.turn_into_mask_help"),
                on_click=lambda: pad.change(area.adopt(pad.drawing, found)),
            )
