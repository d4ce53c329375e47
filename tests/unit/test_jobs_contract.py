"""The contract of every executor: one set of tests, with threads here and with Ray in test_jobs_ray.py."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_work import run
from patience import HANG, until

from workbench.core.errors import BadInput
from workbench.core.record import JobState
from workbench.core.request import EditRequest, ImageAsset
from workbench.jobs import Board
from workbench.jobs.queue import ThreadExecutor


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[ThreadExecutor]:
    made = ThreadExecutor(run, board=Board(tmp_path / "jobs"))
    yield made
    made.close()


def submit(jobs: ThreadExecutor, do: str = "steps", owner: str = "", **more: Any) -> str:
    return jobs.submit("edit", {"do": do, **more}, owner)


def started(jobs: ThreadExecutor, owner: str = "") -> str:
    """A job that runs until it is cancelled, once it has begun."""
    name = submit(jobs, "sleep", owner)
    until(lambda: jobs.snapshot(name).progress is not None)
    return name


def test_a_job_is_done_and_keeps_its_story(jobs: ThreadExecutor) -> None:
    before = time.time()
    job = jobs.wait(submit(jobs, owner="ann", value={"edit": "x"}), HANG)
    assert (job.state, job.result, job.error) == (JobState.DONE, {"edit": "x"}, None)
    assert (job.kind, job.owner) == ("edit", "ann")
    assert before <= job.created <= job.started <= job.finished <= time.time()
    assert [(s.stage, s.step, s.total) for s in job.stages] == [("lora", 5, 5), ("drag", 5, 5)]
    assert job.losses == tuple((i, 1.0 / (i + 1)) for i in range(6))  # of the last stage
    assert job.tracks[-1] == (5, (0.0,))
    assert [p[0].x for _step, p in job.paths] == [0, 1, 2, 3, 4, 5]
    assert job.progress is not None
    assert (job.progress.stage, job.progress.step) == ("drag", 5)
    assert job.preview == b"jpeg"  # the last one there was
    assert (job.position, job.eta, job.cancelling) == (None, None, False)
    assert jobs.queue() == []


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("bad", "The mask is 3x3"),
        ("nan", "became NaN at step 3"),
        ("bug", "failed unexpectedly (TypeError: unsupported operand)"),
        ("memory", "failed unexpectedly (MemoryError)"),
        ("exit", "SystemExit"),
    ],
)
def test_fault_39_whatever_the_work_raises_the_next_job_succeeds(
    jobs: ThreadExecutor, do: str, words: str
) -> None:
    for _ in range(3):
        job = jobs.wait(submit(jobs, do), HANG)
        assert job.state is JobState.FAILED
        assert words in (job.error or "")
        assert job.result is None
    assert jobs.wait(submit(jobs), HANG).state is JobState.DONE


def test_the_payload_is_frozen_when_it_is_submitted(jobs: ThreadExecutor) -> None:
    """docs/faults.md 43: what the page changes afterwards does not reach a waiting or running job."""
    payload = {"do": "steps", "value": "before"}
    blocker = started(jobs)
    waiting = jobs.submit("edit", payload)
    payload["value"] = "after"
    jobs.cancel(blocker)
    assert jobs.wait(waiting, HANG).result == "before"


def test_a_request_goes_through_as_it_is(jobs: ThreadExecutor) -> None:
    request = EditRequest(image=ImageAsset(id="x", width=9, height=9), pairs=(), seed=77)
    job = jobs.wait(jobs.submit("edit", request), HANG)
    assert job.result == 77
    assert job.payload == request


# --- 36: cancelling ---------------------------------------------------------------------------------


def test_fault_36_cancel_while_running(jobs: ThreadExecutor) -> None:
    name = started(jobs)
    assert jobs.cancel(name) in (JobState.RUNNING, JobState.CANCELLED)
    job = jobs.wait(name, HANG)
    assert job.state is JobState.CANCELLED
    assert not job.cancelling
    assert jobs.wait(submit(jobs), HANG).state is JobState.DONE


def test_fault_36_cancel_twice_and_after_the_end(jobs: ThreadExecutor) -> None:
    name = started(jobs)
    jobs.cancel(name)
    jobs.cancel(name)
    assert jobs.wait(name, HANG).state is JobState.CANCELLED
    assert jobs.cancel(name) is JobState.CANCELLED
    done = submit(jobs)
    assert jobs.wait(done, HANG).state is JobState.DONE
    assert jobs.cancel(done) is JobState.DONE
    assert jobs.snapshot(done).state is JobState.DONE


def test_fault_36_the_work_may_give_up_by_itself(jobs: ThreadExecutor) -> None:
    assert jobs.wait(submit(jobs, "gives up"), HANG).state is JobState.CANCELLED


def test_fault_36_an_unknown_id_is_said_to_be_unknown(jobs: ThreadExecutor) -> None:
    for name in ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "", "../../x", "x" * 500):
        for call in (jobs.cancel, jobs.snapshot, jobs.wait):
            with pytest.raises(BadInput) as caught:
                call(name)
            assert caught.value.code == "no-such-job"


def test_fault_46_another_owners_job_is_neither_seen_nor_stopped(jobs: ThreadExecutor) -> None:
    name = started(jobs, "ann")
    for call in (jobs.cancel, jobs.snapshot):
        with pytest.raises(BadInput) as caught:
            call(name, "bob")
        assert caught.value.code == "no-such-job"
    assert jobs.queue("bob") == []
    assert jobs.recent("bob") == []
    assert jobs.snapshot(name, "ann").state is JobState.RUNNING
    assert [j.id for j in jobs.queue("ann")] == [name]
    jobs.cancel(name, "ann")
    assert jobs.wait(name, HANG).state is JobState.CANCELLED


def test_fault_41_a_double_click_is_one_job(jobs: ThreadExecutor) -> None:
    answers: list[str] = []

    def click(owner: str) -> None:
        answers.append(jobs.submit("edit", {"do": "sleep"}, owner, key="same"))

    clicks = [threading.Thread(target=click, args=("ann",)) for _ in range(20)]
    clicks.append(threading.Thread(target=click, args=("bob",)))
    for t in clicks:
        t.start()
    until(lambda: len(jobs.queue()) == 2 and len(answers) == len(clicks))
    waiting = jobs.queue()
    assert sorted(j.owner for j in waiting) == ["ann", "bob"]  # another owner's is another job
    for job in waiting:
        jobs.cancel(job.id)
    for t in clicks:
        t.join()
    assert len(answers) == 21
    assert set(answers) == {j.id for j in waiting}


def test_fault_41_after_its_end_the_same_key_is_a_new_job(jobs: ThreadExecutor) -> None:
    first = jobs.submit("edit", {}, key="same")
    jobs.wait(first, HANG)
    second = jobs.submit("edit", {}, key="same")
    assert jobs.wait(second, HANG).state is JobState.DONE
    assert first != second
    assert jobs.submit("edit", {}) != jobs.submit("edit", {})  # no key: never the same


# --- closing, and after a restart -------------------------------------------------------------------


def test_fault_42_closing_interrupts(jobs: ThreadExecutor) -> None:
    name = started(jobs)
    jobs.close(HANG)
    assert jobs.wait(name, HANG).state is JobState.INTERRUPTED
    with pytest.raises(BadInput) as caught:
        submit(jobs)
    assert caught.value.code == "closing"


def test_fault_30_a_job_is_found_again_after_a_restart(
    jobs: ThreadExecutor, tmp_path: Path
) -> None:
    request = EditRequest(image=ImageAsset(id="x", width=9, height=9), pairs=(), prompt="ü")
    done = jobs.submit("edit", request, "ann", label="the robot")
    failed = jobs.submit("edit", {"do": "bad"}, "ann")
    jobs.wait(done, HANG)
    jobs.wait(failed, HANG)
    name = started(jobs, "ann")
    jobs.close(5)
    jobs.wait(name, HANG)
    later = ThreadExecutor(run, devices=(), board=Board(tmp_path / "jobs"))
    again = later.snapshot(done, "ann")
    assert (again.state, again.label, again.kind) == (JobState.DONE, "the robot", "edit")
    assert EditRequest.from_json(again.payload) == request
    assert later.snapshot(failed).error == jobs.snapshot(failed).error
    interrupted = later.snapshot(name)
    assert interrupted.state is JobState.INTERRUPTED
    assert "start it again" in (interrupted.error or "")
    assert later.cancel(name) is JobState.INTERRUPTED
    with pytest.raises(BadInput):
        later.snapshot(done, "bob")
    later.close()


def test_ids_grow(jobs: ThreadExecutor) -> None:
    ids = [submit(jobs) for _ in range(5)]
    assert ids == sorted(set(ids))
    for name in ids:
        jobs.wait(name, HANG)
    assert [j.id for j in jobs.recent()] == ids[::-1]


def test_a_snapshot_does_not_change_any_more(jobs: ThreadExecutor) -> None:
    job = jobs.wait(submit(jobs), HANG)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.state = JobState.FAILED  # type: ignore[misc]
