"""The Mask & points page, which fits the window: canvas and tools, drag settings, run and result.

What a run sends is laid over the canvas by the stage (`components.shown`): the picture as it changes
while the run lasts, the result afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from workbench.canvas.checklist import (
    Finding,
    by_level,
    check_lora,
    check_model,
    check_prompt,
    checklist,
    ready,
)
from workbench.canvas.drawing import Drawing
from workbench.core.config import (
    SPECS,
    STRENGTHS,
    with_method,
)
from workbench.core.errors import BadInput
from workbench.core.record import EditRecord, JobState
from workbench.core.request import EditRequest, Point
from workbench.jobs import Job
from workbench.ui import components
from workbench.ui.draw import run_panel
from workbench.ui.draw.drag_form import drag_form
from workbench.ui.draw.drawpad import MOVE_WORDS, Drawpad
from workbench.ui.shell import area, edits, projection, shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.edits import EditView
from workbench.ui.shell.forms import inert, say
from workbench.ui.shell.shell import guard
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
    """Canvas and tools on the left; run, result and settings on the right.

    Everything that a stroke changes is written by one fragment: only that is run again. Job and queue
    have fragments beside it, never inside it: when a fragment is run again, Streamlit drops what it
    had sent but not yet delivered and keeps what fragments inside it had sent, so that the browser
    gets elements without their container ("Bad delta path index") and stops.
    """
    st.html(_style())
    with guard():
        space = Workspace.open(backend.store, project)
        job = _job(backend, space)
        with st.container(key="halves_drag"):
            left, right = st.columns([3, 1], gap="medium")
        with right, st.container(key="card_run"):
            with st.container(key="run_place"):
                progress, button = st.container(), st.container()
            rest, queue = st.container(), st.container()
        live = job is not None and not job.state.ended
        if live and job is not None:
            with progress:
                run_panel.job_panel(backend, job.id, key="drag", on_stage=job.kind == "edit")
        with queue:
            run_panel.queue_panel(backend, key="queue", but=job.id if job else None)
        with left:
            _drawing(backend, project, job, button, rest)


def _drawing(
    backend: Backend,
    project: str,
    job: Job | None,
    button: DeltaGenerator,
    rest: DeltaGenerator,
) -> None:
    """The fragment: the canvas here, Run in `button`, what it would use in `rest`."""
    whole = [True]  # the first run is part of the page's

    def part() -> None:
        with guard():
            space = Workspace.open(backend.store, project)
            with st.container(key="pad_all"):
                pad = Drawpad(backend, space)
                tool = pad.tools()
                brush = pad.options(tool)
                pad.canvas(tool, brush, _coach(space, tool))
            _panel(backend, space, pad, job, button, rest)
        if not whole:
            run_panel.edited()
        whole.clear()

    st.fragment(part)()


def _coach(space: Workspace, tool: str) -> str:
    """Hint on the canvas while nothing is drawn."""
    hint = str(space.get("hint") or "")
    return (
        say("draw.try_it", hint=hint) if hint else say("draw.arrow_hint") if tool == "Arrow" else ""
    )


def _panel(
    backend: Backend,
    space: Workspace,
    pad: Drawpad,
    job: Job | None,
    button: DeltaGenerator,
    rest: DeltaGenerator,
) -> None:
    """Run first, so that it keeps its place; what it would use below it.

    `job` is as the page last saw it: its end is news for the whole page, not for this part.
    """
    drawing = pad.drawing
    found = backend.areas.of(space, drawing)
    waiting = not (drawing.arrows or found.mask.any()) and area.unpainted(space) == "propose"
    checks = checklist(drawing, pad.size, found.mask, space.drag)
    checks = area.told(checks, found, waiting=waiting)
    checks += [*check_prompt(space.project.prompt), *check_lora(space.lora_file, space.drag)]
    # what a model has drawn, or redrawn, is not judged by its looks
    drawn = space.made_with is not None or space.get("parent")
    suits = space.model.name if drawn else backend.suits(space.image.id)
    level = edits.level_of(backend, space)
    checks += check_model(space.model.name, space.drag, suits=suits, level=level)
    checks = by_level(checks)
    with button:
        _run(backend, space, drawing, checks, job)
    with rest:
        panel(backend, space, drawing, job)
        st.markdown("  \n".join(f"{_SIGNS[c.level]} {inert(c.text)}" for c in checks))
        _example(space, pad)
        _unpainted(backend, space, pad)
        drag_form(space)
        with st.expander(say("draw.arrows"), key="arrows_table"):
            _table(pad)


def _table(pad: Drawpad) -> None:
    """The table of arrows."""
    components.pairs(
        [(a.pair.to_json(), a.on) for a in pad.drawing.arrows],
        size=pad.size,
        revision=pad.revision,
        words={
            "add": say("draw.add_arrow"),
            "holds": say("draw.holds"),
            "moves": MOVE_WORDS,
        },
        key="pair_table",
        on_change=lambda: _on_table(pad),
    )


def _on_table(pad: Drawpad) -> None:
    asked = st.session_state["pair_table"].get("change")
    if not isinstance(asked, Mapping) or asked.get("revision") != pad.revision:
        return  # the table of a drawing that has changed since
    with guard():
        if asked["kind"] == "add":
            pad.change(pad.drawing.with_arrow(projection.first_arrow(pad.view)))
            return
        n = int(asked["n"])
        if asked["kind"] == "remove":
            pad.change(pad.drawing.without_arrow(n))
        elif asked["kind"] == "switch":
            pad.change(pad.drawing.switched(n, bool(asked["on"])))
        elif asked["kind"] == "hold":
            pair = pad.drawing.arrows[n].pair
            grow, move = round(float(asked["grow"]), 2), str(asked["move"])
            pad.change(pad.drawing.with_pair(n, dataclasses.replace(pair, grow=grow, move=move)))
        else:
            hx, hy, tx, ty = (float(v) for v in asked["pair"][:4])
            pair = dataclasses.replace(
                pad.drawing.arrows[n].pair, handle=Point(hx, hy), target=Point(tx, ty)
            )
            pad.change(pad.drawing.with_pair(n, pair))


def _job(backend: Backend, space: Workspace) -> Job | None:
    """The job of this address, else the newest of this picture that is still under way."""
    name = shell.current("job")
    if name is None:
        name = next((j for j in reversed(space.jobs) if backend.is_live(j)), None)
        if name is None:
            return None
        shell.remember("job", name)
    try:
        return backend.job(name)
    except BadInput:
        shell.remember("job", None)
        st.info(say("draw.unknown_job"))
        return None


def _run(
    backend: Backend, space: Workspace, drawing: Drawing, checks: list[Finding], job: Job | None
) -> None:
    """The Run button; while a run lasts, its progress and Cancel stand in this place."""
    reason = next((c.text for c in checks if c.level == "block"), None)
    live = job is not None and not job.state.ended
    editing = live and job is not None and job.kind in ("edit", "sweep")
    changed = not editing or _drawn_since(job, drawing)
    if not changed:
        st.empty()  # a fragment may later write only where it has written in the page's own run
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
        submit(backend, space, request)


def _drawn_since(job: Job | None, drawing: Drawing) -> bool:
    """True if the arrows are other ones than those of a running edit."""
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
    shell.remember("job", job)
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
    shell.remember("edit", record.id)
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
                edits.enter(edits.continued(backend, record))
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
        shell.link("results", say("common.open_in_results"), icon=":material/arrow_forward:")
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
    """Progress of each arrow."""
    rows = []
    for a in view.arrivals():
        if a.arrived:
            rows.append(f":green[:material/check_circle:] {say('draw.arrow_arrived', n=a.number)}")
        else:
            share, left = f"{max(0.0, a.share):.0%}", f"{a.left:.1f}"
            text = say("draw.arrow_moved", n=a.number, share=share, left=left)
            rows.append(f":orange[:material/pending:] {inert(text)}")
    st.markdown("  \n".join(rows))
    if view.verdict():
        st.caption(f":material/info: {inert(view.verdict())}")


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
    """True if two edits would compute the same picture; who descends from what does not matter."""
    return dataclasses.replace(a, parent=b.parent, image=b.image) == b and a.image.id == b.image.id
