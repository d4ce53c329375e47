"""The job queue and its workers: threads here, processes in ray_executor.

    submit(kind, payload, owner, key) -> id      snapshot(id) -> Job      cancel(id)      close()

The work itself is a function `run(task)`. It calls `task.on_step` at least once per step: that is
progress, live curves and, by raising `Cancelled`, the way to stop. All changes of state happen under
one lock, so a job never ends twice. tests/unit/test_jobs_contract.py holds for every executor.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from workbench.core.errors import BadInput, Cancelled, WorkbenchError
from workbench.core.record import JobState, StepInfo
from workbench.jobs import STOPPED, Board, Entry, Job, Run, Task, Turns, WorkerLost
from workbench.storage.files import UlidMaker

log = logging.getLogger(__name__)

QUEUE_LIMIT = 64  # waiting jobs per owner
MOST_OWNERS = 64  # times the limit per owner: the bound of the whole queue
KEEP = 500  # ended jobs that stay in memory; older ones are found on the board


class ThreadExecutor:
    """One daemon thread per device, a bounded queue, owners served in turn."""

    def __init__(
        self,
        run: Run,
        *,
        devices: Sequence[str] = ("cpu",),
        limit: int = QUEUE_LIMIT,
        board: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start one worker per entry of `devices`.

        At most `limit` jobs of an owner wait. `board` keeps states over a restart; `clock` times
        the steps.
        """
        self._run = run
        self._limit = limit
        self._board = board
        self._clock = clock
        self._closing = False
        self._wake = threading.Condition(threading.RLock())
        self._ids = UlidMaker()
        self._entries: dict[str, Entry] = {}
        self._ended: deque[str] = deque()
        self._waiting = Turns()
        self._threads: dict[int, threading.Thread] = {}  # by number of the worker
        for line in board.load() if board else []:
            self._ids.seen(str(line.get("id")))
        for number, device in enumerate(devices):
            self._start_worker(number, device)

    @property
    def workers(self) -> int:
        """Number of jobs that can run at a time."""
        return len(self._threads)

    # --- for pages, command line and benchmarks ---------------------------------------------------

    def submit(
        self,
        kind: str,
        payload: Any,
        owner: str = "",
        *,
        key: str | None = None,
        label: str = "",
        quick: bool = False,
    ) -> str:
        """Queue a job and return its id; the payload is copied.

        An equal `key` of the same owner that has not ended gives that job's id. `quick` jobs
        (seconds) pass the others (minutes).

        Raises:
            BadInput: when the queue is full, or the executor was closed.
        """
        with self._wake:
            found = self._duplicate_job(owner, key)
            if found is None:
                job = self._new(kind, payload, owner, key=key, label=label)
                found = self._queue(Entry(job, quick), owner)
            return found

    def submit_parts(
        self,
        kind: str,
        payload: Any,
        parts: Sequence[tuple[str, Any]],
        collect: Callable[[list[Job]], Any],
        owner: str = "",
        *,
        key: str | None = None,
        label: str = "",
    ) -> str:
        """Queue a job whose `parts` (kind, payload) any number of workers share.

        It ends with its last part; `collect` makes its result from the parts' jobs. Raises as
        `submit` does.
        """
        with self._wake:
            found = self._duplicate_job(owner, key)
            if found is not None:
                return found
            whole = Entry(self._new(kind, payload, owner, key=key, label=label), collect=collect)
            self._entries[whole.job.id] = whole
            self._write(whole.job)
            whole.parts = tuple(
                Entry(self._new(name, part, owner), whole=whole) for name, part in parts
            )
            for entry in whole.parts:
                self._queue(entry, owner)
            if not whole.parts:
                self._end(whole, JobState.DONE, result=collect([]))
            return whole.job.id

    def snapshot(self, job_id: str, owner: str | None = None) -> Job:
        """The job now, from memory or from the board.

        Raises:
            BadInput: for an unknown id or another owner's job (same words).
        """
        with self._wake:
            entry = self._entry(job_id, owner)
            if entry is not None:
                return self._placed([entry])[0]
        line = self._board.find(job_id) if self._board else None
        if line is None or owner not in (None, line.get("owner")):
            raise BadInput(
                f"There is no job {job_id!r:.60} here; it may have been cleared away.",
                code="no-such-job",
            )
        return Job.from_line(line)

    def cancel(self, job_id: str, owner: str | None = None) -> JobState:
        """Ask to stop and return the state right after; an ended job stays as it is.

        A queued job stops at once, a running one within a step. Raises as `snapshot` does.
        """
        with self._wake:
            entry = self._entry(job_id, owner)
            if entry is None:
                return self.snapshot(job_id, owner).state
            if not entry.job.state.ended:
                entry.token.set()
                entry.job = dataclasses.replace(entry.job, cancelling=True)
                for part in entry.parts:
                    self.cancel(part.job.id)
                if entry.job.state is JobState.QUEUED and not entry.parts:
                    self._waiting.remove(job_id)
                    self._end(entry, JobState.CANCELLED, error="Cancelled.")
            return entry.job.state

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it has ended, or as it is after `timeout` seconds."""
        entry = self._entry(job_id, None)
        if entry is not None:
            entry.ended.wait(timeout)
        return self.snapshot(job_id)

    def queue(self, owner: str | None = None) -> list[Job]:
        """Jobs that are running and waiting, in their order."""
        jobs = [j for j in self.recent(owner) if not j.state.ended]
        return sorted(jobs, key=lambda j: (j.position is not None, j.position or 0, j.id))

    def recent(self, owner: str | None = None) -> list[Job]:
        """All jobs in memory, newest first."""
        with self._wake:
            found = [e for e in self._entries.values() if e.whole is None]
            return self._placed([e for e in reversed(found) if owner in (None, e.job.owner)])

    def close(self, timeout: float = 5.0) -> None:
        """Interrupt everything; returns after `timeout` seconds at the latest.

        A worker that does not stop in time is left to end with the process (daemon thread); its job
        counts as interrupted already.
        """
        with self._wake:
            self._closing = True
            self._waiting.clear()
            entries = [e for e in self._entries.values() if not e.job.state.ended]
            for entry in entries:
                entry.token.set()
                if entry.job.state is JobState.QUEUED:
                    self._end(entry, JobState.INTERRUPTED, error=STOPPED)
            self._wake.notify_all()
            threads = list(self._threads.values())
        deadline = time.monotonic() + timeout
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        for entry in entries:
            self._end(entry, JobState.INTERRUPTED, error=STOPPED)
        if self._board is not None:
            self._board.close()

    # --- changes of state -------------------------------------------------------------------------

    def _new(self, kind: str, payload: Any, owner: str, **more: Any) -> Job:
        return Job(
            id=self._ids.new(),
            kind=kind,
            owner=owner,
            payload=copy.deepcopy(payload),  # what the caller changes later does not count
            created=time.time(),
            **more,
        )

    def _queue(self, entry: Entry, owner: str) -> str:
        self._entries[entry.job.id] = entry
        self._write(entry.job, entry)
        self._waiting.add(entry.job.id, owner, quick=entry.quick)
        self._wake.notify()
        return entry.job.id

    def _duplicate_job(self, owner: str, key: str | None) -> str | None:
        """The job of this owner and key that has not ended; checks that there is room for another."""
        if self._closing:
            raise BadInput("The workbench is closing; no new job is taken.", code="closing")
        for entry in self._entries.values():
            job = entry.job
            live = not job.state.ended and not entry.token.cancelled
            if live and key is not None and (job.key, job.owner) == (key, owner):
                return job.id
        queued = [e.job for e in self._entries.values() if e.whole is None]
        queued = [j for j in queued if j.state is JobState.QUEUED]
        mine = sum(j.owner == owner for j in queued)
        most = self._limit * MOST_OWNERS
        if mine >= self._limit or len(queued) >= most:
            waiting, limit = (mine, self._limit) if mine >= self._limit else (len(queued), most)
            raise BadInput(
                f"The queue is full: {waiting} of {limit} jobs are waiting; "
                "wait until one has ended, or cancel one.",
                code="queue-full",
                waiting=waiting,
                limit=limit,
            )
        return None

    def _entry(self, job_id: str, owner: str | None) -> Entry | None:
        with self._wake:
            entry = self._entries.get(job_id)
            return entry if entry and owner in (None, entry.job.owner) else None

    def _placed(self, entries: Sequence[Entry]) -> list[Job]:
        """Views of jobs, the waiting ones with their place in the queue."""
        queued = any(e.job.state is JobState.QUEUED for e in entries)
        place = {name: n for n, name in enumerate(self._waiting.order())} if queued else {}
        out = []
        for entry in entries:
            ids = [part.job.id for part in entry.parts] or [entry.job.id]
            at = min((place[i] for i in ids if i in place), default=None)
            waits = entry.job.state is JobState.QUEUED
            out.append(dataclasses.replace(entry.view(), position=at if waits else None))
        return out

    def _start(self, job_id: str, device: str) -> Entry | None:
        """queued -> running; None when it was cancelled meanwhile."""
        entry = self._entries[job_id]
        if entry.job.state is not JobState.QUEUED:
            return None
        changes = {"state": JobState.RUNNING, "started": time.time(), "device": device}
        for each in (entry, entry.whole):
            if each is not None and each.job.state is JobState.QUEUED:
                each.stage_started = self._clock()
                self._set(each, **changes)
                if each.parts:
                    self._count(each)
        return entry

    def _count(self, whole: Entry) -> None:
        """Report how many parts have ended."""
        done, total = _ended(whole), len(whole.parts)
        if done < total:
            info = StepInfo(stage="sweep", step=done, total=total, part=done + 1, parts=total)
            whole.report(info, self._clock())

    def _step(self, entry: Entry, info: StepInfo) -> None:
        """Take a report of the work, then stop it if that was asked.

        Raises:
            Cancelled: when the job was asked to stop.
        """
        with self._wake:
            entry.report(info, self._clock())
            if entry.whole is not None:
                running = [p for p in entry.whole.parts if p.job.state is JobState.RUNNING]
                if running[:1] == [entry]:  # one part at a time is shown
                    part, parts = _ended(entry.whole) + 1, len(entry.whole.parts)
                    info = dataclasses.replace(info, part=part, parts=parts)
                    entry.whole.report(info, self._clock())
        entry.token.check()

    def _end(self, entry: Entry, state: JobState, *, result: Any = None, error: str = "") -> None:
        """One of the four ends; a job that has ended stays as it is."""
        with self._wake:
            if entry.job.state.ended:
                return
            ends = {"eta": None, "cancelling": False, "finished": time.time()}
            self._set(entry, state=state, result=result, error=error or None, **ends)
            entry.ended.set()
            self._ended.append(entry.job.id)
            while len(self._ended) > KEEP:
                self._entries.pop(self._ended.popleft(), None)
            if entry.whole is not None:
                self._part_ended(entry.whole)

    def _part_ended(self, whole: Entry) -> None:
        if not all(part.job.state.ended for part in whole.parts):
            if whole.job.state is JobState.RUNNING:
                self._count(whole)
        elif self._closing:
            self._end(whole, JobState.INTERRUPTED, error=STOPPED)
        elif whole.token.cancelled:
            self._end(whole, JobState.CANCELLED, error="Cancelled.")
        else:
            self._end(whole, JobState.DONE, result=whole.collect([p.job for p in whole.parts]))

    def _set(self, entry: Entry, **changes: Any) -> None:
        entry.job = dataclasses.replace(entry.job, **changes)
        self._write(entry.job, entry)

    def _write(self, job: Job, entry: Entry | None = None) -> None:
        if self._board is not None and (entry is None or entry.whole is None):
            self._board.write(job.to_line())

    # --- workers ----------------------------------------------------------------------------------

    def _start_worker(self, number: int, device: str) -> None:
        thread = threading.Thread(
            target=self._work, args=(number, device), name=f"worker-{number}", daemon=True
        )
        self._threads[number] = thread
        thread.start()

    def _prepare(self, number: int, device: str) -> None:
        """Called by a worker before it waits for a job; an executor of processes starts its own."""

    def _work(self, number: int, device: str) -> None:
        """Take jobs until closed; a worker that dies starts its successor."""
        try:
            while True:
                entry = None
                self._prepare(number, device)
                with self._wake:
                    self._wake.wait_for(lambda: self._waiting or self._closing)
                    if self._closing:
                        return
                    entry = self._start(self._waiting.take(), device)
                if entry is not None:
                    self._carry_out(entry)
        except BaseException as exc:
            log.error("worker %s ended by %s; a new one takes over", device, type(exc).__name__)
            if entry is not None:
                self._end(entry, JobState.FAILED, error=f"Its worker died ({exc!r:.200}).")
        with self._wake:
            if not self._closing:
                self._start_worker(number, device)

    def _carry_out(self, entry: Entry) -> None:
        """Do a started job; whatever `run` raises becomes the job's end.

        Raises:
            BaseException: SystemExit and KeyboardInterrupt pass on, after the job was marked failed.
        """
        job = entry.job
        names = ("id", "kind", "payload", "owner", "device")
        task = Task(
            **{name: getattr(job, name) for name in names},
            token=entry.token,
            on_step=lambda info: self._step(entry, info),
        )
        log.info("job %s (%s) starts on %s", job.id, job.kind, job.device)
        try:
            result = self._run(task)
        except Cancelled as exc:
            if self._closing:
                self._end(entry, JobState.INTERRUPTED, error=STOPPED)
            else:
                self._end(entry, JobState.CANCELLED, error=str(exc) or "Cancelled.")
        except WorkerLost as exc:
            self._retry(entry, str(exc))
        except WorkbenchError as exc:
            log.warning("job %s failed: %s", job.id, exc)
            self._end(entry, JobState.FAILED, error=str(exc))
        except BaseException as exc:
            log.exception("job %s failed unexpectedly", job.id)
            self._end(entry, JobState.FAILED, error=_unexpected(exc))
            if not isinstance(exc, Exception):
                raise
        else:
            self._end(entry, JobState.DONE, result=result)
        log.info("job %s is %s", job.id, entry.job.state)

    def _retry(self, entry: Entry, error: str) -> None:
        """Put the job of a lost worker back to the front of the queue, once."""
        with self._wake:
            entry.lost += 1
            if self._closing or entry.job.state.ended:
                self._end(entry, JobState.INTERRUPTED, error=STOPPED)
            elif entry.token.cancelled:
                self._end(entry, JobState.CANCELLED, error="Cancelled.")
            elif entry.lost > 1:
                self._end(entry, JobState.FAILED, error=error)
            else:
                log.warning("job %s goes back to the queue: %s", entry.job.id, error)
                fresh = {"progress": None, "preview": None, "stages": (), "eta": None, "device": ""}
                self._set(entry, state=JobState.QUEUED, started=0.0, **fresh)
                self._waiting.add(entry.job.id, entry.job.owner, quick=entry.quick, first=True)
                self._wake.notify()


def _ended(whole: Entry) -> int:
    """Number of parts of a job that have ended."""
    return sum(part.job.state.ended for part in whole.parts)


def _unexpected(exc: BaseException) -> str:
    what = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return f"The job failed unexpectedly ({what:.200}); the log has the details."
