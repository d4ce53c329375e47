"""Jobs on Ray: the executors' contract, and the faults of worker processes. One local Ray, two workers.

The faults are real: processes are killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from job_work import edit, run
from patience import HANG, until
from patience import started as started_process
from test_jobs_contract import *  # noqa: F403  every test of the contract, with the `jobs` below

from workbench.app import App
from workbench.core.config import DragConfig, InversionConfig, LoraConfig
from workbench.core.errors import WorkbenchError
from workbench.core.record import JobState
from workbench.core.request import EditRequest, ModelRef, Point, PointPair
from workbench.jobs import Board, ray_executor
from workbench.jobs.queue import ThreadExecutor
from workbench.jobs.ray_executor import RayExecutor, connect
from workbench.storage.cache import Cache
from workbench.storage.history import Store
from workbench.storage.history.folder import verify
from workbench.storage.settings import Settings

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for the whole file, with room for one worker of the contract and two more."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0123456789abcdef" * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        with ThreadPoolExecutor(1) as page:  # as a page does, whose thread ends with its run
            page.submit(connect, processors=4).result()
        yield
        ray.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray leaves its Popen objects to the collector
        gc.collect()


@pytest.fixture(scope="module")
def workers(cluster: None) -> Iterator[RayExecutor]:
    """The contract's executor: its worker process stays, as starting one takes seconds."""
    made = RayExecutor(run, workers=1, processors=1)
    yield made
    made.close()


@pytest.fixture
def jobs(
    request: pytest.FixtureRequest, workers: RayExecutor, tmp_path: Path
) -> Iterator[ThreadExecutor]:
    board = Board(tmp_path / "jobs")
    if "closing" in request.node.name or "restart" in request.node.name:
        own = RayExecutor(run, workers=1, processors=1, board=board)
        yield own
        own.close()
        return
    workers._board = board
    yield workers
    for job in workers.queue():
        workers.cancel(job.id)
        workers.wait(job.id, HANG)
    workers._entries.clear()
    workers._ended.clear()


class Bench:
    """A history and a cache, two workers, and edits on them."""

    def __init__(self, folder: Path, jobs: RayExecutor) -> None:
        self.store, self.cache = Store(folder / "history"), Cache(folder / "derived")
        self.mark = folder / "mark"
        self.jobs = jobs
        jobs._parts = {"store": self.store, "cache": self.cache}
        jobs._board = Board(folder / "jobs")
        rgb = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        pairs = (PointPair(Point(1, 2), Point(5, 6)),)
        self.request = EditRequest(image=self.store.put_image(rgb, "p.png"), pairs=pairs)
        self.rgb = rgb

    def submit(self, stop: str = "", *, always: bool = False, owner: str = "ann") -> str:
        payload = {"request": self.request, "stop": stop, "mark": str(self.mark), "always": always}
        return self.jobs.submit("edit", payload, owner)

    def reached(self, job: str, stage: str) -> int:
        """Wait until the job is at a stage; the process id of its worker."""
        until(lambda: getattr(self.jobs.snapshot(job).progress, "stage", "") == stage)
        until(lambda: self.jobs.snapshot(job).preview is not None)
        return int(self.mark.read_text().split()[-1])

    def records(self) -> list[tuple[JobState, str]]:
        return [(r.status, self.store.owner(r.id)) for r in self.store.records()]


@pytest.fixture(scope="module")
def pair(cluster: None) -> Iterator[RayExecutor]:
    """Two workers for all tests that kill them: a new one is started where one died."""
    made = RayExecutor(edit, workers=2, processors=1)
    yield made
    made.close()


@pytest.fixture
def bench(tmp_path: Path, pair: RayExecutor) -> Bench:
    return Bench(tmp_path, pair)


# --- a killed worker -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["load", "lora", "drag", "save", "after the commit"])
def test_a_worker_killed_at_any_stage_costs_one_retry_and_leaves_one_record(
    bench: Bench, stage: str
) -> None:
    job = bench.submit(stage)
    os.kill(bench.reached(job, stage), signal.SIGKILL)
    done = bench.jobs.wait(job, HANG)
    assert (done.state, done.error) == (JobState.DONE, None)
    assert bench.records() == [(JobState.DONE, "ann")]
    assert bench.store.pending() == []
    record = bench.store.record(done.result)
    assert record.result is not None
    np.testing.assert_array_equal(bench.store.image(record.result.image), bench.rgb[::-1])
    assert bench.cache.get("wb1:lora") == b"weights"
    tries = bench.mark.read_text().split()
    assert len(set(tries)) == (1 if stage == "after the commit" else 2)
    assert verify(bench.store).ok


def test_a_job_that_kills_two_workers_fails_once_and_the_next_one_is_done(bench: Bench) -> None:
    job = bench.submit("drag", always=True)
    first = bench.reached(job, "drag")
    os.kill(first, signal.SIGKILL)
    until(lambda: len(bench.mark.read_text().split()) == 2)
    second = bench.reached(job, "drag")
    assert second != first
    os.kill(second, signal.SIGKILL)
    dead = bench.jobs.wait(job, HANG)
    assert dead.state is JobState.FAILED
    assert bench.records() == [(JobState.FAILED, "ann")]
    assert bench.store.records()[0].error == dead.error
    assert bench.jobs.wait(bench.submit(), HANG).state is JobState.DONE


