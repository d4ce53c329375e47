"""What only the Ray executor has; run with `-m ray` where ray is installed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from workbench.core.record import JobState, StepInfo
from workbench.jobs.board import Board
from workbench.jobs.job import Task

pytestmark = pytest.mark.ray


def run(task: Task) -> Any:
    if task.payload == "wait":
        for i in range(100_000):
            task.on_step(StepInfo(stage="drag", step=i, total=100_000, preview=b"jpeg"))
            time.sleep(0.005)
    return {"pid": os.getpid(), "device": task.device}


def test_a_killed_actor_fails_its_job_and_the_next_one_runs(tmp_path: Path) -> None:
    from workbench.jobs.ray_executor import RayExecutor

    jobs = RayExecutor(run, board=Board(tmp_path / "jobs"))
    first = jobs.wait(jobs.submit("edit", "quick"), 60)
    assert first.state is JobState.DONE
    assert first.result["device"] == "cpu"
    assert first.result["pid"] != os.getpid()
    waiting = jobs.submit("edit", "wait")
    while jobs.snapshot(waiting).preview is None:
        time.sleep(0.01)
    os.kill(first.result["pid"], signal.SIGKILL)
    dead = jobs.wait(waiting, 60)
    assert dead.state is JobState.FAILED
    assert "worker process died" in (dead.error or "")
    again = jobs.wait(jobs.submit("edit", "quick"), 60)
    assert again.state is JobState.DONE
    assert again.result["pid"] != first.result["pid"]
    jobs.close()


def test_two_actors_work_at_once() -> None:
    from workbench.jobs.ray_executor import RayExecutor

    jobs = RayExecutor(run, devices=("cpu", "cpu"))
    a, b = jobs.submit("edit", "wait"), jobs.submit("edit", "wait")
    end = time.monotonic() + 60
    while not all(jobs.snapshot(j).progress for j in (a, b)):
        assert time.monotonic() < end
        time.sleep(0.01)
    jobs.cancel(a)
    assert jobs.wait(a, 30).state is JobState.CANCELLED
    assert jobs.snapshot(b).state is JobState.RUNNING
    jobs.close()
    assert jobs.snapshot(b).state is JobState.INTERRUPTED
