"""Jobs on Ray: worker processes on several GPUs or machines. The only module that imports ray.

Queue, turns, states and the board are the thread executor's: each of its threads drives one Ray
actor, a process that keeps its model loaded. The actor reports steps and asks for pictures, LoRAs
and cached values (`run_job.Host` answers); the app's process answers and commits. docs/scale.md says how to
join machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError

from workbench import __version__
from workbench.core import errors
from workbench.core.errors import Cancelled, WorkbenchError
from workbench.core.record import JobState, StepInfo
from workbench.jobs import Board, CancelToken, Run, Task, WorkerLost
from workbench.jobs.queue import QUEUE_LIMIT, ThreadExecutor
from workbench.jobs.run_job import Host, Session
from workbench.storage.settings import Settings

log = logging.getLogger(__name__)

HERE = ("download",)  # kinds of jobs that change the app's own machine
_POLL = 0.1  # seconds that an actor waits for news before it answers that there is none
_OBJECTS = 2**30  # bytes of the object store: some pictures and LoRAs on their way
_LOOK = 10.0  # seconds between two looks at the size of the cluster
_LOST = (
    "The worker process died twice during this job (killed, out of memory, or its machine is gone: "
    "see the log); start the job again, perhaps at a smaller size."
)


class _Actor:
    """One worker process. The job runs in a thread of its own; the others answer meanwhile."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._host = Host(self._ask)
        self._token = CancelToken()
        self._news: list[tuple[Any, ...]] = []
        self._answers: list[tuple[bool, Any]] = []
        self._wake = threading.Condition()

    def hello(self) -> dict[str, Any]:
        """Description of this worker, once it has started."""
        return {"pid": os.getpid(), "version": __version__, "python": platform.python_version()}

    def begin(self, job_id: str, kind: str, payload: Any, owner: str, device: str) -> None:
        """Start a job."""
        self._token, self._news, self._answers = CancelToken(), [], []
        task = Task(job_id, kind, payload, owner, device, self._token, self._step, self._host)
        threading.Thread(target=self._work, args=(task,), daemon=True).start()

    def cancel(self) -> None:
        """Ask the job to stop at its next step."""
        self._token.set()

    def exchange(self, answer: tuple[bool, Any] | None) -> list[tuple[Any, ...]]:
        """Take the answer to a question, and return the news: steps, a question, the end."""
        with self._wake:
            if answer is not None:
                self._answers.append(answer)
                self._wake.notify_all()
            self._wake.wait_for(lambda: self._news, timeout=_POLL)
            news, self._news = self._news, []
            return news

    def _tell(self, *news: Any) -> None:
        with self._wake:
            self._news.append(news)
            self._wake.notify_all()

    def _step(self, info: StepInfo) -> None:
        self._tell("step", dataclasses.replace(info, clean=None))  # what cannot travel
        self._token.check()

    def _ask(self, *question: Any) -> Any:
        self._tell("ask", *question)
        with self._wake:
            self._wake.wait_for(lambda: self._answers)
            good, value = self._answers.pop()
        if not good:
            raise _revived(value)
        return value

    def _work(self, task: Task) -> None:
        try:
            self._tell("end", True, self._run(task))
        except BaseException as exc:
            if not isinstance(exc, WorkbenchError):
                log.exception("job %s failed on its worker", task.id)
            self._tell("end", False, _portable(exc))


