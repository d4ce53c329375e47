"""What is known about jobs, and every change of their state; the executors only decide when.

queued -> running -> done | failed | cancelled | interrupted. All changes go through `JobTable`
under one lock, so that a job never has two ends.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.core.errors import BadInput, Cancelled, WorkbenchError
from workbench.core.record import JobState, OnStep, StepInfo
from workbench.core.request import Point
from workbench.jobs.board import Board
from workbench.storage.ulid import UlidMaker

log = logging.getLogger(__name__)

KEEP = 500  # ended jobs that stay in memory; older ones are found on the board
MOST_POINTS = 2000  # of a live curve
STOPPED = "The workbench stopped before this job was finished; start it again."


class CancelToken:
    """Asks one job to stop."""

    def __init__(self) -> None:
        """Not asked yet."""
        self._event = threading.Event()

    def set(self) -> None:
        """Ask; asking twice is the same."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """True once asked."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise when asked to stop.

        Raises:
            Cancelled: when asked.
        """
        if self._event.is_set():
            raise Cancelled("Cancelled.")

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until asked; True when asked."""
        return self._event.wait(seconds)


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage of a job so far. `seconds` runs until its last report."""

    stage: str
    step: int
    total: int
    seconds: float
    cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is known about a job at one moment. Times are seconds since 1970, 0 where not yet."""

    id: str
    kind: str
    owner: str = ""
    key: str | None = None
    label: str = ""
    payload: Any = None  # after a restart: its JSON, as far as it had one
    state: JobState = JobState.QUEUED
    cancelling: bool = False  # asked to stop, not stopped yet
    progress: StepInfo | None = None
    preview: bytes | None = None  # the last preview of any step
    stages: tuple[StageTime, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()  # (step, loss) of the current stage that has losses
    tracks: tuple[tuple[int, tuple[float, ...]], ...] = ()  # (step, distance left per pair)
    trail: tuple[tuple[int, tuple[Point, ...]], ...] = ()  # (step, handle points in image px)
    position: int | None = None  # waiting jobs ahead of it, while queued
    eta: float | None = None  # seconds left of this stage, from its finished steps; None: unknown
    device: str = ""
    created: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    error: str | None = None  # sentence for the user
    result: Any = None


@dataclass(frozen=True, slots=True)
class Task:
    """What the work gets: the frozen payload, and how to report and when to stop."""

    id: str
    kind: str
    payload: Any
    owner: str
    device: str
    token: CancelToken
    on_step: OnStep


Run = Callable[[Task], Any]


@dataclass
class Entry:
    """A job's changing side; only touched under the table's lock."""

    job: Job
    token: CancelToken = field(default_factory=CancelToken)
    stage_started: float = 0.0
    first: tuple[int, float] = (0, 0.0)  # step and time of the stage's first report
    curve_stage: str = ""
    losses: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=MOST_POINTS))
    tracks: deque[tuple[int, tuple[float, ...]]] = field(
        default_factory=lambda: deque(maxlen=MOST_POINTS)
    )
    trail: deque[tuple[int, tuple[Point, ...]]] = field(
        default_factory=lambda: deque(maxlen=MOST_POINTS)
    )
    ended: threading.Event = field(default_factory=threading.Event)


