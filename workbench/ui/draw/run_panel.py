"""Panel of the running job: phase, step, time left, cancel, the picture as it changes, the curves.

A fragment polls the executor while a job lives, so that the page around it stays usable; when the
job ends, the page runs once as a whole and the polling stops. Nothing here computes; it only displays.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from workbench.canvas.overlay import overlay
from workbench.core.errors import BadInput
from workbench.core.record import JobState, stage_label
from workbench.core.request import EditRequest, TrainTask
from workbench.imaging.coords import Frame
from workbench.jobs import Job
from workbench.ui import components
from workbench.ui.shell import figures, shell
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import count, inert, say, seconds
from workbench.ui.shell.shell import guard

POLL = 0.5  # seconds between two looks
QUEUE_POLL = 2.0  # the same for the jobs beside the one at hand
TOO_SOON = 0.25  # seconds after a run within which its end may not have reached the browser
ASKS_AFTER = 30.0  # s of work that are not dropped without asking
_EDITED = "edited_beside_a_job"
_SIGNS = {
    JobState.DONE: ":material/check_circle:",
    JobState.FAILED: ":material/error:",
    JobState.CANCELLED: ":material/do_not_disturb_on:",
    JobState.INTERRUPTED: ":material/power_off:",
}


def edited() -> None:
    """Say that the fragment round a job's panel ran by itself, for the panel's next look.

    A look that follows at once makes Streamlit tell the browser that the run before was cut short, and
    the browser then keeps what that run no longer has (an old form beside the new one). Only a run
    of the whole page is never taken for cut short, so such a look asks for one.
    """
    st.session_state[_EDITED] = time.monotonic()


def job_panel(
    backend: Backend, job_id: str, *, key: str, poll: float = POLL, on_stage: bool = False
) -> JobState | None:
    """Show one job until it has ended, and what it came to; returns its state on entry.

    Args:
        backend: where the job lives.
        job_id: which one; an unknown id is said so and forgotten.
        key: unique key of the panel.
        poll: seconds between two looks.
        on_stage: the picture as it changes is shown over the canvas instead of in the panel.
    """
    try:
        at_entry = backend.job(job_id).state
    except BadInput:
        shell.remember("job", None)
        st.info(say("draw.unknown_job"))
        return None
    live = not at_entry.ended

    inline = [True]  # the first run is part of another's, whose clicks a rerun would swallow

    def panel() -> None:
        edited_at = st.session_state.pop(_EDITED, -TOO_SOON)
        if not inline and time.monotonic() - edited_at < TOO_SOON:
            st.rerun()
        inline.clear()
        with guard(), st.container(key=f"run_{key}"):
            job = backend.job(job_id)
            if job.state.ended and live:
                st.rerun()  # once, as a whole: results, checklist and links follow
            _head(backend, job, key)
            if on_stage:
                _live(job)
            elif job.preview:
                picture = live_picture(job, _request(job))
                shown = [(say("draw.running_picture"), picture)]
                components.viewer(shown, mode="single", key=f"live_{key}", max_height=320)
            with st.expander(say("draw.details")):
                _stages(job)
                _curves(job, key)

    st.fragment(panel, run_every=poll if live else None)()
    return at_entry


def _head(backend: Backend, job: Job, key: str) -> None:
    """One line that says how things stand, the bar, and cancel."""
    words, share = describe(job)
    with st.container(key=f"runbar_{key}", horizontal=True, vertical_alignment="center"):
        st.markdown(f"{_SIGNS.get(job.state, ':material/hourglass_top:')} **{inert(words)}**")
        st.space("stretch")
        if not job.state.ended:
            _cancel(backend, job, key, say("draw.cancel"))
    if not job.state.ended:
        st.progress(share)
        _confirm(backend, job, key)
    if job.error and job.state in (JobState.FAILED, JobState.INTERRUPTED):
        st.error(inert(job.error))


def _cancel(backend: Backend, job: Job, key: str, name: str) -> None:
    """Cancel; what has taken longer than `ASKS_AFTER` is dropped only after a question.

    No shortcut: Esc belongs to lists, dialogs and what is being drawn.
    """

    def act() -> None:  # a callback: a fragment must not ask for its own run in a run of the page
        if worked(job) > ASKS_AFTER:
            st.session_state[f"asked_{job.id}"] = True
        else:
            backend.cancel(job.id)

    label = say("draw.stopping") if job.cancelling else name
    st.button(label, key=f"cancel_{key}", disabled=job.cancelling, on_click=act)


def _confirm(backend: Backend, job: Job, key: str) -> None:
    asked = f"asked_{job.id}"
    if not st.session_state.get(asked) or job.cancelling:
        return

    def keep() -> None:
        st.session_state.pop(asked, None)

    def stop() -> None:
        keep()
        backend.cancel(job.id)

    with st.container(key=f"confirm_{key}"):
        st.warning(say("draw.confirm_stop", time=seconds(worked(job))))
        with st.container(horizontal=True, gap="small"):
            st.button(say("draw.stop"), key=f"stop_{key}", type="primary", on_click=stop)
            st.button(say("draw.keep_running"), key=f"keep_{key}", on_click=keep)


def worked(job: Job) -> float:
    """Seconds since a job was started; 0 while it waits."""
    return time.time() - job.started if job.started and not job.finished else 0.0


def describe(job: Job) -> tuple[str, float]:
    """A job in one line, and how far its present stage is (0..1)."""
    if job.state is JobState.QUEUED:
        ahead = job.position or 0
        words = "Next in the queue" if not ahead else f"Waiting: {count(ahead, 'job')} ahead"
        return words, 0.0
    if job.state is JobState.RUNNING:
        step = job.progress
        if step is None:
            return "Starting", 0.0
        words = stage_label(step.stage)
        if job.kind == "generate" and step.parts:
            words += f" · picture {step.part} of {step.parts}"
            if job.eta is not None and step.step < step.total:
                words += f" · about {seconds(job.eta)} left"
        elif step.waiting:
            words += " · waiting for another run that computes the same"
        elif step.total > 1:
            words += f" · step {step.step} of {step.total}"
            if job.eta and step.step < step.total:
                words += f" · {_pace((step.total - step.step) / job.eta)}"
            if job.eta is not None and step.step < step.total:
                words += f" · about {seconds(job.eta)} left"
        return words, min(1.0, step.step / step.total) if step.total else 0.0
    took = f" in {seconds(job.finished - job.started)}" if job.started and job.finished else ""
    return f"Done{took}" if job.state is JobState.DONE else job.state.label, 1.0


def last_line(job: Job) -> None:
    """An ended job in one line."""
    st.caption(f"{_SIGNS.get(job.state, '')} **{inert(describe(job)[0])}**")
    if job.error and job.state in (JobState.FAILED, JobState.INTERRUPTED):
        st.error(inert(job.error))


def _pace(per_second: float) -> str:
    """Speed: steps per second, or seconds per step when that reads better."""
    return f"{per_second:.2g} steps/s" if per_second >= 1 else f"{1 / per_second:.2g} s/step"


def _stages(job: Job) -> None:
    """Finished stages, their time, and what the cache saved."""
    parts = []
    for done in job.stages:
        took = "from the cache" if done.cached else seconds(done.seconds)
        parts.append(f"{stage_label(done.stage)}: {took}")
    if parts:
        st.caption(" · ".join(parts))


def _request(job: Job) -> EditRequest | None:
    return job.payload if isinstance(job.payload, EditRequest) else None


def _live(job: Job) -> None:
    """The picture as it changes, over the canvas."""
    if job.preview:
        picture = live_picture(job, _request(job))
        label = say("draw.running_picture")
        components.shown("live", src=picture, label=label, of=job.id, key="stage_shown")
    else:
        components.shown(key="stage_shown")


def _curves(job: Job, key: str) -> None:
    """The distance of each handle; the loss while it trains."""
    request = _request(job)
    if len(job.tracks) > 1:
        pairs = len(job.tracks[-1][1])
        series = {f"Arrow {n + 1}": [(s, d[n]) for s, d in job.tracks] for n in range(pairs)}
        total = request.drag.steps if request else 0
        components.chart(
            series,
            key=f"distance_{key}",
            label="Distance of each handle from its target, in pixels, over the steps",
            y_label="px",
            total=min(total, 4 * job.tracks[-1][0]),
        )
    elif len(job.losses) > 1:
        total = job.payload.request.lora.steps if isinstance(job.payload, TrainTask) else 0
        components.chart(
            {"Loss": smooth(job.losses)},
            key=f"loss_{key}",
            label="Training loss over the steps",
            total=total,
        )


def live_picture(job: Job, request: EditRequest | None) -> bytes:
    """The last preview with the handles' ways drawn on it, JPEG or WebP bytes."""
    if request is None or not job.paths:
        return job.preview or b""
    rgb = figures.decode(job.preview or b"")
    image = request.image
    to = Frame.whole(image.width, image.height, rgb.shape[1], rgb.shape[0])
    rows = figures.fit_rows([points for _, points in job.paths], to)
    return figures.encode(overlay(rgb, None, figures.fit_pairs(request.pairs, to), paths=rows))


def smooth(points: Sequence[tuple[int, float]], keep: float = 0.8) -> list[tuple[int, float]]:
    """A noisy curve's running mean with exponential weights (each value counts from the first)."""
    out: list[tuple[int, float]] = []
    mean = 0.0
    weight = 0.0
    for step, value in points:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        out.append((step, mean / weight))
    return out


def queue_panel(backend: Backend, *, key: str, but: str | None = None) -> None:
    """The other jobs that run or wait, how far each is, and its cancel; looked at again meanwhile."""

    def panel() -> None:
        others = [j for j in backend.queue() if j.id != but]
        if not others:
            return
        with st.expander(say("draw.queue", n=len(others)), key=f"queue_{key}"):
            for job in others:
                name = inert(job.label or job.kind, 40)
                with st.container(
                    key=f"runbar_{key}_{job.id}", horizontal=True, vertical_alignment="center"
                ):
                    st.markdown(f"{name} — {inert(describe(job)[0])}")
                    st.space("stretch")
                    _cancel(backend, job, f"{key}_{job.id}", say("draw.cancel_job", name=name))
                _confirm(backend, job, f"{key}_{job.id}")

    st.fragment(panel, run_every=QUEUE_POLL if backend.queue() else None)()
