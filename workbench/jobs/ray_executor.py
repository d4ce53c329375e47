"""Jobs on Ray actors: several GPUs, or several machines. The only file that imports ray (optional).

Queue, turns, states and the board are the thread executor's: each of its threads hands its job to
an actor of its own, a process that keeps its model loaded. Nothing of Ray but actors is used. On
several machines, history and cache must lie in a folder that all of them see.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from workbench.core import errors
from workbench.core.errors import Cancelled, WorkbenchError
from workbench.core.record import StepInfo
from workbench.jobs.board import Board
from workbench.jobs.job import CancelToken, Run, Task
from workbench.jobs.queue import QUEUE_LIMIT, ThreadExecutor

log = logging.getLogger(__name__)

_POLL = 0.05  # seconds between two looks at a running actor


def app_run(task: Task) -> Any:
    """The workbench's own work, in an actor: its process makes an App of its own, once."""
    from workbench.app import get_app

    return get_app().perform(
        task.kind, task.payload, on_step=task.on_step, owner=task.owner, device=task.device
    )


class _Actor:
    """One worker process. `work` runs in one thread; the others answer questions meanwhile."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._token = CancelToken()
        self._steps: list[StepInfo] = []
        self._guard = threading.Lock()

    def ready(self) -> int:
        """The process id, once the actor stands."""
        return os.getpid()

    def begin(self) -> None:
        """A fresh token and no steps; asked before `work`, so that no cancel is lost."""
        with self._guard:
            self._token, self._steps = CancelToken(), []

    def cancel(self) -> None:
        self._token.set()

    def steps(self) -> list[StepInfo]:
        """What was reported since the last question; of previews only the newest."""
        with self._guard:
            steps, self._steps = self._steps, []
        return steps

    def work(
        self, job_id: str, kind: str, payload: Any, owner: str, device: str
    ) -> tuple[str, str, Any]:
        """Do a job: ("", "", result), or the name of an error, its text and None."""
        token = self._token

        def on_step(info: StepInfo) -> None:
            with self._guard:
                self._steps.append(info)
            token.check()

        task = Task(job_id, kind, payload, owner, device, token, on_step)
        try:
            return "", "", self._run(task)
        except BaseException as exc:
            # The text travels, not the exception: one that cannot be pickled would be another fault.
            log.exception("job %s failed on its actor", job_id)
            return type(exc).__name__, str(exc), None


class RayExecutor(ThreadExecutor):
    """One actor per device; see `Executor`. Starts Ray on this machine unless it runs already."""

    def __init__(
        self,
        run: Run = app_run,
        *,
        devices: Sequence[str] = ("cpu",),
        gpus: float = 0.0,
        address: str | None = None,
        limit: int = QUEUE_LIMIT,
        board: Board | None = None,
    ) -> None:
        """Start one actor per entry of `devices`, each with a share of `gpus` GPUs.

        `run` must be importable by name in the actors' processes. With `gpus` above 0, Ray shows
        each actor its own GPU only. `address` names a running cluster ("auto" finds it).
        """
        self._work_of = run
        self._gpus = gpus
        self._actors: dict[str, Any] = {}
        self._actors_guard = threading.Lock()
        self._own_ray = not ray.is_initialized()
        if self._own_ray:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no request leaves the machine
            path = os.pathsep.join(p for p in sys.path if p)  # the actors find what we found
            local = {
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "runtime_env": {"env_vars": {"PYTHONPATH": path}},
            }
            ray.init(address=address, log_to_driver=False, **({} if address else local))
        super().__init__(
            self._on_actor,
            devices=[f"{i}:{device}" for i, device in enumerate(devices)],
            limit=limit,
            board=board,
        )

    def close(self, timeout: float = 5.0) -> None:
        """Interrupt everything, then end the actors (and Ray, if it was started here)."""
        super().close(timeout)
        with self._actors_guard:
            actors, self._actors = list(self._actors.values()), {}
        for actor in actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        if self._own_ray and ray.is_initialized():
            ray.shutdown()

    def _actor(self, slot: str) -> Any:
        with self._actors_guard:
            if slot not in self._actors:
                made = ray.remote(max_concurrency=4, num_cpus=1, num_gpus=self._gpus)(_Actor)
                self._actors[slot] = made.remote(self._work_of)
            return self._actors[slot]

    def _drop(self, slot: str) -> None:
        """Forget an actor; the next job gets a new process."""
        with self._actors_guard:
            actor = self._actors.pop(slot, None)
        if actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(actor)

    def _on_actor(self, task: Task) -> Any:
        """Let the slot's actor do the job, pass its steps on, and pass a cancel to it.

        Raises:
            What the work raised, by name; `WorkbenchError` when its process died.
        """
        slot, device = task.device, task.device.split(":", 1)[1]
        actor = self._actor(slot)
        try:
            ray.get(actor.begin.remote())
            future = actor.work.remote(task.id, task.kind, task.payload, task.owner, device)
            finished: list[Any] = []
            while not finished:
                finished, _running = ray.wait([future], timeout=_POLL)
                self._pass_on(task, actor)
            name, text, result = ray.get(future)
        except RayActorError as exc:
            self._drop(slot)
            log.warning("the actor of worker %s died: %s", slot, exc)
            raise WorkbenchError(
                "The worker process died (killed, out of memory, or it could not start: see the "
                "log); start the job again, perhaps at a smaller size."
            ) from exc
        if name in ("SystemExit", "KeyboardInterrupt"):
            self._drop(slot)
            raise SystemExit(text)
        if name:
            raise _error(name, text)
        return result

    def _pass_on(self, task: Task, actor: Any) -> None:
        """Steps to the table, and a cancel to the actor; the end is the actor's to say."""
        try:
            for info in ray.get(actor.steps.remote()):
                task.on_step(info)
            task.token.check()
        except Cancelled:
            actor.cancel.remote()


def _error(name: str, text: str) -> Exception:
    """The error of this name with this text; an unknown one under its own name."""
    known = getattr(errors, name, None)
    if isinstance(known, type) and issubclass(known, WorkbenchError):
        return known(text)
    made: Exception = type(name, (Exception,), {})(text)
    return made
