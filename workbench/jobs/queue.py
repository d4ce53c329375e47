"""Executors: where jobs wait and who does them. Inline here, a thread per device here, Ray apart.

    submit(kind, payload, owner, key) -> id      snapshot(id) -> Job      cancel(id)      close()

The work itself is a function `run(task)` that is given to the executor. It calls `task.on_step` at
least once per step: that is progress, live curves and, by raising `Cancelled`, the way to stop. A
cancel token belongs to a job and never to a worker, so that a late cancel cannot hit the next job.
One set of tests, tests/unit/test_jobs_contract.py, holds for every executor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from workbench.core.errors import BadInput
from workbench.core.record import JobState
from workbench.jobs.board import Board
from workbench.jobs.table import (
    STOPPED,
    CancelToken,
    Job,
    JobTable,
    Run,
    StageTime,
    Task,
    carry_out,
)

__all__ = [
    "Board",
    "CancelToken",
    "Executor",
    "InlineExecutor",
    "Job",
    "Run",
    "StageTime",
    "Task",
    "ThreadExecutor",
]

log = logging.getLogger(__name__)

QUEUE_LIMIT = 64


class Executor(Protocol):
    """What pages, command line and benchmarks may rely on."""

    def submit(
        self,
        kind: str,
        payload: Any,
        owner: str = "",
        *,
        key: str | None = None,
        label: str = "",
    ) -> str:
        """Queue work; its id. An equal `key` of the same owner still under way gives that id."""

    def snapshot(self, job_id: str, owner: str | None = None) -> Job:
        """The job now. `BadInput` for an unknown id or another owner's job (same words)."""

    def cancel(self, job_id: str, owner: str | None = None) -> JobState:
        """Ask to stop; the state right after. Does nothing to a job that has ended."""

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it has ended, or as it is after `timeout` seconds."""

    def queue(self, owner: str | None = None) -> list[Job]:
        """Jobs that are running and waiting, in their order."""

    def recent(self, owner: str | None = None) -> list[Job]:
        """All jobs that are still in memory, newest first."""

    def close(self, timeout: float = 5.0) -> None:
        """Stop: what has not ended becomes interrupted."""


class _Base:
    """What the executors share: looking, and cancelling."""

    def __init__(self, run: Run, board: Board | None) -> None:
        self._run = run
        self._board = board
        self._table = JobTable(board)
        self._closing = False

    def snapshot(self, job_id: str, owner: str | None = None) -> Job:
        """The job now; see `Executor.snapshot`."""
        job = self._table.job(job_id, owner)
        return self._placed(job) if job.state is JobState.QUEUED else job

    def cancel(self, job_id: str, owner: str | None = None) -> JobState:
        """Ask to stop; a queued job stops at once, a running one within a step."""
        with self._table.lock:
            entry = self._table.entry(job_id, owner)
            if entry is None:
                return self._table.job(job_id, owner).state
            if entry.job.state is JobState.QUEUED:
                entry.token.set()
                self._table.end(entry, JobState.CANCELLED, error="Cancelled.")
                self._dequeue(job_id)
            elif entry.job.state is JobState.RUNNING:
                self._table.cancelling(entry)
            return entry.job.state

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it has ended; see `Executor.wait`."""
        entry = self._table.entry(job_id, None)
        if entry is not None:
            entry.ended.wait(timeout)
        return self.snapshot(job_id)

    def queue(self, owner: str | None = None) -> list[Job]:
        """Jobs that are running and waiting, in their order."""
        live = (JobState.RUNNING, JobState.QUEUED)
        jobs = [self._placed(j) for j in self._table.jobs(owner, live)]
        return sorted(jobs, key=lambda j: (j.position is not None, j.position or 0, j.id))

    def recent(self, owner: str | None = None) -> list[Job]:
        """All jobs in memory, newest first."""
        return [self._placed(j) for j in reversed(self._table.jobs(owner))]

    def _placed(self, job: Job) -> Job:
        return job

    def _dequeue(self, job_id: str) -> None:
        """Forget a waiting job."""


class InlineExecutor(_Base):
    """Runs each job inside `submit`: for the command line, tests and benchmarks."""

    def __init__(self, run: Run, *, device: str = "", board: Board | None = None) -> None:
        """`run` does the work on `device`."""
        super().__init__(run, board)
        self._device = device
        self._one = threading.RLock()

    def submit(
        self,
        kind: str,
        payload: Any,
        owner: str = "",
        *,
        key: str | None = None,
        label: str = "",
    ) -> str:
        """Run the job and return its id once it has ended.

        Raises:
            KeyboardInterrupt: after the job was marked interrupted; a second worker is not wanted.
            BadInput: when the executor was closed.
        """
        if self._closing:
            raise BadInput("The workbench is closing; no new job is taken.")
        with self._table.lock:
            twin = self._table.twin(owner, key)
            if twin is not None:
                return twin
            job_id = self._table.add(kind, payload, owner, key, label)
        with self._one:
            entry = self._table.start(job_id, self._device)
            if entry is not None:
                try:
                    carry_out(self._table, self._run, entry, lambda: self._closing)
                except KeyboardInterrupt:
                    raise
                except BaseException:
                    log.warning("job %s tried to end the process", job_id)
        return job_id

    def close(self, timeout: float = 5.0) -> None:
        """Take no more jobs, and ask the running one (in another thread) to stop."""
        self._closing = True
        for job in self._table.jobs(None, (JobState.RUNNING, JobState.QUEUED)):
            entry = self._table.entry(job.id, None)
            if entry is not None:
                entry.token.set()
                entry.ended.wait(timeout)
        if self._board is not None:
            self._board.close()


