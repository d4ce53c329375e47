"""The Results page: the picture, how far each point got, and the next steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import streamlit as st

from workbench.core.errors import BadInput
from workbench.core.record import EditRecord, JobState, StopReason, stage_label
from workbench.core.request import EditRequest
from workbench.ui import compare, components
from workbench.ui.history.detail import replay_panel, start_replay
from workbench.ui.shell import figures, shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.edits import (
    EditView,
    continued,
    enter,
    one_line,
    parameter_groups,
    picture_of,
    px,
    reached,
)
from workbench.ui.shell.forms import count, facts_list, inert, say, seconds, when
from workbench.ui.shell.shell import guard
from workbench.ui.shell.workspace import Workspace, settings_of

VIEWS = {
    say("common.after"): "hold",
    say("results.before_after"): "slider",
    say("common.side_by_side"): "side",
    say("common.flicker"): "flicker",
    say("common.difference"): "heat",
    say("results.paths"): "paths",
    say("results.animation"): "gif",
}
MOST_SHOWN = 12
MOST_STEPS = 2000


def body(backend: Backend, space: Workspace) -> None:
    """The whole page below the heading."""
    records = backend.store.records(image=space.image.id)
    if not records:
        st.info(say("results.no_edits_of_this_picture"))
        _finished_example(backend, space)
        shell.link("drag", say("common.mask_points"), icon=":material/arrow_forward:")
        return
    record = _chosen(backend, records)
    if record.result is None or record.status is not JobState.DONE:
        _without_picture(record)
        _shelf(backend, records, record)
        return
    view = EditView(backend.store, record)
    with st.container(key="halves_results"):
        left, right = st.columns([3, 2], gap="large")
    with left:
        _picture(view)
        _shelf(backend, records, record)
    with right:
        _outcome(view)
        _onwards(backend, space, view)
        with guard():
            replay_panel(backend, [r.id for r in records], record)
        _downloads(view)
    _details(view)


def _finished_example(backend: Backend, space: Workspace) -> None:
    """Result of an example's own drag, shown before the first run."""
    after = str(space.get("example_after") or "")
    if after and backend.store.has(after):
        st.caption(say("results.what_this_example_gives"))
        shown = [
            (say("common.before"), backend.shown(space.image.id)),
            (say("common.after"), backend.shown(after)),
        ]
        components.viewer(shown, mode="slider", key="example_result", max_height=480)


def _chosen(backend: Backend, records: list[EditRecord]) -> EditRecord:
    """The edit of the address, if it belongs to this picture; else the newest with a result."""
    name = shell.current("edit")
    found = next((r for r in records if r.id == name), None)
    if found is None:
        found = next((r for r in records if r.status is JobState.DONE), records[0])
        shell.remember("edit", found.id)
    return found


def _shelf(backend: Backend, records: list[EditRecord], chosen: EditRecord) -> None:
    """The edits of this picture, newest first; a click shows one."""
    if len(records) < 2:
        return
    shown = records[:MOST_SHOWN]
    with st.container(horizontal=True, gap="small", key="shelf"):
        for record in shown:
            here = record.id == chosen.id
            with st.container(key=f"tile_{'on_' if here else ''}{record.id}", width=92, gap=None):
                picture = record.result.image if record.result else record.request.image.id
                st.image(backend.thumbnail(picture, 160), width=92, alt=one_line(record))
                st.button(
                    when(record.finished) or "edit",
                    key=f"shelf_{record.id}",
                    help=inert(one_line(record), 90),
                    type="tertiary",
                    width="stretch",
                    on_click=shell.remember,
                    args=("edit", record.id),
                )


def _without_picture(record: EditRecord) -> None:
    words = {
        JobState.FAILED: say("results.failed"),
        JobState.CANCELLED: say("common.cancelled"),
        JobState.INTERRUPTED: say("results.interrupted"),
    }
    said = words.get(record.status, say("results.this_edit_has_no_picture_2"))
    st.warning(f"{said} {inert(record.error or '')}")
    shell.link("drag", say("results.back_to_mask_points"), icon=":material/arrow_back:")


