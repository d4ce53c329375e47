"""Estimates, curves and tokens of jobs, the job board, and ids."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import HANG

from workbench.core.errors import BadInput, Cancelled
from workbench.core.record import JobState, StepInfo
from workbench.jobs import MOST_POINTS, Board, CancelToken, Entry, Job, Task
from workbench.jobs.queue import ThreadExecutor
from workbench.storage.files import UlidMaker

# --- estimates and curves ------------------------------------------------------------------------------


def entry() -> Entry:
    return Entry(Job(id="x", kind="edit"), stage_started=100.0)


def test_the_estimate_comes_from_finished_steps_of_the_stage_only() -> None:
    job, now = entry(), 100.0

    def step(stage: str, i: int, after: float, total: int = 10) -> float | None:
        nonlocal now
        now += after
        job.report(StepInfo(stage=stage, step=i, total=total), now)
        return job.view().eta

    assert step("load", 0, 5.0) is None  # nothing is finished yet
    assert step("load", 1, 30.0, total=1) == 0.0
    assert step("drag", 0, 0.0) is None  # a new stage knows nothing of the one before
    assert step("drag", 1, 2.0) == pytest.approx(18.0)
    assert step("drag", 3, 2.0) == pytest.approx((4.0 / 3) * 7)
    assert step("drag", 10, 6.0) == 0.0
    assert step("denoise", 4, 0.0) is None  # began at step 4: 4 steps were not timed
    assert step("denoise", 6, 3.0) == pytest.approx(1.5 * 4)
    assert [s.stage for s in job.view().stages] == ["load", "drag", "denoise"]
    assert job.view().stages[1].seconds == pytest.approx(10.0)


def test_a_stage_that_comes_twice_is_two_lines() -> None:
    job = entry()
    for stage, i in (("drag", 1), ("drag", 2), ("drag", 1), ("decode", 1), ("drag", 1)):
        job.report(StepInfo(stage=stage, step=i, total=2, cached=stage == "decode"), 0.0)
    assert [(s.stage, s.step, s.cached) for s in job.view().stages] == [
        ("drag", 2, False),
        ("drag", 1, False),
        ("decode", 1, True),
        ("drag", 1, False),
    ]


def test_curves_are_bounded() -> None:
    job = entry()
    for i in range(MOST_POINTS + 50):
        job.report(StepInfo(stage="lora", step=i, total=10**6, loss=float(i)), 0.0)
    assert len(job.view().losses) == MOST_POINTS
    assert job.view().losses[-1] == (MOST_POINTS + 49, MOST_POINTS + 49.0)


def test_the_token() -> None:
    token = CancelToken()
    token.check()
    assert not token.wait(0.001)
    token.set()
    token.set()
    assert token.cancelled
    assert token.wait(HANG)
    with pytest.raises(Cancelled):
        token.check()


# --- the board -----------------------------------------------------------------------------------------


def test_fault_29_a_board_that_cannot_be_written_stops_no_job(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file in its place")
    board = Board(tmp_path / "jobs")
    jobs = ThreadExecutor(lambda task: "done", board=board)
    assert jobs.wait(jobs.submit("edit", None), HANG).state is JobState.DONE
    assert board.load() == []
    jobs.close()


def test_the_board_takes_any_payload(tmp_path: Path) -> None:
    payloads: list[Any] = [
        {"pixels": np.zeros((2, 2)), "n": 1},
        "x" * 3_000_000,
        object(),
        {1: 2},
        float("nan"),
        "\ud800",
    ]
    jobs = ThreadExecutor(lambda task: "done", board=Board(tmp_path / "jobs"))
    for payload in payloads:
        name = jobs.submit("edit", payload)
        jobs.wait(name, HANG)
        assert Board(tmp_path / "jobs").find(name) is not None
        assert Job.from_line(Board(tmp_path / "jobs").find(name) or {}).result == "done"
    jobs.close()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"id": "x"}', bytes(2_000_000)])
def test_damaged_lines_of_the_board_are_passed_over(tmp_path: Path, raw: bytes) -> None:
    jobs = ThreadExecutor(lambda task: "done", board=Board(tmp_path / "jobs"))
    good, bad = jobs.submit("edit", 1), jobs.submit("edit", 2)
    jobs.wait(bad, HANG)
    (tmp_path / "jobs" / f"{bad}.json").write_bytes(raw)
    jobs.close()
    later = ThreadExecutor(print, devices=(), board=Board(tmp_path / "jobs"))
    assert later.snapshot(good).state is JobState.DONE
    with pytest.raises(BadInput):
        later.snapshot(bad)


def test_a_job_of_another_living_process_is_running_not_interrupted(tmp_path: Path) -> None:
    started, go = threading.Event(), threading.Event()

    def run(_task: Task) -> None:
        started.set()
        go.wait(HANG)

    here = ThreadExecutor(run, board=Board(tmp_path / "jobs"))
    name = here.submit("edit", None)
    started.wait(HANG)
    there = ThreadExecutor(run, devices=(), board=Board(tmp_path / "jobs"))
    assert there.snapshot(name).state is JobState.RUNNING
    go.set()
    here.wait(name, HANG)
    assert there.snapshot(name).state is JobState.DONE
    here.close()


def test_the_board_forgets_the_oldest(tmp_path: Path) -> None:
    jobs = ThreadExecutor(lambda task: "done", board=Board(tmp_path / "jobs"))
    ids = [jobs.submit("edit", i) for i in range(12)]
    jobs.wait(ids[-1], HANG)
    jobs.close()
    assert [line["id"] for line in Board(tmp_path / "jobs", keep=5).load()] == ids[-5:]


# --- ids -----------------------------------------------------------------------------------------------


def test_fault_33_ids_only_grow() -> None:
    times = iter([5.0, 5.0, 9.0, 1.0, 1.0, 9.0, 10.0])
    maker = UlidMaker(lambda: next(times))
    ids = [maker.new() for _ in range(7)]
    assert ids == sorted(set(ids))


def test_fault_46_the_next_id_cannot_be_guessed() -> None:
    """Also within one millisecond, where the specification would just count on."""
    maker = UlidMaker(lambda: 5.0)
    numbers = [maker.new() for _ in range(200)]
    from workbench.storage.files import decode

    gaps = {decode(b) - decode(a) for a, b in itertools.pairwise(numbers)}
    assert len(gaps) == 199
    assert min(gaps) > 2**40


def test_threads_share_a_maker() -> None:
    maker, made = UlidMaker(), []

    def work() -> None:
        made.extend(maker.new() for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(made)) == 2000


def test_ulid_times() -> None:
    from workbench.storage import files

    name = UlidMaker(lambda: 1_795_000_000.123).new()
    assert files.milliseconds(name) == 1_795_000_000_123
    assert files.encode(files.decode(name)) == name
    for bad in (
        "",
        "x",
        "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        name.lower(),
        name + "0",
        name[:-1] + "I",
        5,
    ):
        assert not files.is_ulid(bad)
    with pytest.raises(ValueError, match="ULID"):
        files.decode("nonsense")


def test_time_runs_on() -> None:
    maker = UlidMaker()
    first = maker.new()
    time.sleep(0.003)
    assert maker.new()[:10] > first[:10]
