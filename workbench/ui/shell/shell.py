"""The frame of every page: heading, style, picture at hand, errors, and the way from page to page."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import streamlit as st
from streamlit.runtime import Runtime, get_instance

from workbench.core.errors import Cancelled, WorkbenchError
from workbench.core.record import JobState
from workbench.jobs import Job
from workbench.ui.shell import workspace
from workbench.ui.shell.backend import Backend, get_backend
from workbench.ui.shell.forms import Guess, about, count, field_label, inert, plain, say
from workbench.ui.shell.gate import OWNER
from workbench.ui.shell.workspace import Workspace

log = logging.getLogger(__name__)
Body = Callable[[Backend, Workspace | None], None]
ASKS_AFTER = 30.0  # s of work that are not dropped without asking
TIDY_EVERY = 60.0  # s between two looks for sessions that are over
WORTH_SAYING = 2.0  # s: what takes longer is said before the click
_HERE = Path(__file__).parent


@cache
def _style() -> str:
    return f"<style>{(_HERE / 'style.css').read_text(encoding='utf-8')}</style>"


def _collided(names: Sequence[str]) -> None:
    """Say that another tab has changed the same things."""
    st.toast(
        say("shell.another_tab_changed_names", names=inert(", ".join(map(field_label, names)))),
        icon=":material/tab:",
        duration="long",
    )


workspace.tell_collision = _collided


def page(
    title: str, intro: str, body: Body, *, needs_picture: bool = False, start: str = ""
) -> None:
    """Show a whole page: frame and heading here, the rest in `body(backend, space)`.

    Leaves legacy mode, restores project and job, and turns errors into one sentence each. Our own
    errors are that sentence; of any other the reader gets a reference under which the log has the
    whole story. `needs_picture`: without an open picture the page only says how to open one. `start`:
    the title while no picture is open.
    """
    ensure_router()
    restore()
    if st.session_state.pop("go_home", False):
        go("train")
    st.html(_style())
    with guard():
        backend = get_backend(_owner())
        space = _open(backend)
        if space is not None:
            _attach(backend, space)
        _head(backend, (space is None and start) or title, intro, space)
        if space is None and needs_picture:
            need_picture()
        else:
            with guard():
                body(backend, space)
        backend.warm_up()  # everything is sent: torch may take its seconds now


def _owner() -> str | None:
    """Whose work this session sees, as the gate in front of the server has written it."""
    owner = st.context.headers.get(OWNER)
    return str(owner) if owner else None


def _open(backend: Backend) -> Workspace | None:
    """The project of the address; one that cannot be opened is said so and left."""
    try:
        name = current("project")
        return Workspace.open(backend.store, name) if name else None
    except WorkbenchError as exc:
        leave()
        st.warning(inert(str(exc)))
        return None


def _attach(backend: Backend, space: Workspace) -> None:
    """Have the address name a job of the project at hand: the one that runs, if it names another's."""
    now = current("job")
    if now is not None and (now in space.jobs or not backend.is_live(now)):
        return
    mine = [job.id for job in backend.queue() if job.id in space.jobs]
    if mine or now is not None:
        remember("job", mine[-1] if mine else None)


def _head(backend: Backend, title: str, intro: str, space: Workspace | None) -> None:
    """The page's name, the open picture, and other running jobs."""
    with st.container(key="wb_head", horizontal=True, vertical_alignment="center", gap="small"):
        if space is not None:
            st.image(backend.thumbnail(space.image.id, 128), width=60, alt="")
        with st.container(key="wb_title", gap=None, width="content"):
            st.title(title, anchor=False)
            image = space.image if space else None
            st.caption(
                f"{inert(space.title, 60)} · {image.width} × {image.height} px"
                if space and image
                else intro
            )
            if space is not None:
                with guard():
                    _readiness(backend, space)
        st.space("stretch")
        with st.container(key="wb_under_way", width="content"):
            _under_way(backend)
        if space is not None:
            st.button(
                say("shell.open_another_picture"),
                key="bar_leave",
                type="tertiary",
                icon=":material/swap_horiz:",
                on_click=_leave_for_home,
                help=say("shell.open_another_picture_help"),
            )


