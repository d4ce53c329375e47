"""Edits per minute with one and more Ray workers, and what the queue costs: the figures of docs/scale.md.

    python tools/scale.py --workers 1,2 --edits 12            cached drags: LoRA and inversion are there
    python tools/scale.py --workers 1,2 --edits 4 --first     first edits: each trains on its own picture
    python tools/scale.py --workers 1,2 --overhead 200        jobs that do nothing
    python tools/scale.py --sessions 50                       50 owners with six jobs each, no Ray

On a CPU every worker has one processor and one thread. On GPUs every worker has one GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks.scenes import drag_set  # noqa: E402
from workbench.app import App  # noqa: E402
from workbench.core.config import LoraConfig, method_spec  # noqa: E402
from workbench.core.record import JobState  # noqa: E402
from workbench.core.request import EditRequest, ModelRef, TrainTask  # noqa: E402
from workbench.jobs import Task  # noqa: E402
from workbench.jobs.queue import ThreadExecutor  # noqa: E402
from workbench.jobs.ray_executor import RayExecutor, connect  # noqa: E402
from workbench.storage.settings import Settings  # noqa: E402


def nothing(_task: Task) -> None:
    """Work that takes no time."""


def requests(app: App, args: argparse.Namespace) -> list[EditRequest]:
    """As many edits as asked for, of one picture, or each of its own."""
    spec = method_spec(args.method)
    steps = {"steps": args.steps} if args.steps else {}
    made = []
    for drag in drag_set(args.edits, 4242):
        pictures = drag.pictures()
        made.append(
            EditRequest(
                image=app.store.put_image(pictures.source, drag.key),
                mask=app.store.put_mask(pictures.mask),
                pairs=drag.pairs,
                prompt=drag.before.caption,
                model=ModelRef(name=args.model),
                lora=LoraConfig(steps=args.lora_steps),
                drag=dataclasses.replace(spec.drag_config(), **steps),
                inversion=spec.inversion_config(),
            )
        )
    return made


def measure(workers: int, args: argparse.Namespace) -> float:
    """Edits per minute with so many workers; loading and starting are over when the clock starts."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        settings = Settings(folder=Path(folder), threads=args.threads, workers="ray", queue=10_000)
        app = App(settings)
        try:
            every = requests(app, args)
            if not args.first:
                ready = [app.submit_train(TrainTask(request=one)) for one in every]
            else:  # each worker loads its model
                small = dataclasses.replace(every[0], lora=LoraConfig(steps=0), seed=1)
                ready = [
                    app.submit_train(TrainTask(request=dataclasses.replace(small, seed=n)))
                    for n in range(2 * workers)
                ]
            for job in ready:
                assert app.executor.wait(job).state is JobState.DONE
            start = time.perf_counter()
            jobs = [app.executor.wait(job) for job in [app.submit_edit(one) for one in every]]
            seconds = time.perf_counter() - start
            assert all(job.state is JobState.DONE for job in jobs), [j.error for j in jobs]
            return 60 * len(jobs) / seconds
        finally:
            app.close()


def overhead(jobs: int) -> float:
    """Milliseconds per job that does nothing, one after the other."""
    executor = RayExecutor(nothing, workers=1)
    executor.wait(executor.submit("edit", None))
    start = time.perf_counter()
    for _ in range(jobs):
        executor.wait(executor.submit("edit", None))
    seconds = time.perf_counter() - start
    executor.close()
    return 1000 * seconds / jobs


def sessions(owners: int, each: int = 6, rounds: int = 20) -> str:
    """Simulated sessions: in which turn they are served, what a look at the queue costs, memory.

    What a page asks the queue at every poll is asked here by every owner, while all jobs wait; what
    Streamlit itself takes for a poll is not in it.
    """
    go = threading.Event()
    executor = ThreadExecutor(lambda _task: go.wait(), devices=("0", "1"))
    begun = psutil.Process().memory_info().rss
    polls, cpu, worst, rss = 0, 0.0, 0, []
    for _ in range(rounds):
        go.clear()
        jobs = [
            (executor.submit("edit", None, owner), owner)
            for owner in map(str, range(owners))
            for _ in range(each)
        ]
        start = time.process_time()
        for job, owner in jobs[::each]:
            executor.snapshot(job, owner)
            executor.queue(owner)
            polls += 1
        cpu += time.process_time() - start
        go.set()
        ended = sorted((executor.wait(job) for job, _ in jobs), key=lambda job: job.started)
        order = [job.owner for job in ended]
        worst = max(worst, *map(order.index, order))
        rss.append(psutil.Process().memory_info().rss)
    executor.close()
    milliseconds = 1000 * cpu / polls
    return (
        f"{owners} owners with {each} jobs: everybody's first job began after {worst} others at most; a "
        f"look at the queue takes {milliseconds:.2f} ms of CPU, at one a second {milliseconds / 10:.2f} % "
        f"of a core per viewer; memory grew by {(rss[rounds // 2] - begun) / 1e6:.1f} MB in the first "
        f"{rounds // 2} rounds and by {(rss[-1] - rss[rounds // 2]) / 1e6:.1f} MB in the others"
    )


def main() -> None:
    """Measure and print a line per number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", default="1,2", help="numbers of workers to compare")
    parser.add_argument("--edits", type=int, default=12)
    parser.add_argument("--first", action="store_true", help="train on each picture")
    parser.add_argument("--overhead", type=int, default=0, metavar="JOBS")
    parser.add_argument("--sessions", type=int, default=0, metavar="OWNERS")
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--steps", type=int, default=0, help="of a drag; 0: the method's own")
    parser.add_argument("--lora-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.sessions:
        print(sessions(args.sessions))
        return
    base = 0.0
    for workers in (int(n) for n in args.workers.split(",")):
        connect(processors=workers)
        if args.overhead:
            print(f"{workers} workers: {overhead(args.overhead):.1f} ms per job", flush=True)
        else:
            rate = measure(workers, args)
            base = base or rate / workers
            share = rate / (base * workers)
            print(
                f"{workers} workers: {rate:.2f} edits per minute, {share:.2f}x per worker",
                flush=True,
            )
        ray.shutdown()


if __name__ == "__main__":
    main()