def test_two_workers_train_once_and_the_other_takes_over_when_one_dies(bench: Bench) -> None:
    first = bench.submit("lora")
    trainer = bench.reached(first, "lora")
    second = bench.submit("lora", owner="bob")
    until(lambda: len(bench.mark.read_text().split()) == 2)
    time.sleep(0.3)
    assert getattr(bench.jobs.snapshot(second).progress, "stage", "") == "load"  # it waits
    os.kill(trainer, signal.SIGKILL)
    assert bench.jobs.wait(second, HANG).state is JobState.DONE
    assert bench.jobs.wait(first, HANG).state is JobState.DONE
    assert sorted(bench.records()) == [(JobState.DONE, "ann"), (JobState.DONE, "bob")]


# --- cancelling, versions, the end of the app --------------------------------------------------------------


def test_fault_36_a_job_is_cancelled_before_a_worker_took_it_and_while_one_works(
    bench: Bench,
) -> None:
    running = [bench.submit("drag"), bench.submit("drag", always=True)]
    waiting = bench.submit()
    bench.reached(running[0], "drag")
    assert bench.jobs.cancel(waiting) is JobState.CANCELLED
    for job in running:
        bench.jobs.cancel(job)
        assert bench.jobs.wait(job, HANG).state is JobState.CANCELLED
    assert JobState.DONE not in [state for state, _ in bench.records()]
    assert bench.jobs.wait(bench.submit(), HANG).state is JobState.DONE  # the same worker goes on


def test_a_worker_of_another_version_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "__version__", "99.0")
    jobs = RayExecutor(run, workers=1, processors=1, board=Board(tmp_path / "jobs"))
    job = jobs.wait(jobs.submit("edit", {}), HANG)
    assert job.state is JobState.FAILED
    assert "99.0" in (job.error or "")
    assert len(jobs.refused()) == 1
    jobs.close()


def test_fault_30_the_app_and_its_ray_are_killed_and_the_job_is_interrupted(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from test_jobs_ray import Bench
from job_work import edit
from workbench.jobs.ray_executor import RayExecutor, connect
connect(processors=2)
bench = Bench(Path(sys.argv[1]), RayExecutor(edit, workers=2, processors=1))
job = bench.submit("drag")
bench.reached(job, "drag")
print(job, flush=True)
sys.stdin.read()
"""
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with started_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=REPO
    ) as app:
        assert app.stdout is not None
        job = app.stdout.readline().strip()
        family = psutil.Process(app.pid).children(recursive=True)
        for process in (psutil.Process(app.pid), *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    psutil.wait_procs(family, timeout=HANG)
    store = Store(tmp_path / "history")
    (name,) = store.recover()
    assert store.record(name).status is JobState.INTERRUPTED
    later = ThreadExecutor(print, devices=(), board=Board(tmp_path / "jobs"))
    assert later.snapshot(job).state is JobState.INTERRUPTED
    later.close()


def test_a_ray_that_does_not_start_is_said_and_what_was_started_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(**_options: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray raises it

    ended: list[bool] = []
    monkeypatch.setattr(ray, "init", refuses)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(WorkbenchError) as caught:
        connect()
    assert caught.value.code == "no-cluster"
    assert ended == [True]


# --- where it listens --------------------------------------------------------------------------------------


def test_ray_listens_on_the_loopback_address_only_and_wants_its_token(workers: RayExecutor) -> None:
    until(lambda: bool(workers._actors))
    addresses = set()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found = process.net_connections("tcp")
            addresses |= {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    address = ray.get_runtime_context().gcs_address
    code = f"from ray._raylet import GcsClient\nGcsClient(address={address!r})"
    stranger = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    done = subprocess.run(
        [sys.executable, "-c", code], env=stranger, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode != 0
    assert "AuthenticationError" in done.stderr


# --- the same results --------------------------------------------------------------------------------------


def test_threads_and_workers_give_the_same_bits_and_share_a_sweep(
    tmp_path: Path, micro_sd: Path, workers: RayExecutor, pair: RayExecutor
) -> None:
    workers.close()  # the app's two workers take all processors
    pair.close()
    y, x = np.mgrid[:64, :64]
    rgb = np.stack([x * 3, y * 4, (x + y) % 256], axis=-1).astype(np.uint8)
    begun = []
    for kind in ("ray", "1"):  # the workers start while this process computes
        settings = Settings(
            folder=tmp_path / kind, device="cpu", threads=1, model=str(micro_sd), workers=kind
        )
        app = App(settings)
        base = functools.partial(
            EditRequest,
            image=app.store.put_image(rgb, "robot.png"),
            pairs=(PointPair(Point(24, 30), Point(40, 30)),),
            model=ModelRef(name=settings.model),
            lora=LoraConfig(steps=2, rank=2, batch_size=1),
            inversion=InversionConfig(steps=4, strength=0.5),
            working_size=64,
        )
        requests = [base(drag=DragConfig(method="dragdiffusion", steps=n)) for n in (1, 2, 3)]
        begun.append((app, app.submit_sweep(requests)))
    results = []
    for app, name in begun:
        job = app.executor.wait(name, HANG)
        assert job.state is JobState.DONE, job.error
        assert job.result["errors"] == {}
        records = [app.store.record(name) for name in job.result["edits"]]
        results.append([r.result.image for r in records if r.result is not None])
        assert len(app.store.records()) == 3
        assert [e.kind for e in app.cache.entries()].count("lora") == 1  # trained once
        app.close()
    assert len(results[0]) == 3
    assert results[0] == results[1]
