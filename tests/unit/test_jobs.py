"""What only the thread executor has: a bounded queue, turns, several devices, workers that are replaced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from patience import HANG

from workbench.core.errors import BadInput
from workbench.core.record import JobState, StepInfo
from workbench.jobs import Task, Turns, WorkerLost
from workbench.jobs.queue import KEEP, ThreadExecutor


class Gate:
    """Work that waits to be let through, and remembers the order in which it was started."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.devices: list[str] = []
        self.open = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    def run(self, task: Task) -> Any:
        self.order.append(task.payload)
        self.devices.append(task.device)
        self.started.release()
        while not self.open.acquire(timeout=0.005):
            task.token.check()
        return task.payload


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def jobs(gate: Gate) -> Iterator[ThreadExecutor]:
    jobs = ThreadExecutor(gate.run, limit=6)
    yield jobs
    jobs.close()


def fill(jobs: ThreadExecutor, gate: Gate, *names: str) -> list[str]:
    """Block the worker with one job, then queue the others; owner = first letter."""
    ids = [jobs.submit("edit", names[0], names[0][0])]
    gate.started.acquire(timeout=HANG)
    return ids + [jobs.submit("edit", n, n[0]) for n in names[1:]]


def drain(jobs: ThreadExecutor, gate: Gate, ids: list[str]) -> None:
    for _ in ids:
        gate.open.release()
    for name in ids:
        jobs.wait(name, HANG)


def test_owners_take_turns(jobs: ThreadExecutor, gate: Gate) -> None:
    ids = fill(jobs, gate, "a0", "a1", "a2", "a3", "b1", "b2", "c1")
    ahead = {j.payload: j.position for j in jobs.queue() if j.state is JobState.QUEUED}
    assert ahead == {"a1": 0, "b1": 1, "c1": 2, "a2": 3, "b2": 4, "a3": 5}
    assert next(j.payload for j in jobs.queue()) == "a0"
    drain(jobs, gate, ids)
    assert gate.order == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_comes_later_waits_one_turn_only(jobs: ThreadExecutor, gate: Gate) -> None:
    ids = fill(jobs, gate, "a0", "a1", "a2", "a3")
    gate.open.release()
    gate.started.acquire(timeout=HANG)  # a1 runs
    ids.append(jobs.submit("edit", "b1", "b"))
    assert jobs.snapshot(ids[-1]).position == 1
    drain(jobs, gate, ids[1:])
    assert gate.order == ["a0", "a1", "a2", "b1", "a3"]


def test_fault_41_a_full_queue_says_so(jobs: ThreadExecutor, gate: Gate) -> None:
    ids = fill(jobs, gate, *(f"a{i}" for i in range(7)))
    with pytest.raises(BadInput) as caught:
        jobs.submit("edit", "one too many", "a")
    assert (caught.value.code, caught.value.values["limit"]) == ("queue-full", 6)
    ids.append(jobs.submit("edit", "another owner's", "b"))
    jobs.cancel(ids[3])
    ids.append(jobs.submit("edit", "fits again", "a"))
    drain(jobs, gate, ids)
    assert "one too many" not in gate.order
    assert "a3" not in gate.order


def test_fault_36_a_waiting_job_is_cancelled_at_once(jobs: ThreadExecutor, gate: Gate) -> None:
    ids = fill(jobs, gate, "a0", "a1", "a2")
    assert jobs.cancel(ids[1]) is JobState.CANCELLED
    assert jobs.snapshot(ids[1]).state is JobState.CANCELLED
    assert jobs.snapshot(ids[2]).position == 0
    assert jobs.snapshot(ids[0]).state is JobState.RUNNING  # the right one only
    drain(jobs, gate, ids)
    assert gate.order == ["a0", "a2"]


def test_fault_36_the_cancel_of_one_does_not_reach_the_next(
    jobs: ThreadExecutor, gate: Gate
) -> None:
    """The token belongs to the job: a cancel that comes as a job ends must not hit its successor."""
    for i in range(50):
        first = jobs.submit("edit", i)
        second = jobs.submit("edit", -i)
        gate.started.acquire(timeout=HANG)
        gate.open.release()
        jobs.cancel(first)
        gate.open.release()
        ends = {jobs.wait(first, HANG).state, JobState.DONE, JobState.CANCELLED}
        assert ends == {JobState.DONE, JobState.CANCELLED}
        while gate.started.acquire(timeout=0.001):
            pass
        assert jobs.wait(second, HANG).state is JobState.DONE
        while gate.open.acquire(blocking=False):
            pass