class ThreadExecutor(_Base):
    """One daemon thread per device, a bounded queue, owners served in turn."""

    def __init__(
        self,
        run: Run,
        *,
        devices: Sequence[str] = ("cpu",),
        limit: int = QUEUE_LIMIT,
        board: Board | None = None,
    ) -> None:
        """Start one worker per entry of `devices`; at most `limit` jobs wait."""
        super().__init__(run, board)
        self._limit = limit
        self._wake = threading.Condition(self._table.lock)
        self._waiting: dict[str, deque[str]] = {}  # owner -> job ids; the first owner is next
        self._threads: dict[int, threading.Thread] = {}  # by number of the worker
        for number, device in enumerate(devices):
            self._hire(number, device)

    def submit(
        self,
        kind: str,
        payload: Any,
        owner: str = "",
        *,
        key: str | None = None,
        label: str = "",
    ) -> str:
        """Queue the job; see `Executor.submit`.

        Raises:
            BadInput: when the queue is full, or the executor was closed.
        """
        with self._wake:
            if self._closing:
                raise BadInput("The workbench is closing; no new job is taken.")
            twin = self._table.twin(owner, key)
            if twin is not None:
                return twin
            waiting = sum(len(q) for q in self._waiting.values())
            if waiting >= self._limit:
                raise BadInput(
                    f"The queue is full: {waiting} of {self._limit} jobs are waiting; "
                    "wait until one has ended, or cancel one."
                )
            job_id = self._table.add(kind, payload, owner, key, label)
            self._waiting.setdefault(owner, deque()).append(job_id)
            self._wake.notify()
            return job_id

    def close(self, timeout: float = 5.0) -> None:
        """Interrupt everything; returns after `timeout` seconds at the latest.

        A worker that does not stop in time is left to end with the process (daemon thread); its job
        counts as interrupted already.
        """
        with self._wake:
            self._closing = True
            self._waiting.clear()
            live = (JobState.RUNNING, JobState.QUEUED)
            entries = [self._table.entry(j.id, None) for j in self._table.jobs(None, live)]
            for entry in entries:
                if entry is not None:
                    entry.token.set()
                    if entry.job.state is JobState.QUEUED:
                        self._table.end(entry, JobState.INTERRUPTED, error=STOPPED)
            self._wake.notify_all()
            threads = list(self._threads.values())
        deadline = time.monotonic() + timeout
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        for entry in entries:
            if entry is not None:
                self._table.end(entry, JobState.INTERRUPTED, error=STOPPED)
        if self._board is not None:
            self._board.close()

    def _placed(self, job: Job) -> Job:
        if job.state is not JobState.QUEUED:
            return job
        with self._table.lock:
            order = self._order()
        if job.id not in order:
            return job
        return dataclasses.replace(job, position=order.index(job.id))

    def _order(self) -> list[str]:
        """Ids in the order in which they will be taken: one of each owner in turn."""
        queues = [list(q) for q in self._waiting.values()]
        longest = max((len(q) for q in queues), default=0)
        return [q[i] for i in range(longest) for q in queues if i < len(q)]

    def _dequeue(self, job_id: str) -> None:
        for owner, queue in list(self._waiting.items()):
            with contextlib.suppress(ValueError):
                queue.remove(job_id)
            if not queue:
                del self._waiting[owner]

    def _next(self) -> str:
        """The next job; its owner goes to the end of the line."""
        owner = next(iter(self._waiting))
        queue = self._waiting.pop(owner)
        job_id = queue.popleft()
        if queue:
            self._waiting[owner] = queue
        return job_id

    def _hire(self, number: int, device: str) -> None:
        thread = threading.Thread(
            target=self._work, args=(number, device), name=f"worker-{number}", daemon=True
        )
        self._threads[number] = thread
        thread.start()

    def _work(self, number: int, device: str) -> None:
        """Take jobs until closed; a worker that is shot down hires its successor."""
        entry = None
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._waiting or self._closing)
                    if self._closing:
                        return
                    entry = self._table.start(self._next(), device)
                if entry is not None:
                    carry_out(self._table, self._run, entry, lambda: self._closing)
        except BaseException as exc:
            log.error("worker %s ended by %s; a new one takes over", device, type(exc).__name__)
            if entry is not None:
                self._table.end(entry, JobState.FAILED, error=f"Its worker died ({exc!r:.200}).")
        with self._table.lock:
            if not self._closing:
                self._hire(number, device)