def _readiness(backend: Backend, space: Workspace) -> None:
    """One line about the next run: it can start, or what it waits for and how long."""
    job_id = str(space.get("train_job") or "")

    def line() -> None:
        with guard():
            live = backend.is_live(job_id)
            if began_live and not live:
                st.rerun()  # once, as a whole: what was trained can be used
            icon, words = _state_words(backend, space, backend.job(job_id) if live else None)
            st.caption(f":material/{icon}: {inert(words)}")

    began_live = backend.is_live(job_id)
    st.fragment(line, run_every=1.0 if began_live else None)()


def _state_words(backend: Backend, space: Workspace, job: Job | None) -> tuple[str, str]:
    """Icon and text of the line."""
    if space.generation is not None:
        return "check_circle", say("shell.ready_no_training")
    if space.lora_file is not None and not space.drag.drafts:
        return "check_circle", say("shell.ready_lora", name=plain(space.lora_file.name, 40))
    if job is not None and job.state is JobState.QUEUED:
        return "hourglass_top", say("shell.training_waits")
    if job is not None:
        guess = backend.training_seconds(space) if job.eta is None else Guess(job.eta)
        if guess is None:
            return "hourglass_top", say("shell.training_now")
        return "hourglass_top", say("shell.ready_soon", time=guess)
    if space.drag.drafts:
        guess = backend.seconds([space.request((), None)])
        if guess is None or guess.seconds <= WORTH_SAYING:
            return "check_circle", say("shell.ready_no_training")
        return "check_circle", say("shell.ready_run_takes", time=guess)
    if backend.is_trained(space):
        return "check_circle", say("shell.ready")
    guess = backend.training_seconds(space)
    if guess is None:
        return "schedule", say("shell.trains_on_run_unknown")
    return "schedule", say("shell.trains_on_run", time=guess)


def _under_way(backend: Backend) -> None:
    """Number of running and queued jobs, with a menu to open or cancel one; refreshed while they run."""

    def menu() -> None:
        jobs = backend.queue()
        if not jobs:
            return
        label = say("shell.jobs_running", jobs=count(len(jobs), "job"))
        with st.popover(label, icon=":material/hourglass_top:", type="tertiary", key="jobs_menu"):
            for job in jobs:
                _one_job(backend, job)

    st.fragment(menu, run_every=2.0 if backend.queue() else None)()


def _one_job(backend: Backend, job: Job) -> None:
    name = job.label or job.kind
    with st.container(horizontal=True, vertical_alignment="center", key=f"runbar_menu_{job.id}"):
        st.markdown(inert(name, 40))
        st.space("stretch")
        project = backend.project_with(job.id)
        if project is not None and st.button(say("shell.open_job"), key=f"open_{job.id}"):
            remember("project", project)
            remember("job", job.id)
            go("drag" if job.kind in ("edit", "train") else "train")
        label = say("shell.cancel_job", label=inert(name, 30))
        cancel_button(backend, job, label, key=f"cancel_menu_{job.id}")


def cancel_button(backend: Backend, job: Job, label: str, *, key: str) -> None:
    """Cancel a job; what has taken longer than `ASKS_AFTER` is dropped only after a question.

    Acts in callbacks: they run before the page does, so that nothing has to be run again, which in a
    fragment that is part of a run of the whole page would not be allowed.
    """
    asked = f"asked_{job.id}"
    worked = time.time() - job.started if job.started else 0.0

    def ask() -> None:
        if worked > ASKS_AFTER:
            st.session_state[asked] = True
        else:
            backend.cancel(job.id)

    def stop() -> None:
        st.session_state.pop(asked, None)
        backend.cancel(job.id)

    if job.cancelling:
        st.button(say("shell.stopping"), key=key, disabled=True)
    elif st.session_state.get(asked):
        st.markdown(say("shell.stop_this_work", time=about(worked)))
        st.button(say("shell.stop"), key=key, type="primary", on_click=stop)
        st.button(
            say("shell.keep_running"),
            key=f"{key}_keep",
            on_click=lambda: st.session_state.pop(asked, None),
        )
    else:
        st.button(label, key=key, on_click=ask)


def leave() -> None:
    """Close the picture at hand; its project stays in the list."""
    for name in KEPT:
        remember(name, None)


def _leave_for_home() -> None:
    leave()
    st.session_state["go_home"] = True


