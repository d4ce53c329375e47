"""A sweep on the page: the form of what it varies, its saved plan, and its progress."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from workbench.core.config import METHODS, method_label
from workbench.core.errors import BadInput, StoreError, WorkbenchError
from workbench.core.options import range_text
from workbench.core.record import EditRecord, JobState
from workbench.core.request import EditRequest, SweepTask
from workbench.jobs import Job
from workbench.sweeps import (
    METHOD,
    Axis,
    Plan,
    Value,
    key_of,
    parameter,
    parameters,
    parse_values,
    show,
    suggested,
)
from workbench.sweeps.results import Outcome, outcomes, sheet_of
from workbench.ui.compare import facts
from workbench.ui.shell import figures, projection
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.edits import one_line
from workbench.ui.shell.forms import count, field_label, inert, plain, say, when
from workbench.ui.shell.workspace import Workspace

DRAWING = "drawing"
NONE = ""
_EDITS = 30  # edits that are offered as the drag


@dataclass(frozen=True, slots=True)
class Wish:
    """State of the form: a plan, or the reason why there is none yet."""

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
    chosen = facts.chosen_ids()
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
        now = standing(backend, plan)
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
    name = save(backend, at, plan)
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
            say("compare.about_time", time=took)
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


KEPT = 20  # sweeps that a project lists
_TAG = "wb1:"
_NAME = re.compile(r"[0-9a-f]{32}")


# --- kept -----------------------------------------------------------------------------------------------


def save(backend: Backend, space: Workspace, plan: Plan) -> str:
    """Keep a plan in the history and list it in its project; its name for the address."""
    name = backend.store.put_blob(plan.raw(), "json")
    listed = [name, *(n for n in space.get("sweeps", ()) if n != name)]
    space.set(sweeps=listed[:KEPT])
    return name.removeprefix(_TAG)


def load(backend: Backend, name: str) -> Plan:
    """The plan of an address.

    Raises:
        BadInput: when there is none of this name.
        StoreError: when its file was damaged.
    """
    if not _NAME.fullmatch(name) or backend.store.find(_TAG + name, "blobs") is None:
        raise BadInput(say("compare.this_sweep_was_not_found"))
    return Plan.from_raw(backend.store.blob(_TAG + name))


def listed(backend: Backend, space: Workspace) -> dict[str, str]:
    """A project's sweeps, newest first: name -> title."""
    found = {}
    for name in space.get("sweeps", ()):
        try:
            plan = load(backend, str(name).removeprefix(_TAG))
        except (BadInput, StoreError):
            continue  # a line less: the edits themselves are in the history
        found[str(name).removeprefix(_TAG)] = f"{plan.title} ({plan.rows} × {plan.columns})"
    return found


# --- how it stands --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """A sweep at one moment."""

    plan: Plan
    outcomes: tuple[Outcome, ...]
    job: Job | None  # the last one of this sweep in this process

    @property
    def live(self) -> bool:
        """True if its job runs or waits."""
        return self.job is not None and not self.job.state.ended

    def count(self, *states: str) -> int:
        """Number of cells in one of these states."""
        return sum(o.state in states for o in self.outcomes)

    @property
    def left(self) -> list[EditRequest]:
        """The runs that have no picture yet."""
        done = {o.cell.key for o in self.outcomes if o.state == "done"}
        return [c.request for c in self.plan.runs() if c.key not in done]

    @property
    def edits(self) -> list[str]:
        """Ids of the edits with a picture, each once."""
        return list(dict.fromkeys(o.record.id for o in self.outcomes if _shows(o) and o.record))

    def share(self) -> tuple[int, int]:
        """Runs of the job that have ended, and all of them."""
        asked = [key_of(r) for r in _requests(self.job)]
        ended = {o.cell.key for o in self.outcomes if o.state in ("done", "failed")}
        if self.job is not None and self.job.progress is not None:
            # a failed run is known from the history only if it got so far
            return max(self.job.progress.part - 1, 0), len(asked)
        return sum(k in ended for k in asked), len(asked)

    def seconds_left(self, guess: float | None) -> float | None:
        """Time to go: from the runs that have ended, before that the estimate."""
        done, total = self.share()
        if self.job is None or not self.job.started:
            return guess
        spent = time.time() - self.job.started
        if done:
            return spent / done * (total - done)
        # slower than thought: no number is better than a wrong one
        return guess - spent if guess is not None and guess > spent else None


def _shows(one: Outcome) -> bool:
    return one.state == "done" and one.record is not None


def _requests(job: Job | None) -> tuple[EditRequest, ...]:
    return job.payload.requests if job and isinstance(job.payload, SweepTask) else ()


def standing(backend: Backend, plan: Plan) -> Standing:
    """Look at a sweep: its edits in the history, its job, what waits."""
    cells = {cell.key for cell in plan.cells}
    job = next((j for j in backend.recent("sweep") if _belongs(j, cells)), None)
    live = job is not None and not job.state.ended
    errors = {}
    if job is not None and isinstance(job.result, dict):
        asked = _requests(job)
        errors = {key_of(asked[int(n)]): str(text) for n, text in job.result["errors"].items()}
    records = backend.store.records(image=plan.base.image.id)
    running = [p.request for p in backend.store.pending()] if live else []
    waiting = _waiting(job, records) if live else []
    found = outcomes(plan, records, running=running, waiting=waiting, errors=errors)
    return Standing(plan, tuple(found), job)


def _belongs(job: Job, cells: set[str]) -> bool:
    asked = {key_of(r) for r in _requests(job)}
    return bool(asked) and asked <= cells


def _waiting(job: Job | None, records: Sequence[EditRecord]) -> list[EditRequest]:
    """A job's runs without those that failed since it was started: they do not come again."""
    begun = job.started if job else 0.0
    since = datetime.datetime.fromtimestamp(begun, datetime.UTC).isoformat() if begun else "9"
    failed = {
        key_of(r.request) for r in records if r.status is JobState.FAILED and r.started >= since
    }
    return [r for r in _requests(job) if key_of(r) not in failed]


# --- to take away ---------------------------------------------------------------------------------------


def sheet(backend: Backend, now: Standing) -> bytes:
    """The grid as one labelled picture, PNG."""

    def pixels(name: str) -> figures.U8:
        return figures.shown(backend.store.image(name), 512)

    return figures.encode(sheet_of(now.plan, now.outcomes, pixels), "PNG")