def _picture(view: EditView) -> None:
    """The result in one of seven ways, all on one stage."""
    store, edit = view.store, view.record.id
    with st.container(horizontal=True, vertical_alignment="center", key="result_bar"):
        chosen = st.segmented_control(
            say("common.view"),
            list(VIEWS),
            default=say("common.after"),
            required=True,
            key="result_view",
            label_visibility="collapsed",
        )
        mode = VIEWS.get(str(chosen), "hold")
        near = False
        if mode != "gif" and view.close_up() is not None:
            near = st.toggle(
                say("results.zoom_to_the_edit"),
                value=True,
                key="result_near",
                help=say("results.zoom_to_the_edit_help"),
            )
    with st.spinner(say("common.loading"), show_time=False):
        if mode in ("hold", "slider", "side", "flicker"):
            shown = [
                (say("common.before"), picture_of(store, edit, "before", near=near)),
                (say("common.after"), picture_of(store, edit, "after", near=near)),
            ]
        else:
            labels = {
                "heat": say("results.difference_per_pixel_dark_none"),
                "paths": say("results.paths"),
                "gif": say("results.animation_of_the_drag"),
            }
            shown = [(labels[mode], picture_of(store, edit, mode, near=near))]
            mode = "side"
        components.viewer(
            shown,
            mode=mode,
            key=f"result_{edit}_{near}",
            focus=None if near else view.focus(),
            stage=True,
            hold=say("results.hold_to_see_the_original"),
        )


def _outcome(view: EditView) -> None:
    """Why it ended, how far each arrow got, and what that suggests."""
    with st.container(key="card_outcome"):
        st.markdown(f"**{inert(view.outcome())}**")
        rows = []
        for a in view.arrivals():
            if reached(a):
                sign, text = (
                    ":green[:material/check_circle:]",
                    say(
                        "results.arrow_number_reached_its_target", number=a.number, left=px(a.left)
                    ),
                )
            else:
                sign, text = (
                    ":orange[:material/pending:]",
                    say(
                        "results.arrow_number_moved_share_of",
                        number=a.number,
                        share=max(0.0, a.share),
                        left=px(a.left),
                    ),
                )
            rows.append(f"{sign} {text}")
        st.markdown("  \n".join(rows))
        if view.verdict():
            st.caption(f":material/info: {inert(view.verdict())}")
        for tip in view.advice():
            st.caption(f":material/lightbulb: {inert(tip)}")
        for notice in view.result.notices:
            st.caption(f":material/info: {inert(notice)}")
        cached = sum(1 for _s, _t, c in view.timings() if c)
        saved = f", {count(cached, 'stage')} from the cache" if cached else ""
        steps = f"{count(view.result.iterations, 'step')} in " if view.result.iterations else ""
        st.caption(f"{steps}{seconds(view.total())}{saved}")


def _onwards(backend: Backend, space: Workspace, view: EditView) -> None:
    """Continue from here, run on, use these settings."""
    with st.container(horizontal=True, gap="small"):
        if st.button(
            say("common.edit_this_result"),
            type="primary",
            icon=":material/forward:",
            help=say("common.edit_this_result_help"),
        ):
            _continue(backend, view)
        there = (
            view.result.stop == StopReason.REACHED.name
        )  # more steps would end at the same place
        if view.request.drag.method != "warp" and st.button(
            say("results.run_more_steps"),
            icon=":material/fast_forward:",
            disabled=there,
            help=say("results.all_points_have_reached_their")
            if there
            else say("results.runs_the_same_drag_with"),
        ):
            _run_on(backend, space, view)
        if st.button(
            say("common.reuse_mask_and_settings"),
            icon=":material/tune:",
            help=say("results.reuse_mask_and_settings_help"),
        ):
            _reuse(backend, space, view)
        if st.button(
            say("common.compare"),
            key="compare_this",
            icon=":material/compare:",
            help=say("results.compare_help"),
        ):
            compare.open_with(backend, view.record)
        st.button(
            say("common.reproduce"),
            key="replay",
            icon=":material/replay:",
            help=say("common.reproduce_help"),
            on_click=start_replay,
            args=(backend, view.record.id),
        )
    _costs(backend, view)