class RayExecutor(ThreadExecutor):
    """One actor per GPU of the cluster, or `workers` of them; otherwise a ThreadExecutor."""

    def __init__(
        self,
        run: Run,
        *,
        local: Run | None = None,
        parts: dict[str, Any] | None = None,
        workers: int = 0,
        processors: int = 0,
        address: str | None = None,
        limit: int = QUEUE_LIMIT,
        board: Board | None = None,
    ) -> None:
        """Connect to Ray, or start it on this machine, and start the workers.

        Args:
            run: the work; must be importable by name in the workers' processes.
            local: does the jobs of the kinds in `HERE`, in this process.
            parts: what the workers may use: the app's `store`, `cache` and `loras`.
            workers: number of workers; 0: one per GPU of the cluster, two where there is none.
            processors: of each worker, and its threads; 0: an equal share of the cluster's (with
                GPUs: one).
            address: of a running cluster ("auto", "HOST:PORT", "ray://HOST:PORT"); None uses the
                one that RAY_ADDRESS names, else starts Ray here, on the loopback address only.
            limit: of waiting jobs per owner.
            board: keeps states over a restart.

        Raises:
            WorkbenchError: when the cluster cannot be reached.
        """
        self._work_of = run
        self._local = local
        self._parts = parts or {}
        self._own_ray = not ray.is_initialized()
        if self._own_ray:
            connect(address)
        self._actors: dict[int, Any] = {}
        self._refused: dict[int, str] = {}
        self._wanted, self._processors = workers, processors
        super().__init__(
            self._on_actor, devices=[str(n) for n in range(self._size())], limit=limit, board=board
        )
        if not workers:
            threading.Thread(target=self._grow, name="cluster", daemon=True).start()

    def close(self, timeout: float = 5.0) -> None:
        """Interrupt everything, then end the workers (and Ray, if it was started here)."""
        super().close(timeout)
        for number in list(self._actors):
            self._drop(number)
        if self._own_ray and ray.is_initialized():
            ray.shutdown()

    def refused(self) -> list[str]:
        """A line per worker that cannot be used, saying why."""
        return [f"Worker {n}: {why}" for n, why in sorted(self._refused.items())]

    # --- workers ----------------------------------------------------------------------------------

    def _size(self) -> int:
        cluster = ray.cluster_resources()
        processors = max(1, int(cluster.get("CPU", 1)))
        return self._wanted or int(cluster.get("GPU", 0)) or min(2, processors)

    def _grow(self) -> None:
        """Start workers for GPUs that join the cluster later."""
        while not self._closing:
            time.sleep(_LOOK)
            with contextlib.suppress(RayError, ConnectionError), self._wake:
                for number in range(len(self._threads), self._size()):
                    if not self._closing:
                        self._start_worker(number, str(number))

    def _prepare(self, number: int, device: str) -> None:
        """Have an actor of this version before a job is taken; until then others may take it."""
        hello: Any = None
        while not self._closing:
            try:
                if number not in self._actors:
                    self._actors[number], hello = self._start_actor(), None
                hello = hello or self._actors[number].hello.remote()
                if not ray.wait([hello], timeout=1.0)[0]:
                    continue  # no place for it yet
                wrong = _mismatch(ray.get(hello))
            except RayError as exc:
                log.warning("worker %s did not start: %s", number, str(exc).splitlines()[0])
                self._drop(number)
                time.sleep(1.0)
                continue
            with self._wake:
                if wrong:
                    self._refused[number] = wrong
                else:
                    self._refused.pop(number, None)
                    return
            self._drop(number)
            log.warning("worker %s is refused: %s", number, wrong)
            with self._wake:
                self._wake.wait_for(lambda: self._all_refused() or self._closing, timeout=_LOOK)
                if self._all_refused() and self._waiting:
                    return  # its job ends with the reason

    def _all_refused(self) -> bool:
        return len(self._refused) == len(self._threads)

    def _start_actor(self) -> Any:
        cluster = ray.cluster_resources()
        gpu = bool(cluster.get("GPU", 0))
        share = 1 if gpu else max(1, int(cluster.get("CPU", 1)) // self._size())
        options = {
            "num_cpus": self._processors or share,  # Ray gives the processes as many threads
            "num_gpus": int(gpu),
            "max_concurrency": 4,
        }
        return ray.remote(**options)(_Actor).remote(self._work_of)

    def _drop(self, number: int) -> None:
        """Forget an actor; the next job of this worker gets a new process."""
        actor = self._actors.pop(number, None)
        if actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(actor)

    # --- jobs -------------------------------------------------------------------------------------

    def _on_actor(self, task: Task) -> Any:
        """Let the worker's actor do the job; pass steps, questions and a cancel on.

        Raises:
            WorkerLost: when its process died; SystemExit when the work ended it.
            Whatever the work raises.
        """
        if self._local is not None and task.kind in HERE:
            return self._local(dataclasses.replace(task, device=""))
        number = int(task.device)
        if number not in self._actors:
            raise WorkbenchError(self._refused.get(number, "No worker could be started."))
        session = Session(self._parts)
        try:
            return self._drive(self._actors[number], task, session)
        except RayTaskError as exc:  # it lives, and could not even begin
            reason = str(exc.cause).splitlines()[0] if str(exc.cause) else type(exc.cause).__name__
            raise WorkbenchError(f"A worker could not take the job ({reason:.200}).") from exc
        except RayError as exc:
            self._drop(number)
            log.warning("worker %s was lost: %s", number, str(exc).splitlines()[0])
            if session.finished and task.kind == "edit":
                return session.finished[-1]  # it died after the commit
            self._record_loss(task, session)
            raise WorkerLost(_LOST) from exc
        except SystemExit:
            self._drop(number)
            raise
        finally:
            session.close()

    def _drive(self, actor: Any, task: Task, session: Session) -> Any:
        payload = (task.id, task.kind, task.payload, task.owner, "")
        ray.get(actor.begin.remote(*payload))
        answer: tuple[bool, Any] | None = None
        told = False
        while True:
            if task.token.cancelled and not told:
                told = True
                actor.cancel.remote()
            news = ray.get(actor.exchange.remote(answer))
            answer = None
            for what, *data in news:
                if what == "step":
                    with contextlib.suppress(Cancelled):  # the end is the worker's to say
                        task.on_step(data[0])
                elif what == "ask":
                    answer = _answered(session, data)
                else:
                    good, value = data
                    if good:
                        return value
                    raise _revived(value)

    def _record_loss(self, task: Task, session: Session) -> None:
        """An edit that is tried again leaves no record; the second loss is its end."""
        if task.token.cancelled:
            session.lost(JobState.CANCELLED, "")
        elif self._entries[task.id].lost:
            session.lost(JobState.FAILED, _LOST)
        else:
            session.lost(None, "")


def for_app(
    settings: Settings,
    remote: Callable[[Settings, Task], Any],
    local: Run,
    parts: dict[str, Any],
    board: Board,
) -> RayExecutor:
    """The executor of an app whose setting `workers` names Ray.

    `remote` does a job in a worker's process, where it must be importable by name; `local` does here
    what belongs here.
    """
    device = settings.device if settings.device in ("cpu", "mps") else "auto"  # Ray deals out GPUs
    inner = dataclasses.replace(settings, workers="1", device=device)
    address = settings.workers if settings.workers.startswith("ray://") else None
    return RayExecutor(
        functools.partial(remote, inner),
        local=local,
        parts={name: parts[name] for name in ("store", "cache", "loras")},
        address=address,
        limit=settings.queue,
        board=board,
    )


def connect(address: str | None = None, *, processors: int | None = None) -> None:
    """Connect to the cluster at `address` or RAY_ADDRESS; else start Ray here, on loopback only.

    A Ray that is started here asks for its token (RAY_AUTH_MODE=disabled turns that off) and uses
    `processors` (None: all).

    It is started in a thread that lives as long as the process: Ray has Linux end its processes
    with the *thread* that started them (PR_SET_PDEATHSIG), and a page's thread ends with its run.

    Raises:
        WorkbenchError: when the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no request leaves the machine
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        # Ray's own switch for "no other machine": all its ports are bound to the loopback address.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
        path = os.pathsep.join(p for p in sys.path if p)  # the workers find what we found
        options |= {
            "include_dashboard": False,
            "num_cpus": processors,
            "object_store_memory": _OBJECTS,
            "runtime_env": {"env_vars": {"PYTHONPATH": path}},
        }
    started: Future[None] = Future()

    def start() -> None:
        try:
            ray.init(address=address or "local", **options)
        except BaseException as exc:
            started.set_exception(exc)
            return
        started.set_result(None)
        threading.Event().wait()

    threading.Thread(target=start, name="ray", daemon=True).start()
    try:
        started.result()
    except Exception as exc:  # Ray raises bare Exceptions, too: a node that is slow to start
        with contextlib.suppress(Exception):
            ray.shutdown()  # what was started half
        raise WorkbenchError(
            f"The Ray cluster {address or 'of this machine'} could not be reached "
            f"({str(exc).splitlines()[0]:.200}); start it, or set WORKBENCH_WORKERS to 1.",
            code="no-cluster",
        ) from exc


def _mismatch(hello: dict[str, Any]) -> str:
    """Why a worker cannot be used, or nothing."""
    if hello["version"] == __version__:
        return ""
    return (
        f"It has version {hello['version']} of the workbench and this app has {__version__}; "
        "install the same version on all machines."
    )


def _answered(session: Session, question: list[Any]) -> tuple[bool, Any]:
    try:
        return True, session.answer(*question)
    except Exception as exc:
        return False, _portable(exc)


def _portable(exc: BaseException) -> WorkbenchError | tuple[str, str]:
    """An error that every process can unpickle: ours as it is, others by name and text."""
    if type(exc).__module__ == errors.__name__ and isinstance(exc, WorkbenchError):
        return exc
    if isinstance(exc, WorkbenchError):  # a subclass of another module
        return WorkbenchError(str(exc), code=exc.code, field=exc.field)
    return type(exc).__name__, str(exc)


def _revived(value: WorkbenchError | tuple[str, str]) -> BaseException:
    if isinstance(value, WorkbenchError):
        return value
    name, text = value
    if name in ("SystemExit", "KeyboardInterrupt"):
        return SystemExit(text)
    made: Exception = type(name, (Exception,), {})(text)
    return made
