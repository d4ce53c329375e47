"""A benchmark shared by worker processes: each measures every N-th drag, one file takes all rows."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rows import Record, ResultLog
from workbench.core.config import METHODS, InversionConfig, LoraConfig
from workbench.core.errors import BadInput, ModelError, WorkbenchError
from workbench.core.record import EditResult, JobState, OnStep, StepInfo
from workbench.core.request import EditRequest
from workbench.jobs import Task

if TYPE_CHECKING:
    from workbench.editing.prepare import Engine

BENCHED = (*METHODS, "refined")  # "refined": auto with its option `refine`

Measure = Callable[[argparse.Namespace, ResultLog, OnStep], Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what every quality benchmark knows: result file, workers, model, preparation."""
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE.jsonl", help="write every measurement as a line of JSON")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="keep what --out holds already and measure the rest [default yes]")  # fmt: skip
    add("--report", type=Path, nargs="+", metavar="FILE.jsonl",
        help="only print the tables of earlier runs (the shards of one)")  # fmt: skip
    add("--workers", metavar="N",
        help="processes that share the drags: a number, ray (one per GPU, else two), or "
        "ray://HOST:PORT; CPU seconds stay those of each process [default: this process]")  # fmt: skip
    add("--model", default="", metavar="NAME|PATH", help="[default: the settings' model]")
    add("--device", default="", metavar="D",
        help="auto, cpu, cuda, cuda:1 [default: the settings']")  # fmt: skip
    add("--dtype", default="", metavar="T",
        help="fp32, fp16, bf16 or auto [default: the settings']")  # fmt: skip
    add("--lora-steps", type=int, default=LoraConfig().steps, metavar="N",
        help=f"LoRA training steps [default {LoraConfig().steps}]")  # fmt: skip
    add("--inversion-steps", type=int, default=InversionConfig().steps, metavar="N",
        help=f"DDIM steps [default {InversionConfig().steps}]")  # fmt: skip


def method_list(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reader of "NAME,NAME": methods among `known`, each once."""

    def read(text: str) -> list[str]:
        names = [n.strip() for n in text.split(",") if n.strip()]
        unknown = [n for n in names if n not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"there is no method {(unknown or [text])[0]!r}; choose from: {', '.join(known)}"
            )
        return list(dict.fromkeys(names))

    return read


def carry_out(
    request: EditRequest, engine: Engine, on_step: OnStep, row: dict[str, Any]
) -> EditResult | None:
    """A method's result, and in `row` what the edit says of itself; None when it failed."""
    from workbench.edit import run_edit

    try:
        record = run_edit(request, engine, on_step=on_step, fresh=True, previews=False)
    except ModelError as exc:  # one drag that fails is a result, too
        row["error"] = str(exc)
        return None
    found = record.result
    assert found is not None
    row |= {
        "edit": record.id, "steps": found.iterations, "stop": found.stop,
        "seconds": dict(found.seconds), "cached": list(found.cached),
        "notices": list(found.notices),
    }  # fmt: skip
    return found


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


def run_shared(measure: Measure, args: argparse.Namespace, log: ResultLog, on_step: OnStep) -> None:
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
    executor = RayExecutor(run_part, parts={"log": log}, workers=number)
    try:
        parts = executor.workers
        jobs = []
        for part in range(1, parts + 1):
            given = argparse.Namespace(**{**vars(args), "shard": (part, parts), "workers": None})
            jobs.append(executor.submit("bench", (measure, given, log.records, models)))
        while not all(executor.snapshot(job).state.ended for job in jobs):
            on_step(StepInfo(stage="sweep", step=0, total=parts))
            executor.wait(jobs[-1], 0.2)
        ended = [executor.snapshot(job) for job in jobs]
    finally:
        executor.close()
    failed = [job.error for job in ended if job.state is not JobState.DONE]
    if failed:
        raise WorkbenchError(f"{len(failed)} of {parts} parts failed: {failed[0]}")