def test_several_devices_work_at_once(gate: Gate) -> None:
    jobs = ThreadExecutor(gate.run, devices=("cuda:0", "cuda:1", "cuda:1"))
    ids = [jobs.submit("edit", i) for i in range(3)]
    for _ in ids:
        assert gate.started.acquire(timeout=HANG)
    assert sorted(gate.devices) == ["cuda:0", "cuda:1", "cuda:1"]
    assert [j.position for j in jobs.queue()] == [None] * 3
    drain(jobs, gate, ids)
    jobs.close()


def test_fault_39_the_dead_worker_is_replaced(gate: Gate) -> None:
    def run(task: Task) -> Any:
        if task.payload == "die":
            raise SystemExit(9)
        return gate.run(task)

    jobs = ThreadExecutor(run)
    before = jobs._threads[0]
    dead = jobs.submit("edit", "die")
    alive = jobs.submit("edit", "live")
    gate.open.release()
    assert jobs.wait(dead, HANG).state is JobState.FAILED
    assert jobs.wait(alive, HANG).state is JobState.DONE
    assert jobs._threads[0] is not before
    before.join(HANG)
    assert sum(t.name == "worker-0" and t.is_alive() for t in threading.enumerate()) == 1
    jobs.close()
    assert not jobs._threads[0].is_alive()


def test_fault_42_workers_are_daemons_and_close_gives_up_on_one_that_hangs() -> None:
    release = threading.Event()
    started = threading.Event()

    def deaf(_task: Task) -> None:
        started.set()
        release.wait(HANG)

    jobs = ThreadExecutor(deaf)
    running, waiting = jobs.submit("edit", 1), jobs.submit("edit", 2)
    started.wait(HANG)
    jobs.close(0.2)
    assert jobs.snapshot(running).state is JobState.INTERRUPTED
    assert jobs.snapshot(waiting).state is JobState.INTERRUPTED
    assert jobs._threads[0].daemon
    release.set()
    jobs._threads[0].join(HANG)
    assert jobs.snapshot(running).state is JobState.INTERRUPTED  # its late end changes nothing


@pytest.mark.parametrize("stage", ["lora", "invert", "drag", "denoise"])
def test_fault_36_cancelling_takes_less_than_two_steps(stage: str) -> None:
    steps: list[tuple[str, int]] = []
    reached, asked = threading.Event(), threading.Event()

    def run(task: Task) -> None:
        for name in ("lora", "invert", "drag", "denoise"):
            for i in range(1, 6):
                steps.append((name, i))
                task.on_step(StepInfo(stage=name, step=i, total=5))
                if (name, i) == (stage, 3):
                    reached.set()
                    asked.wait(HANG)

    jobs = ThreadExecutor(run)
    name = jobs.submit("edit", None)
    reached.wait(HANG)
    jobs.cancel(name)
    assert jobs.snapshot(name).cancelling
    asked.set()
    assert jobs.wait(name, HANG).state is JobState.CANCELLED
    assert steps[-1] == (stage, 4)  # the step under way is finished, no other begun
    jobs.close()


def test_fault_36_cancel_after_the_last_step_is_done_not_both() -> None:
    last, go = threading.Event(), threading.Event()

    def run(task: Task) -> str:
        task.on_step(StepInfo(stage="save", step=1, total=1))
        last.set()
        go.wait(HANG)
        return "saved"

    jobs = ThreadExecutor(run)
    name = jobs.submit("edit", None)
    last.wait(HANG)
    jobs.cancel(name)
    go.set()
    job = jobs.wait(name, HANG)
    assert (job.state, job.result, job.cancelling) == (JobState.DONE, "saved", False)
    jobs.close()


def test_fault_44_many_jobs_leave_nothing_behind() -> None:
    jobs = ThreadExecutor(lambda task: task.payload, limit=2000)
    threads = threading.active_count()
    ids = [jobs.submit("edit", i) for i in range(KEEP + 200)]
    for name in ids[-1:]:
        jobs.wait(name, HANG)
    assert threading.active_count() == threads
    assert len(jobs.recent()) == KEEP
    with pytest.raises(BadInput):
        jobs.snapshot(ids[0])  # forgotten in memory, and there is no board
    assert jobs.snapshot(ids[-1]).state is JobState.DONE
    jobs.close()


