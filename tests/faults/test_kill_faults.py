"""docs/faults.md 30 and 42: kill -9 anywhere; nothing acknowledged is lost, nothing half-written is shown."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import killed_writer
import pytest
from patience import HANG, started, until
from store_tools import orphans

from workbench.core.record import JobState
from workbench.jobs import Board
from workbench.jobs.queue import ThreadExecutor
from workbench.storage.cache import Cache
from workbench.storage.history import Store
from workbench.storage.history.folder import verify

REPO = Path(__file__).resolve().parents[2]
SEED = 20261123
KILLS = 100


class Writer:
    """The process that forks a writer per order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        script = Path(__file__).with_name("killed_writer.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )

    def start(self, **order: Any) -> int:
        """Begin an order; the process id of its writer."""
        order = {"folder": str(self.folder), "log": str(self.log), "edits": 1, **order}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> int:
        """Exit code of the writer, negative for a signal."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def said(self, what: str) -> list[str]:
        """What writers acknowledged so far."""
        lines = (line.split() for line in self.log.read_text().splitlines())
        return [name for word, name in lines if word == what]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path)
    yield writer
    writer.close()


def check(writer: Writer, store: Store) -> None:
    """Everything acknowledged is there and whole; everything shown is whole."""
    store.recover()
    records = {r.id: r for r in store.records()}
    for name in writer.said("done"):
        assert records[name].status is JobState.DONE
    for name in writer.said("begun"):
        assert records[name].status in (JobState.DONE, JobState.INTERRUPTED)
    assert store.pending() == []
    assert store.unreadable() == []
    for record in records.values():
        if record.status is JobState.DONE:
            assert record.result is not None
            rgb = store.image(record.request.image.id)
            assert store.blob(record.result.image) == rgb[::-1].tobytes()
    cache = Cache(writer.folder / "derived")
    for entry in cache.entries():  # a partial LoRA is never loaded
        assert cache.get(entry.key) in (None, killed_writer.lora(int(entry.key.split()[1])))


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("stage", killed_writer.STAGES)
def test_fault_30_kill_at_each_stage_boundary(writer: Writer, stage: str, step: int) -> None:
    store = Store(writer.folder / "history")
    writer.start(stage=stage, step=step)
    assert writer.end() == -signal.SIGKILL
    check(writer, store)
    (record,) = store.records()
    assert record.status is JobState.INTERRUPTED
    board = ThreadExecutor(print, devices=(), board=Board(writer.folder / "jobs"))
    (line,) = Board(writer.folder / "jobs").load()
    job = board.snapshot(line["id"])  # a page that reloads finds its job again
    assert job.state is JobState.INTERRUPTED
    assert "start it again" in (job.error or "")
    writer.start(seed=7)  # and the next edit is done
    assert writer.end() == 0
    assert store.records()[0].status is JobState.DONE
    assert verify(store).ok


def test_fault_30_kill_before_and_after_every_call_that_changes_the_disk(writer: Writer) -> None:
    """Not at random: at each of the calls in turn, until one edit gets through without dying."""
    store = Store(writer.folder / "history")
    for after in (False, True):
        for nth in range(1, 500):
            writer.start(call=nth, after=after, seed=nth)
            code = writer.end()
            if nth % 10 == 0:
                check(writer, store)
            if code == 0:
                break
            assert code == -signal.SIGKILL
        check(writer, store)
        assert nth > 60
    assert verify(store).ok


def test_fault_30_a_hundred_kills_at_random_moments(writer: Writer, record_property: Any) -> None:
    store = Store(writer.folder / "history")
    chance = random.Random(SEED)
    for kill in range(KILLS):
        ready, done = len(writer.said("ready")), len(writer.said("done"))
        pid = writer.start(edits=10_000, seed=kill * 1000)
        edits = chance.randrange(6)  # after so many edits, and a moment: on a busy machine, too
        until(
            lambda ready=ready, goal=done + edits: (
                len(writer.said("ready")) > ready and len(writer.said("done")) >= goal
            ),
            every=0.001,
        )
        time.sleep(chance.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        assert writer.end() == -signal.SIGKILL
        if kill % 10 == 9:
            check(writer, store)
    check(writer, store)
    assert verify(store).ok
    records = store.records()
    done = [r for r in records if r.status is JobState.DONE]
    interrupted = [r for r in records if r.status is JobState.INTERRUPTED]
    acknowledged = writer.said("done")
    assert set(acknowledged) <= {r.id for r in done}
    assert interrupted  # the kills did hit edits under way
    figures = {
        "kills": KILLS,
        "acknowledged": len(acknowledged),
        "done": len(done),
        "interrupted": len(interrupted),
        "lost": len(set(acknowledged) - {r.id for r in done}),
        "unreadable": len(store.unreadable()),
        "unfinished files": len(orphans(store)),
    }
    for name, value in figures.items():
        record_property(name, value)
    print(figures)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_fault_42_a_signal_ends_the_process(tmp_path: Path, how: int) -> None:
    """A worker thread whose job would never end does not hold the process; records stay consistent."""
    code = """
import sys, threading, time
from workbench.jobs import Board
from workbench.jobs.queue import ThreadExecutor
from workbench.core.record import StepInfo
from workbench.storage.history import Store
from workbench.core.request import EditRequest, ImageAsset
store = Store(sys.argv[1] + "/history")
image = ImageAsset(id="wb1:" + "0" * 32, width=9, height=9)
def run(task):
    store.begin(EditRequest(image=image, pairs=()))
    print("begun", flush=True)
    while True:
        task.on_step(StepInfo(stage="drag", step=1, total=2))
        time.sleep(0.01)
jobs = ThreadExecutor(run, board=Board(sys.argv[1] + "/jobs"))
first, second = jobs.submit("edit", 1), jobs.submit("edit", 2)
try:
    print("waiting", first, flush=True)
    threading.Event().wait()
finally:
    jobs.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPO) as process:
        assert process.stdout is not None
        said = sorted(process.stdout.readline().split() for _ in range(2))
        assert [line[0] for line in said] == ["begun", "waiting"]
        job = said[1][1]
        process.send_signal(how)
        process.wait(HANG)
    assert process.returncode != 0
    store = Store(tmp_path / "history")
    (name,) = store.recover()
    assert store.record(name).status is JobState.INTERRUPTED
    jobs = ThreadExecutor(print, devices=(), board=Board(tmp_path / "jobs"))
    assert jobs.snapshot(job).state is JobState.INTERRUPTED
    assert len(jobs._board.load()) == 2 if jobs._board else False
