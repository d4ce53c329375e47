"""A job as pages and workers see it: states, progress, cancel token, and its JSON on the board.

queued -> running -> done | failed | cancelled | interrupted; back to queued once when its worker
process was lost.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workbench.core.errors import Cancelled, WorkbenchError
from workbench.core.record import JobState, OnStep, StepInfo
from workbench.core.request import Point

MOST_POINTS = 2000  # of a live curve
STOPPED = "The workbench stopped before this job was finished; start it again."


class WorkerLost(WorkbenchError):
    """The worker process died (killed, out of memory, its machine gone); another one may retry."""


class CancelToken:
    """Asks one job to stop. It belongs to a job, never to a worker: a late cancel hits no other job."""

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
        """Sleep until asked, at most `seconds`; True when asked."""
        return self._event.wait(seconds)


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage of a job so far; `seconds` runs until its last report."""

    stage: str
    step: int
    total: int
    seconds: float
    cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job at one moment. Times are seconds since 1970, 0 where not yet."""

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

    def to_line(self) -> dict[str, Any]:
        """Plain JSON for the board."""
        payload = self.payload.to_json() if hasattr(self.payload, "to_json") else self.payload
        plain = isinstance(self.result, (str, int, float, list, dict))
        names = ("id", "kind", "owner", "key", "label", "device", "created", "started", "finished")
        return {
            **{name: getattr(self, name) for name in names},
            "state": self.state.value,
            "payload": payload,
            "error": self.error,
            "result": self.result if plain else None,
        }

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> Job:
        """A job from the board; what had not ended when its process died is interrupted."""
        state, error = JobState(line["state"]), line.get("error")
        if not state.ended and not line.get("lives"):
            state, error = JobState.INTERRUPTED, STOPPED
        names = {f.name for f in dataclasses.fields(cls)} - {"state", "error"}
        return cls(**{k: v for k, v in line.items() if k in names}, state=state, error=error)


@dataclass(frozen=True, slots=True)
class Task:
    """Input of the work: the frozen payload, how to report, when to stop."""

    id: str
    kind: str
    payload: Any
    owner: str
    device: str
    token: CancelToken
    on_step: OnStep
    host: Any = None  # in a worker process: history, cache and LoRA library of the app's process


Run = Callable[[Task], Any]


def _curve() -> deque[Any]:
    return deque(maxlen=MOST_POINTS)


@dataclass(eq=False)
class Entry:
    """The changing side of a job; only touched under the executor's lock."""

    job: Job
    quick: bool = False
    token: CancelToken = field(default_factory=CancelToken)
    lost: int = 0  # workers that died while they had it
    stage_started: float = 0.0
    first: tuple[int, float] = (0, 0.0)  # step and time of the stage's first report
    curve_stage: str = ""
    losses: deque[tuple[int, float]] = field(default_factory=_curve)
    tracks: deque[tuple[int, tuple[float, ...]]] = field(default_factory=_curve)
    trail: deque[tuple[int, tuple[Point, ...]]] = field(default_factory=_curve)
    ended: threading.Event = field(default_factory=threading.Event)
    whole: Entry | None = None  # the job that this one is a part of
    parts: tuple[Entry, ...] = ()
    collect: Callable[[list[Job]], Any] = list  # the result of a job of parts, from its parts

    def report(self, info: StepInfo, now: float) -> None:
        """Take a report of the work at the time `now` (seconds, any origin)."""
        job = self.job
        stages = list(job.stages)
        if not stages or stages[-1].stage != info.stage or info.step < stages[-1].step:
            self.stage_started = now if stages else self.stage_started
            self.first = (info.step, now)
            stages.append(StageTime(info.stage, info.step, info.total, 0.0, info.cached))
        seconds = now - self.stage_started
        stages[-1] = StageTime(info.stage, info.step, info.total, seconds, info.cached)
        new = info.loss is not None or info.distances is not None or info.points is not None
        if new and self.curve_stage != info.stage:
            self.curve_stage = info.stage
            for curve in (self.losses, self.tracks, self.trail):
                curve.clear()
        if info.loss is not None:
            self.losses.append((info.step, float(info.loss)))
        if info.distances is not None:
            self.tracks.append((info.step, tuple(info.distances)))
        if info.points is not None:
            self.trail.append((info.step, tuple(info.points)))
        self.job = dataclasses.replace(
            job,
            progress=dataclasses.replace(info, preview=None),
            preview=info.preview or job.preview,
            stages=tuple(stages[-100:]),
            eta=_eta(self.first, info, now),
        )

    def view(self) -> Job:
        """The job with its curves."""
        curves: dict[str, Any] = {
            name: tuple(getattr(self, name)) for name in ("losses", "tracks", "trail")
        }
        return dataclasses.replace(self.job, **curves)


def _eta(first: tuple[int, float], info: StepInfo, now: float) -> float | None:
    """Seconds left of the stage, from its finished steps only; None before one is finished."""
    done = info.step - first[0]
    if done < 1 or info.total < info.step:
        return None
    return (now - first[1]) / done * (info.total - info.step)