def _costs(backend: Backend, view: EditView) -> None:
    """Estimated time of the two buttons that compute, where earlier runs allow it."""
    more, again = backend.seconds([_longer(view)]), backend.seconds([view.request], fresh=True)
    if more is not None and again is not None and max(more, again).seconds > shell.WORTH_SAYING:
        st.caption(say("results.run_more_steps_about", more=more, again=again))


def _longer(view: EditView) -> EditRequest:
    """The same drag with as many steps again, at least 20 more."""
    drag = view.request.drag
    steps = min(MOST_STEPS, drag.steps + max(drag.steps, 20))
    return dataclasses.replace(view.request, drag=dataclasses.replace(drag, steps=steps))


def _continue(backend: Backend, view: EditView) -> None:
    enter(continued(backend, view.record))
    shell.go("drag")


def _run_on(backend: Backend, space: Workspace, view: EditView) -> None:
    longer = _longer(view)
    if longer == view.request:
        raise BadInput(
            say("results.this_edit_already_has_steps", steps=MOST_STEPS, most=MOST_STEPS)
        )
    job = backend.submit_edit(longer)
    space.add_job(job)
    shell.remember("job", job)
    shell.remember("edit", None)
    shell.go("drag")


def _reuse(backend: Backend, space: Workspace, view: EditView) -> None:
    drawing = backend.drawing_of(view.request)
    space.change(prompt=view.request.prompt, drawing=drawing.to_json())
    form = int(space.get("drag_form", 0)) + 1
    space.set(**settings_of(view.request), drag_form=form, lora_form=form)
    shell.remember("job", None)
    shell.go("drag")


def _downloads(view: EditView) -> None:
    """Picture, strip, animation, everything; made when they are asked for."""
    with st.container(key="card_downloads"):
        st.markdown(say("results.download"))
        card = st.toggle(
            say("results.embed_settings_in_the_png"),
            value=True,
            key="with_card",
            help=say("results.embed_settings_in_the_png_help"),
        )
        files: list[tuple[str, Callable[[], bytes], str, str]] = [
            (say("results.picture_png"), lambda: view.png(bool(card)), "edited.png", "image/png"),
            (say("results.before_after_image"), view.strip, "before-after.png", "image/png"),
            (say("results.animation_gif"), view.film, "animation.gif", "image/gif"),
        ]
        if figures.video_encoder():
            film = say("results.video_mp4")
            files.append((film, lambda: view.mp4() or b"", "animation.mp4", "video/mp4"))
        whole = say("results.complete_project_zip")
        files.append((whole, view.zip, "project.zip", "application/zip"))
        with st.container(horizontal=True, gap="small"):
            for label, make, name, mime in files:
                _download(label, make, view.name(name), mime)


def _download(label: str, make: Callable[[], bytes], name: str, mime: str) -> None:
    st.download_button(
        label,
        data=make,
        file_name=name,
        mime=mime,
        key=f"download_{label}",
        on_click="ignore",
        icon=":material/download:",
    )


def _details(view: EditView) -> None:
    """Convergence, timings, parameters."""
    with guard():
        pairs = range(len(view.request.pairs))
        way = view.rows()
        if len(way) > 2:  # fewer: moved in one step, and its line would only repeat the arrows
            st.subheader(say("results.distance_to_target"), anchor=False)
            series = {
                say("results.arrow_n", n=n + 1): [
                    (t, row[n].distance(view.request.pairs[n].target)) for t, row in enumerate(way)
                ]
                for n in pairs
            }
            components.chart(
                series,
                key="convergence",
                label=say("results.distance_of_each_handle_from"),
                y_label="px",
                height=220,
            )
        with st.expander(say("results.time_and_cache")):
            facts_list(
                {
                    stage_label(s): say("results.from_the_cache") if cached else seconds(t)
                    for s, t, cached in view.timings()
                }
            )
        with st.expander(say("common.all_parameters")):
            groups = parameter_groups(view.request)
            for place, (head, rows) in zip(
                [p for _ in range(2) for p in st.columns(2, gap="large")], groups, strict=True
            ):
                with place:
                    st.markdown(f"**{head}**")
                    facts_list(rows)
