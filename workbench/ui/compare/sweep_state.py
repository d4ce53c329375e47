"""A sweep as the pages know it: kept under its address, and how it stands now. No Streamlit."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core.errors import BadInput, StoreError
from workbench.core.record import EditRecord, JobState
from workbench.core.request import EditRequest, SweepTask
from workbench.jobs.job import Job
from workbench.sweeps.plan import Plan, key_of
from workbench.sweeps.results import Outcome, outcomes, sheet_of
from workbench.ui.results import figures
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace

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
        """Whether its job runs or waits."""
        return self.job is not None and not self.job.state.ended

    def count(self, *states: str) -> int:
        """How many cells are in one of these states."""
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
