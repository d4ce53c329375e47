"""A benchmark shared by worker processes: each measures every N-th drag, one file takes all rows."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import Record, ResultLog
from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.record import JobState, OnStep, StepInfo
from workbench.jobs import Task

Measure = Callable[[argparse.Namespace, ResultLog, OnStep], Any]


def add_option(add: Callable[..., Any]) -> None:
    """Add `--workers`."""
    add("--workers", metavar="N",
        help="processes that share the drags: a number, ray (one per GPU, else two), or "
        "ray://HOST:PORT; CPU seconds stay those of each process [default: this process]")  # fmt: skip


class _RemoteLog(ResultLog):
    """A log in a worker: it knows what was measured before, and hands new records to the app."""

    def __init__(self, known: list[Record], add: Callable[[Record], Any]) -> None:
        super().__init__(Path(os.devnull), resume=False)
        self.records = list(known)
        self._hand_over = add

    def add(self, record: Record) -> None:
        """Keep a record and hand it over."""
        self.records.append(record)
        self._hand_over(record)


def run_part(task: Task) -> None:
    """Measure a part of the set in a worker process, with a history and a cache of its own."""
    measure, args, known, models = task.payload
    with tempfile.TemporaryDirectory(prefix="bench-part-") as folder:
        os.environ["WORKBENCH_CACHE"] = folder
        if Path(models).is_file():  # on another machine: its own list of models
            os.environ["WORKBENCH_MODELS"] = models
        measure(args, _RemoteLog(known, task.host.log.add), task.on_step)


def run_shared(
    measure: Measure, args: argparse.Namespace, book: ResultLog, on_step: OnStep
) -> None:
    """Let `args.workers` processes measure what the log lacks.

    Raises:
        BadInput: for a number of workers that is none.
        WorkbenchError: when a part failed; the log keeps what was measured.
    """
    from workbench.cli.parsers import read_settings
    from workbench.jobs.ray_executor import RayExecutor, connect

    models = str(read_settings().models_file.resolve())
    text = str(args.workers)
    number = int(text) if text.isdecimal() else 0
    if not (1 <= number <= 64 or text == "ray" or text.startswith("ray://")):
        raise BadInput(f"--workers is {text!r:.60}; give 1 to 64, ray or ray://HOST:PORT.")
    connect(text if "://" in text else None, processors=number or None)
    executor = RayExecutor(run_part, parts={"log": book}, workers=number)
    try:
        parts = executor.workers
        jobs = []
        for part in range(1, parts + 1):
            given = argparse.Namespace(**{**vars(args), "shard": (part, parts), "workers": None})
            jobs.append(executor.submit("bench", (measure, given, book.records, models)))
        while not all(executor.snapshot(job).state.ended for job in jobs):
            on_step(StepInfo(stage="sweep", step=0, total=parts))
            executor.wait(jobs[-1], 0.2)
        ended = [executor.snapshot(job) for job in jobs]
    finally:
        executor.close()
    failed = [job.error for job in ended if job.state is not JobState.DONE]
    if failed:
        raise WorkbenchError(f"{len(failed)} of {parts} parts failed: {failed[0]}")