def test_fifty_jobs_and_two_workers_each_once() -> None:
    taken: list[int] = []
    jobs = ThreadExecutor(lambda task: taken.append(task.payload), devices=("a", "b"), limit=100)
    ids: list[str] = []

    def push(start: int) -> None:
        ids.extend(jobs.submit("edit", start + i, owner=str(start)) for i in range(10))

    threads = [threading.Thread(target=push, args=(i * 10,)) for i in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for name in ids:
        assert jobs.wait(name, HANG).state is JobState.DONE
    assert sorted(taken) == list(range(50))
    jobs.close()


def test_waiting_gives_up_after_its_timeout(jobs: ThreadExecutor, gate: Gate) -> None:
    ids = fill(jobs, gate, "a0")
    assert jobs.wait(ids[0], 0.05).state is JobState.RUNNING
    drain(jobs, gate, ids)


# --- fairness -------------------------------------------------------------------------------------------


def test_quick_jobs_pass_long_ones_and_starve_none(jobs: ThreadExecutor, gate: Gate) -> None:
    ids = fill(jobs, gate, "a0", "a1", "a2")
    ids += [jobs.submit("edit", f"q{i}", "b", quick=True) for i in range(5)]
    assert jobs.snapshot(ids[3]).position == 0
    drain(jobs, gate, ids)
    assert gate.order == ["a0", "q0", "q1", "q2", "a1", "q3", "q4", "a2"]


def test_fifty_owners_with_six_jobs_each_wait_for_nobodys_whole_queue() -> None:
    turns = Turns()
    for owner in range(50):
        for n in range(6):
            turns.add(f"{owner} {n}", str(owner), quick=n % 2 == 0)
    taken = [turns.take() for _ in range(300)]
    assert len(set(taken)) == 300
    first = {owner: taken.index(f"{owner} 0") for owner in range(50)}
    assert max(first.values()) < 70  # 50 quick jobs and the long ones that came between
    assert len(turns) == 0


# --- jobs of parts --------------------------------------------------------------------------------------


def test_two_workers_share_the_parts_of_a_job(gate: Gate) -> None:
    jobs = ThreadExecutor(gate.run, devices=("a", "b"))
    parts = [("edit", n) for n in range(3)]
    whole = jobs.submit_parts("sweep", None, parts, lambda done: [j.result for j in done], "ann")
    for _ in range(2):
        assert gate.started.acquire(timeout=HANG)
    assert sorted(gate.devices) == ["a", "b"]
    job = jobs.snapshot(whole, "ann")
    assert job.state is JobState.RUNNING
    assert job.progress is not None
    assert (job.progress.part, job.progress.parts) == (1, 3)
    assert [j.id for j in jobs.queue()] == [whole]  # parts are not listed
    for _ in range(3):
        gate.open.release()
    assert jobs.wait(whole, HANG).result == [0, 1, 2]
    jobs.close()


def test_a_failed_part_fails_alone_and_cancelling_stops_all_parts(gate: Gate) -> None:
    def run(task: Task) -> Any:
        if task.payload == "bad":
            raise BadInput("Bad.")
        return gate.run(task)

    jobs = ThreadExecutor(run)
    mixed = [("edit", "bad"), ("edit", "good")]
    first = jobs.submit_parts("sweep", None, mixed, lambda done: [j.error for j in done])
    gate.open.release()
    job = jobs.wait(first, HANG)
    assert (job.state, job.result) == (JobState.DONE, ["Bad.", None])
    gate.started.acquire(timeout=HANG)
    second = jobs.submit_parts("sweep", None, [("edit", n) for n in range(3)], list)
    gate.started.acquire(timeout=HANG)
    jobs.cancel(second)
    assert jobs.wait(second, HANG).state is JobState.CANCELLED
    assert gate.order == ["good", 0]
    jobs.close()


# --- lost workers ---------------------------------------------------------------------------------------


def test_the_job_of_a_lost_worker_is_tried_once_more() -> None:
    tries: list[str] = []

    def run(task: Task) -> str:
        tries.append(task.payload)
        if task.payload == "always" or tries.count(task.payload) == 1:
            raise WorkerLost("Killed.")
        return "done"

    jobs = ThreadExecutor(run)
    once, always = jobs.submit("edit", "once"), jobs.submit("edit", "always")
    assert jobs.wait(once, HANG).result == "done"
    assert (jobs.wait(always, HANG).state, jobs.snapshot(always).error) == (
        JobState.FAILED,
        "Killed.",
    )
    assert tries == ["once", "once", "always", "always"]
    jobs.close()
