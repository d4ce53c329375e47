"""What jobs of the tests do; no more is imported than a worker's process needs to start soon."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput, Cancelled, ModelError
from workbench.core.record import EditRecord, EditResult, JobState, StepInfo
from workbench.core.request import EditRequest, Point
from workbench.jobs import Task

STEPS = 5


def run(task: Task) -> Any:
    """The work of these tests: obeys its payload, and is importable by a worker process."""
    payload = task.payload
    if isinstance(payload, EditRequest):
        return payload.seed
    kind = payload.get("do", "steps")
    if kind == "sleep":
        while True:  # until it is told to stop
            task.on_step(StepInfo(stage="drag", step=0, total=1))
            time.sleep(0.005)
    if kind == "bad":
        raise BadInput("The mask is 3x3 but the image is 9x9; they must have the same size.")
    if kind == "nan":
        raise ModelError("The latent became NaN at step 3; lower the learning rate.")
    if kind == "bug":
        raise TypeError("unsupported operand")
    if kind == "exit":
        raise SystemExit(3)
    if kind == "memory":
        raise MemoryError
    if kind == "gives up":
        raise Cancelled("Cancelled.")
    for stage in ("lora", "drag"):
        for i in range(STEPS + 1):
            task.on_step(
                StepInfo(
                    stage=stage,
                    step=i,
                    total=STEPS,
                    loss=1.0 / (i + 1),
                    points=(Point(i, 2),),
                    distances=(float(STEPS - i),),
                    preview=b"jpeg" if i == 2 else None,
                )
            )
    return payload.get("value", "done")


def hold(task: Task, stage: str = "drag") -> None:
    """Report steps until the job is stopped or its process is killed."""
    for i in range(10**6):
        task.on_step(StepInfo(stage=stage, step=i, total=10**6, preview=b"jpeg"))
        time.sleep(0.01)


def edit(task: Task) -> str:
    """An edit in the pipeline's order, without a model; waits at the stage that the payload names."""
    request, stop = task.payload["request"], task.payload["stop"]
    mark = Path(task.payload["mark"])
    first = not mark.exists()
    with mark.open("a") as file:
        file.write(f"{os.getpid()}\n")

    def stage(name: str) -> None:
        task.on_step(StepInfo(stage=name, step=0, total=1))
        if name == stop and (first or task.payload["always"]):
            hold(task, name)

    store, cache = task.host.store, task.host.cache
    stage("load")
    name = store.begin(request, owner=task.owner)
    rgb = store.image(request.image.id)

    def train() -> bytes:
        stage("lora")
        return b"weights"

    weights, _hit = cache.get_or_make("wb1:lora", train, kind="lora")
    assert weights == b"weights"
    stage("drag")
    result = EditResult(image=store.put_image(rgb[::-1].copy(), "result").id)
    stage("save")
    done = EditRecord(id=name, request=request, status=JobState.DONE, result=result)
    store.finish(done)
    stage("after the commit")
    return str(name)
