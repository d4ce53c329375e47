"""A job: states, progress, cancel token, its file on the board, and its turn among others.

queued -> running -> done | failed | cancelled | interrupted; back to queued once when its worker
process was lost.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import Cancelled, StoreError, WorkbenchError
from workbench.core.record import JobState, OnStep, StepInfo
from workbench.core.request import Point
from workbench.storage.files import ProcessLock, is_ulid, write_atomic

log = logging.getLogger(__name__)

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
    paths: tuple[tuple[int, tuple[Point, ...]], ...] = ()  # (step, handle points in image px)
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
        """A job from the board; one that had not ended when its process died is "interrupted"."""
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
    paths: deque[tuple[int, tuple[Point, ...]]] = field(default_factory=_curve)
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
            for curve in (self.losses, self.tracks, self.paths):
                curve.clear()
        if info.loss is not None:
            self.losses.append((info.step, float(info.loss)))
        if info.distances is not None:
            self.tracks.append((info.step, tuple(info.distances)))
        if info.points is not None:
            self.paths.append((info.step, tuple(info.points)))
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
            name: tuple(getattr(self, name)) for name in ("losses", "tracks", "paths")
        }
        return dataclasses.replace(self.job, **curves)


def _eta(first: tuple[int, float], info: StepInfo, now: float) -> float | None:
    """Seconds left of the stage, from its finished steps only; None before one is finished."""
    done = info.step - first[0]
    if done < 1 or info.total < info.step:
        return None
    return (now - first[1]) / done * (info.total - info.step)


_FILE = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\.json")
_MOST_BYTES = 2**20
_ENDED = ("done", "failed", "cancelled", "interrupted")


class Board:
    """`<folder>/<job id>.json`; the oldest ended ones beyond `keep` are removed at start-up."""

    def __init__(self, folder: str | Path, keep: int = 500) -> None:
        """Use `folder`; never fails (see the log)."""
        self.folder = Path(folder)
        self._process: ProcessLock | None = None
        try:
            self._process = ProcessLock(self.folder)
            self._process.sweep()
            self._prune(keep)
        except OSError as exc:
            log.warning("the job board cannot be used (%s); jobs run without it", exc.strerror)

    def write(self, line: dict[str, Any]) -> None:
        """Keep a job's state; a job that has not ended when this process dies is read as "interrupted"."""
        if self._process is None:
            return
        self._process.renew()
        body = {**line, "process": self._process.name, "host": self._process.host}
        try:
            raw = json.dumps(body, default=_left_out).encode()
            for field in ("payload", "result"):  # too large a file would not be read again
                if len(raw) > _MOST_BYTES:
                    body[field] = None
                    raw = json.dumps(body, default=_left_out).encode()
            path = self.folder / f"{line['id']}.json"
            write_atomic(path, raw, temp=self.folder / "temp", durable=False)
        except (StoreError, TypeError, ValueError) as exc:
            log.warning("job %s is not on the board: %s", line["id"], exc)

    def find(self, job_id: str) -> dict[str, Any] | None:
        """The stored record of a job, or None; its "lives" is true while its process runs."""
        line = self._read(self.folder / f"{job_id}.json") if is_ulid(job_id) else None
        return None if line is None else {**line, "lives": self._lives(line)}

    def load(self) -> list[dict[str, Any]]:
        """All jobs on the board, oldest first."""
        lines = (self._read(path) for path in self._paths())
        return [line for line in lines if line is not None]

    def close(self) -> None:
        """Let go of the folder."""
        if self._process is not None:
            self._process.close()

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _FILE.fullmatch(p.name))

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            if path.stat().st_size > _MOST_BYTES:
                return None
            line = json.loads(path.read_text(encoding="utf-8"))
            good = line["id"] == path.stem and all(
                isinstance(line[k], str) for k in ("kind", "owner", "state")
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as exc:
            log.warning("the job board's %s cannot be read: %s", path.name, exc)
            return None
        return line if good else None

    def _prune(self, keep: int) -> None:
        ended = [line for line in self.load() if line["state"] in _ENDED or not self._lives(line)]
        for line in ended[: max(0, len(ended) - keep)]:
            (self.folder / f"{line['id']}.json").unlink(missing_ok=True)

    def _lives(self, line: dict[str, Any]) -> bool:
        name, host = str(line.get("process", "")), str(line.get("host", ""))
        return self._process is not None and self._process.lives(name, host)


def _left_out(_value: object) -> None:
    """None, for values without a JSON form: a payload may hold arrays, which the board does not need."""


PASSES = 3  # quick jobs that may pass a waiting long one before it is taken


class Turns:
    """Waiting job ids. Nobody waits for another owner's whole queue, and no long job starves."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._quick: dict[str, deque[str]] = {}  # owner -> ids; the first owner is next
        self._long: dict[str, deque[str]] = {}
        self._passed = 0

    def __len__(self) -> int:
        """Number of waiting jobs."""
        return sum(len(q) for lane in (self._quick, self._long) for q in lane.values())

    def count(self, owner: str) -> int:
        """Number of waiting jobs of an owner."""
        return sum(len(lane.get(owner, ())) for lane in (self._quick, self._long))

    def add(self, job_id: str, owner: str, *, quick: bool = False, first: bool = False) -> None:
        """Queue a job behind its owner's; `first` puts it, and its owner, before all others."""
        lane = self._quick if quick else self._long
        if not first:
            lane.setdefault(owner, deque()).append(job_id)
            return
        mine = lane.pop(owner, deque())
        mine.appendleft(job_id)
        others = dict(lane)
        lane.clear()
        lane.update({owner: mine, **others})

    def remove(self, job_id: str) -> None:
        """Forget a job; does nothing when it does not wait."""
        for lane in (self._quick, self._long):
            for owner, queue in list(lane.items()):
                if job_id in queue:
                    queue.remove(job_id)
                if not queue:
                    del lane[owner]

    def take(self) -> str:
        """Remove and return the next job; its owner goes to the end of the line.

        Raises:
            IndexError: when nothing waits.
        """
        if not self:
            raise IndexError("no job is waiting")
        long = bool(self._long) and (not self._quick or self._passed >= PASSES)
        self._passed = 0 if long or not self._long else self._passed + 1
        lane = self._long if long else self._quick
        owner = next(iter(lane))
        queue = lane.pop(owner)
        job_id = queue.popleft()
        if queue:
            lane[owner] = queue
        return job_id

    def order(self) -> list[str]:
        """Ids in the order in which `take` would return them."""
        rest = copy.deepcopy(self)
        return [rest.take() for _ in range(len(rest))]

    def clear(self) -> None:
        """Forget all."""
        self._quick.clear()
        self._long.clear()