class JobTable:
    """All jobs of one executor and every change of their state; the executors only decide when."""

    def __init__(self, board: Board | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`board` keeps states over a restart; `clock` measures the steps."""
        self.lock = threading.RLock()
        self._board = board
        self._clock = clock
        self._ids = UlidMaker()
        self._entries: dict[str, Entry] = {}
        self._ended: deque[str] = deque()
        for line in board.load() if board else []:
            self._ids.seen(str(line.get("id")))

    def add(self, kind: str, payload: Any, owner: str, key: str | None, label: str) -> str:
        """A new queued job. The payload is copied: what the caller changes later does not count."""
        with self.lock:
            job = Job(
                id=self._ids.new(),
                kind=kind,
                owner=owner,
                key=key,
                label=label,
                payload=copy.deepcopy(payload),
                created=time.time(),
            )
            self._entries[job.id] = Entry(job)
            self._write(job)
            return job.id

    def twin(self, owner: str, key: str | None) -> str | None:
        """The job of this owner and key that is under way and not being cancelled."""
        if key is None:
            return None
        with self.lock:
            for entry in self._entries.values():
                job = entry.job
                live = not job.state.ended and not entry.token.cancelled
                if live and job.key == key and job.owner == owner:
                    return job.id
        return None

    def entry(self, job_id: str, owner: str | None) -> Entry | None:
        """The entry, if it is this owner's (None: anybody's)."""
        with self.lock:
            entry = self._entries.get(job_id)
            return entry if entry and owner in (None, entry.job.owner) else None

    def job(self, job_id: str, owner: str | None) -> Job:
        """The job now, from memory or from the board.

        Raises:
            BadInput: for an unknown id or another owner's.
        """
        with self.lock:
            entry = self.entry(job_id, owner)
            if entry is not None:
                return self._view(entry)
        line = self._board.find(job_id) if self._board else None
        if line is None or owner not in (None, line.get("owner")):
            raise BadInput(f"There is no job {job_id!r:.60} here; it may have been cleared away.")
        return from_line(line)

    def jobs(self, owner: str | None, states: Sequence[JobState] | None = None) -> list[Job]:
        """Jobs in memory, oldest first."""
        with self.lock:
            return [
                self._view(e)
                for e in self._entries.values()
                if owner in (None, e.job.owner) and (states is None or e.job.state in states)
            ]

    def start(self, job_id: str, device: str) -> Entry | None:
        """queued -> running; None when it was cancelled meanwhile."""
        with self.lock:
            entry = self._entries[job_id]
            if entry.job.state is not JobState.QUEUED:
                return None
            entry.stage_started = self._clock()
            self._set(entry, state=JobState.RUNNING, started=time.time(), device=device)
            return entry

    def step(self, entry: Entry, info: StepInfo) -> None:
        """Take a report of the work, then stop it if that was asked.

        Raises:
            Cancelled: when the job was asked to stop.
        """
        with self.lock:
            now, job = self._clock(), entry.job
            stages = list(job.stages)
            if not stages or stages[-1].stage != info.stage or info.step < stages[-1].step:
                entry.stage_started = now if stages else entry.stage_started
                entry.first = (info.step, now)
                stages.append(StageTime(info.stage, info.step, info.total, 0.0, info.cached))
            seconds = now - entry.stage_started
            stages[-1] = StageTime(info.stage, info.step, info.total, seconds, info.cached)
            if info.loss is not None or info.distances is not None or info.points is not None:
                if entry.curve_stage != info.stage:  # a new curve begins
                    entry.curve_stage = info.stage
                    for curve in (entry.losses, entry.tracks, entry.trail):
                        curve.clear()
                if info.loss is not None:
                    entry.losses.append((info.step, float(info.loss)))
                if info.distances is not None:
                    entry.tracks.append((info.step, tuple(info.distances)))
                if info.points is not None:
                    entry.trail.append((info.step, tuple(info.points)))
            entry.job = dataclasses.replace(
                job,
                progress=dataclasses.replace(info, preview=None),
                preview=info.preview or job.preview,
                stages=tuple(stages[-100:]),
                eta=_eta(entry.first, info, now),
            )
        entry.token.check()

    def end(self, entry: Entry, state: JobState, *, result: Any = None, error: str = "") -> None:
        """One of the four ends; a job that has ended stays as it is."""
        with self.lock:
            if entry.job.state.ended:
                return
            self._set(
                entry,
                state=state,
                result=result,
                error=error or None,
                eta=None,
                cancelling=False,
                finished=time.time(),
            )
            entry.ended.set()
            self._ended.append(entry.job.id)
            while len(self._ended) > KEEP:
                self._entries.pop(self._ended.popleft(), None)

    def cancelling(self, entry: Entry) -> None:
        """Mark that a stop was asked for."""
        with self.lock:
            entry.token.set()
            entry.job = dataclasses.replace(entry.job, cancelling=True)

    def _view(self, entry: Entry) -> Job:
        return dataclasses.replace(
            entry.job,
            losses=tuple(entry.losses),
            tracks=tuple(entry.tracks),
            trail=tuple(entry.trail),
        )

    def _set(self, entry: Entry, **changes: Any) -> None:
        entry.job = dataclasses.replace(entry.job, **changes)
        self._write(entry.job)

    def _write(self, job: Job) -> None:
        if self._board is not None:
            self._board.write(to_line(job))


def _eta(first: tuple[int, float], info: StepInfo, now: float) -> float | None:
    """Seconds left of the stage, from its finished steps only; None before one is finished."""
    done = info.step - first[0]
    if done < 1 or info.total < info.step:
        return None
    return (now - first[1]) / done * (info.total - info.step)


def to_line(job: Job) -> dict[str, Any]:
    """What the board keeps of a job: plain JSON."""
    payload = job.payload
    if hasattr(payload, "to_json"):
        payload = payload.to_json()
    return {
        "id": job.id,
        "kind": job.kind,
        "owner": job.owner,
        "key": job.key,
        "label": job.label,
        "state": job.state.value,
        "payload": payload,
        "device": job.device,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "error": job.error,
        "result": job.result if isinstance(job.result, (str, int, float, list, dict)) else None,
    }


def from_line(line: dict[str, Any]) -> Job:
    """A job as the board knows it; what had not ended when its process died is interrupted."""
    state = JobState(line["state"])
    error = line.get("error")
    if not state.ended and not line.get("lives"):
        state, error = JobState.INTERRUPTED, STOPPED
    names = {f.name for f in dataclasses.fields(Job)} - {"state", "error"}
    return Job(**{k: v for k, v in line.items() if k in names}, state=state, error=error)


def carry_out(table: JobTable, run: Run, entry: Entry, closing: Callable[[], bool]) -> None:
    """Do one started job; whatever `run` raises becomes the job's end.

    Raises:
        BaseException: what is no `Exception` (SystemExit, KeyboardInterrupt) passes on, after the
            job was marked failed: the executor decides about its worker.
    """
    job = entry.job
    task = Task(
        id=job.id,
        kind=job.kind,
        payload=job.payload,
        owner=job.owner,
        device=job.device,
        token=entry.token,
        on_step=lambda info: table.step(entry, info),
    )
    log.info("job %s (%s) starts on %s", job.id, job.kind, job.device)
    try:
        result = run(task)
    except Cancelled as exc:
        if closing():
            table.end(entry, JobState.INTERRUPTED, error=STOPPED)
        else:
            table.end(entry, JobState.CANCELLED, error=str(exc) or "Cancelled.")
    except WorkbenchError as exc:
        log.warning("job %s failed: %s", job.id, exc)
        table.end(entry, JobState.FAILED, error=str(exc))
    except BaseException as exc:
        log.exception("job %s failed unexpectedly", job.id)
        table.end(entry, JobState.FAILED, error=_unexpected(exc))
        if not isinstance(exc, Exception):
            raise
    else:
        table.end(entry, JobState.DONE, result=result)
    log.info("job %s is %s", job.id, entry.job.state)


def _unexpected(exc: BaseException) -> str:
    what = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return f"The job failed in a way that was not foreseen ({what:.200}); the log has the details."
