"""The second page: canvas, instant preview, checklist, arrows, options, run and its progress."""

from __future__ import annotations

import streamlit as st

from workbench.canvas.checklist import by_level, check_prompt, checklist, ready
from workbench.canvas.drawing import Drawing
from workbench.ui import components
from workbench.ui.draw import area, run_panel
from workbench.ui.draw.drag_form import drag_form
from workbench.ui.draw.drawpad import Drawpad
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.text import inert
from workbench.ui.shell.workspace import Workspace

_SIGNS = {
    "block": ":material/radio_button_unchecked:",
    "warn": ":orange[:material/warning:]",
    "ok": ":green[:material/check_circle:]",
}


def editor(backend: Backend, project: str) -> None:
    """Everything that a stroke changes stands in one fragment: only that is run again."""

    whole = [True]  # the first run is part of the page's

    def part() -> None:
        with guard():
            space = Workspace.open(backend.store, project)
            with st.container(key="halves_drag"):
                left, right = st.columns([3, 2], gap="large")
            with left:
                pad = Drawpad(backend, space)
                tool = pad.tools()
                brush = pad.options(tool)
                pad.canvas(tool, brush)
                _hint(space, pad)
                _unpainted(backend, space, pad)
                pad.table()
            with right:
                progress(backend, space.id)
                _instant(backend, space, pad.drawing)
                _checks_and_run(backend, space, pad.drawing)
        if not whole:
            run_panel.edited()
        whole.clear()

    st.fragment(part)()


def _hint(space: Workspace, pad: Drawpad) -> None:
    """What an example asks for, and its own drag; how to draw is said above the canvas."""
    hint = str(space.get("hint") or "")
    example = space.get("example")
    if not (hint or example) or (pad.drawing.arrows and pad.drawing.has_mask):
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"Try it: {inert(hint)}" if hint else "An example is ready.", width="content")
        if example:
            st.button(
                "Show me",
                key="show_example",
                icon=":material/auto_fix_high:",
                help="Draws this example's mask and arrows.",
                on_click=lambda: pad.change(Drawing.from_json(example)),
            )


def _unpainted(backend: Backend, space: Workspace, pad: Drawpad) -> None:
    """While nothing is painted: what that shall mean, and the proposal to go on painting on."""
    painted = backend.areas.painted(pad.drawing, pad.size).any()
    if painted or not pad.drawing.pairs:
        return
    key = f"unpainted_{space.id}"
    found = backend.areas.of(space, pad.drawing)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Nothing painted, so this may change:", width="content")
        st.segmented_control(
            "What may change while nothing is painted",
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
                "Paint it",
                key="adopt_area",
                type="tertiary",
                icon=":material/format_paint:",
                help="Paints the proposed area, so that brush and eraser can change it.",
                on_click=lambda: pad.change(area.adopt(pad.drawing, found)),
            )


def _instant(backend: Backend, space: Workspace, drawing: Drawing) -> None:
    """The pixel warp of the drag: shows at once whether mask and direction are as meant."""
    if drawing.pairs:
        raw, label = backend.warped(space, drawing), "Instant preview: what the arrows mean"
    else:
        raw, label = backend.shown(space.image.id, 640), "The picture, nothing moved yet"
    components.viewer([(label, raw)], mode="single", key="instant", max_height=380)
    st.caption(label + ("; running it draws it properly." if drawing.pairs else "."))


def _checks_and_run(backend: Backend, space: Workspace, drawing: Drawing) -> None:
    size = (space.image.width, space.image.height)
    found = backend.areas.of(space, drawing)
    waiting = not (drawing.arrows or found.mask.any()) and area.unpainted(space) == "propose"
    checks = area.told(checklist(drawing, size, found.mask, space.drag), found, waiting=waiting)
    checks = by_level([*checks, *check_prompt(space.project.prompt)])
    with st.container(key="card_run"):
        st.markdown("  \n".join(f"{_SIGNS[c.level]} {inert(c.text)}" for c in checks))
        drag_form(space)
        reason = next((c.text for c in checks if c.level == "block"), None)
        pressed = st.button(
            "Run",
            key="run",
            type="primary",
            width="stretch",
            icon=":material/play_arrow:",
            disabled=not ready(checks),
            help=reason,
            shortcut="Ctrl+Enter",
        )
        # always the same place, emptied when there is nothing to say: while a job is polled, Streamlit
        # may lose the message that takes away what the run before had put at the end of a container
        told = st.empty()
        if reason:
            told.caption(inert(reason))
        if pressed:
            request = space.request(drawing.pairs, backend.mask_asset(space, drawing))
            job = backend.submit_edit(request)
            space.add_job(job)
            router.remember("job", job)
            st.rerun(scope="app")


def progress(backend: Backend, project: str) -> None:
    """The job of this address, the rest of the queue, and the way to the result."""
    job_id = router.current("job")
    if job_id is None:
        run_panel.queue_panel(backend, key="queue")
        return
    with st.container(key="card_job"):
        run_panel.job_panel(backend, job_id, key="drag")
        edit = backend.edit_of(job_id)
        if edit is not None:
            router.remember("edit", edit)
            router.link("results", "See the result", icon=":material/arrow_forward:")
    run_panel.queue_panel(backend, key="queue", but=job_id)