def need_picture() -> None:
    """Message of a page that needs a picture."""
    with st.container(key="card_empty"):
        st.markdown(say("shell.no_picture_is_open_open"))
        link("train", say("common.upload_train"), icon=":material/arrow_forward:")


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Show an error of the enclosed block in its place; the rest of the page is still shown."""
    try:
        yield
    except Cancelled:
        st.info(say("common.cancelled"))
    except WorkbenchError as exc:
        st.error(inert(str(exc)))
    except Exception:
        st.error(unexpected())


def unexpected() -> str:
    """Log the exception at hand with its traceback; return the sentence with its reference."""
    reference = secrets.token_hex(3)
    log.exception("unexpected error, reference %s", reference)
    return say("shell.something_went_wrong_reference", reference=reference)


# a local file: a named icon would be fetched from a font server
ICON = Path(__file__).resolve().parents[1] / "assets" / "icon.png"

PAGES: dict[str, tuple[str, str]] = {
    "train": ("pages/train.py", say("common.upload_train")),
    "drag": ("pages/drag.py", say("common.mask_points")),
    "results": ("pages/results.py", say("common.results")),
    "compare": ("pages/compare.py", say("common.compare")),
    "history": ("pages/history.py", say("common.history")),
    "settings": ("pages/settings.py", say("common.settings")),
}
KEPT = ("project", "job", "edit")


def ensure_router() -> None:
    """Leave Streamlit's legacy mode, in which a `pages/` folder runs without streamlit_app.py.

    A fresh server is in that mode until streamlit_app.py has run once, so a deep link to a page as
    the very first request would show it without frame and menu. The import is private and guarded:
    without it the page still works, only its frame is missing on that first request.
    """
    try:
        from streamlit.runtime.pages_manager import PagesManager
    except ImportError:
        return
    if PagesManager.uses_pages_directory:
        PagesManager.uses_pages_directory = False
        st.rerun()


def current(name: str) -> str | None:
    """The `project`, `job` or `edit` at hand: the URL's, else the session's."""
    value = st.query_params.get(name) or st.session_state.get(f"at_{name}")
    return str(value)[:64] if value else None


def remember(name: str, value: str | None) -> None:
    """Put a `project`, `job` or `edit` into the URL and the session, or take it out with None."""
    if value:
        st.session_state[f"at_{name}"] = value
        if st.query_params.get(name) != value:
            st.query_params[name] = value
    else:
        st.session_state.pop(f"at_{name}", None)
        if name in st.query_params:
            del st.query_params[name]


def restore() -> None:
    """Make URL and session agree; the URL wins. To be called at the top of each page."""
    for name in KEPT:
        remember(name, current(name))


def params() -> dict[str, str]:
    """The query that keeps project, job and edit on the way to another page."""
    return {name: value for name in KEPT if (value := current(name))}


def go(page: str) -> NoReturn:
    """Go to a page with the present project, job and edit."""
    st.switch_page(PAGES[page][0], query_params=params())
    raise AssertionError("unreachable: switch_page ends the script")


def link(
    page: str, label: str, *, icon: str | None = None, help: str | None = None, part: str = ""
) -> None:
    """A link to a page (or a part of it) that keeps project, job and edit."""
    query = params() | ({"part": part} if part else {})
    st.page_link(PAGES[page][0], label=label, icon=icon, help=help, query_params=query)


# --- memory of closed tabs ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tidied(_server: object, every: float = TIDY_EVERY) -> AsyncIterator[None]:
    """While the server runs, let go of closed tabs, looking for them each `every` seconds.

    Streamlit keeps a closed session for `server.disconnectedSessionTTL` seconds and forgets it only
    when yet another tab closes: the last ones, uploads included, stayed for ever. And what a session
    leaves in cycles waits for a full garbage collection, which with torch loaded comes after 100,000
    new objects, whatever these weigh; none is forced after a script's run (.streamlit/config.toml).
    """
    task = asyncio.create_task(_tidy(get_instance(), every))
    try:
        yield
    finally:
        task.cancel()


async def _tidy(runtime: Runtime, every: float) -> None:
    before: set[str] = set()
    while True:
        await asyncio.sleep(every)
        now = _expire(runtime)
        if before - now:
            gc.collect()
        before = now


def _expire(runtime: Runtime) -> set[str]:
    """Forget the stored sessions whose time is over; ids of those that may still come back."""
    stored = runtime._session_mgr._session_storage._cache  # no public way leads to it
    stored.expire()  # nobody else holds a session: its end shuts it down and removes its files
    return set(stored)
