"""Makes edits as the pipeline does, and dies where it is told to. Run by test_kill_faults.py.

One process imports everything once and forks a child per order (stdin, one JSON line each), so that
a hundred deaths take seconds. A child appends a line to the log after each step that it regards as
acknowledged; what is in the log must still be true after its death.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.record import (
    EditRecord,
    EditResult,
    JobState,
    StepInfo,
)
from workbench.core.request import EditRequest, Point, PointPair
from workbench.jobs import Board, Task
from workbench.jobs.queue import ThreadExecutor
from workbench.storage.cache import Cache
from workbench.storage.history import Store

STAGES = ("begin", "load", "encode", "lora", "invert", "drag", "denoise", "decode", "save")
CALLS = ("write", "fsync", "replace", "link", "unlink", "open", "close", "mkdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lora(seed: int) -> bytes:
    """What the LoRA of a seed is: to be found whole or not at all."""
    return np.random.default_rng(seed).bytes(50_000)


def make_edit(task: Task, store: Store, cache: Cache, say: Callable[[str, str], None]) -> str:
    """The stages of one edit in the pipeline's order, without a model."""
    seed = task.payload

    def stage(name: str) -> None:
        task.on_step(StepInfo(stage=name, step=0, total=1))
        task.on_step(StepInfo(stage=name, step=1, total=1))

    rgb = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    request = EditRequest(
        image=store.put_image(rgb, f"{seed}.png"),
        mask=store.put_mask(rgb[..., 0] > 99),
        pairs=(PointPair(Point(1, 2), Point(5, 6)),),
        seed=seed,
    )
    name = store.begin(request)
    say("begun", name)
    for each in STAGES[:3]:
        stage(each)
    weights, _hit = cache.get_or_make(f"lora {seed}", lambda: lora(seed), kind="lora")
    assert weights == lora(seed)
    for each in STAGES[3:]:
        stage(each)
    result = EditResult(image=store.put_blob(rgb[::-1].tobytes(), "png"), iterations=seed)
    record = EditRecord(id=name, request=request, status=JobState.DONE, result=result)
    store.finish(record)
    say("done", name)
    return name


def work(order: dict[str, Any]) -> None:
    folder, log = Path(order["folder"]), os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    write = os.write

    def say(what: str, name: str) -> None:
        write(log, f"{what} {name}\n".encode())

    if "call" in order:
        die_at_call(order["call"], order.get("after", False), say)
    store, cache = Store(folder / "history"), Cache(folder / "derived")
    board = Board(folder / "jobs")

    def run(task: Task) -> str:
        if order.get("stage") is None:
            return make_edit(task, store, cache, say)

        def on_step(info: StepInfo) -> None:
            task.on_step(info)
            if info.stage == order["stage"] and info.step == order["step"]:
                die()

        own = Task(**{**{f: getattr(task, f) for f in task.__slots__}, "on_step": on_step})
        return make_edit(own, store, cache, say)

    jobs = ThreadExecutor(run, board=board)
    say("ready", "-")
    for seed in range(order.get("seed", 0), order.get("seed", 0) + order["edits"]):
        job = jobs.wait(jobs.submit("edit", seed))
        assert job.state is JobState.DONE, job.error
        say("job", job.id)


def die_at_call(nth: int, after: bool, say: Callable[[str, str], None]) -> None:
    """Die before (or right after) the n-th call that changes the disk."""
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == nth and not after:
                die()
            mine = count
            try:
                return real(*args, **kwargs)
            finally:
                if mine == nth:
                    die()

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(order)
                status = 0
            finally:
                os._exit(status)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _pid, code = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(code)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
