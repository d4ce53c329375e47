"""What a sweep varies: which drag, which methods, which parameters with which values."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from workbench.core.config import METHODS, method_label
from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.options import range_text
from workbench.core.request import EditRequest
from workbench.sweeps.plan import (
    METHOD,
    Axis,
    Plan,
    Value,
    parameter,
    parameters,
    parse_values,
    show,
    suggested,
)
from workbench.ui.compare import page, sweep_state
from workbench.ui.draw import projection
from workbench.ui.results.edits import one_line
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.text import (
    count,
    field_label,
    inert,
    plain,
    seconds,
    when,
)
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace

DRAWING = "drawing"
NONE = ""
_EDITS = 30  # edits that are offered as the drag


@dataclass(frozen=True, slots=True)
class Wish:
    """What the form says: a plan, or why there is none yet."""

    plan: Plan | None
    reason: str = ""


def form(backend: Backend, space: Workspace | None) -> Wish:
    """The widgets; what they hold as a plan."""
    base = _base(backend, space)
    if base is None:
        return Wish(None)
    axes: list[Axis] = []
    try:
        methods = st.pills(
            say("compare.methods"),
            list(METHODS),
            selection_mode="multi",
            default=[base.drag.method],
            format_func=method_label,
            key="sweep_methods",
            help=say("compare.methods_help"),
        )
        if len(methods) > 1:
            axes.append(Axis(METHOD, tuple(methods)))
        method = methods[0] if len(methods) == 1 else base.drag.method
        first = _parameter("1", base, skip=NONE)
        second = _parameter("2", base, skip=first[0]) if first[0] else (NONE, "")
        axes += [Axis(name, parse_values(name, text)) for name, text in (first, second) if name]
        if len(methods) == 1 and method != base.drag.method:
            axes.insert(0, Axis(METHOD, (method,)))
        if not methods:
            return Wish(None, say("compare.select_at_least_one_method"))
        if all(len(a.values) < 2 for a in axes):
            return Wish(None, say("compare.select_a_second_method_or"))
        return Wish(Plan(base, tuple(axes)))
    except BadInput as exc:
        return Wish(None, str(exc))


def _base(backend: Backend, space: Workspace | None) -> EditRequest | None:
    """The drag that is repeated: the open drawing, or an edit's."""
    chosen = page.chosen_ids()
    of = space.image.id if space else None
    found = backend.store.records(image=of)[:_EDITS]
    known = {r.id for r in found}
    found = [r for r in backend.store.records() if r.id in chosen and r.id not in known] + found
    labels = {
        r.id: say("compare.edit_one_line_finished", one_line=one_line(r), finished=when(r.finished))
        for r in found
        if r.request.pairs
    }
    if space is not None:
        labels = {DRAWING: say("compare.the_current_drawing"), **labels}
    if not labels:
        st.info(say("compare.a_sweep_repeats_an_edit"))
        return None
    wanted = st.session_state.get("sweep_base")
    if wanted not in labels:
        st.session_state.pop("sweep_base", None)
    name = st.selectbox(
        say("compare.edit_to_repeat"),
        list(labels),
        format_func=labels.__getitem__,
        key="sweep_base",
        help=say("compare.edit_to_repeat_help"),
    )
    if name != DRAWING:
        return next(r.request for r in found if r.id == name)
    assert space is not None
    drawing = projection.stored(space.project.drawing)
    if not drawing.pairs:
        st.info(say("compare.no_arrows_yet_draw_one"))
        return None
    return space.request(drawing.pairs, backend.mask_asset(space, drawing))


def _parameter(number: str, base: EditRequest, *, skip: str) -> tuple[str, str]:
    """One parameter and its values as text; ("", "") for none."""
    names = [n for n in parameters() if n not in (METHOD, skip)]
    left, right = st.columns([1, 1], vertical_alignment="bottom")
    with left:
        name = st.selectbox(
            say("compare.parameter") if number == "1" else say("compare.second_parameter"),
            [NONE, *names],
            format_func=_label,
            key=f"sweep_parameter_{number}",
        )
    if not name:
        return NONE, ""
    of = parameter(name)
    now: Value = getattr(getattr(base, of.part), of.field)
    span = range_text(of.option).strip()
    with right:
        text = st.text_input(
            say("compare.values"),
            value=", ".join(show(v) for v in suggested(name, now)),
            key=f"sweep_values_{number}_{name}",
            help=say("compare.help_separate_values_with_commas", help=of.option.help)
            + (say("compare.range_span", span=span) if span else say("compare.values_yes_no")),
        )
    return name, text


def _label(name: str) -> str:
    if not name:
        return say("common.none")
    of = parameter(name)
    head = {
        "drag": say("common.drag"),
        "lora": say("common.lora"),
        "inversion": say("common.inversion"),
    }[of.part]
    return f"{head}: {field_label(of.field).lower()}"


def start(backend: Backend, space: Workspace | None, wish: Wish) -> str | None:
    """Number of runs, estimated time and the button; the sweep's name once it was pressed."""
    plan = wish.plan
    missing: list[EditRequest] = []
    if plan is not None:
        now = sweep_state.standing(backend, plan)
        missing = now.left
        st.markdown(_words(backend, plan, missing))
    problem = backend.facts.of(plan.base.model.name).problem if plan is not None else ""
    reason = wish.reason or problem
    label = (
        say("compare.run_edits", edits=count(len(missing), "edit"))
        if missing
        else say("compare.show_results")
        if plan
        else say("compare.run")
    )
    pressed = st.button(
        label,
        key="sweep_run",
        type="primary",
        icon=":material/play_arrow:",
        disabled=plan is None or bool(problem),
    )
    if reason:
        st.caption(inert(reason))
    if not pressed or plan is None:
        return None
    at = home(backend, space, plan)
    name = sweep_state.save(backend, at, plan)
    if missing:
        submit(backend, at, plan, missing)
    return name


def _words(backend: Backend, plan: Plan, missing: list[EditRequest]) -> str:
    """'3 × 4 cells, 10 runs, about 6 min at most'."""
    runs = len(plan.runs())
    parts = [f"**{plan.rows} × {plan.columns}** = {count(len(plan.cells), 'cell')}"]
    if runs < len(plan.cells):
        parts.append(
            say("compare.edits_a_method_ignores_parameters", edits=count(runs, "different edit"))
        )
    if len(missing) < runs:
        parts.append(say("compare.runs_already_done", runs=runs - len(missing)))
    if missing:
        took = backend.seconds(missing)
        time = (
            say("compare.about_time", time=seconds(took))
            if took is not None
            else say("compare.time_not_known_yet")
        )
        parts.append(f"**{count(len(missing), 'run')}, {time}**")
    return " · ".join(parts)


def submit(backend: Backend, space: Workspace, plan: Plan, missing: list[EditRequest]) -> None:
    """Queue runs as one job of the project."""
    label = say(
        "compare.sweep_of_name_title", name=plain(plan.base.image.name, 40), title=plan.title
    )
    space.add_job(backend.submit_sweep(missing, label))


def home(backend: Backend, space: Workspace | None, plan: Plan) -> Workspace:
    """The project that lists the sweep: the open one if it is of this picture, else a new one."""
    if space is not None and space.image.id == plan.base.image.id:
        return space
    for project in backend.store.projects.recent():
        if project.image == plan.base.image.id:
            try:
                return Workspace(backend.store, project)
            except WorkbenchError:
                continue
    return backend.project_of(plan.base)
