"""The command `bench dragbench`: other people's drags, with the figures that published tables have.

python -m workbench bench dragbench drag_bench_data --method gooddrag,auto --out dragbench.jsonl
python -m workbench bench dragbench --report dragbench.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.rows import ResultLog
from benchmarks.scenes_cli import say
from benchmarks.shared import BENCHED, add_options, method_list, run_shared
from workbench.core.config import InversionConfig, LoraConfig
from workbench.core.errors import BadInput
from workbench.core.record import OnStep

PSEUDO = ("nothing", "moved")
ALL = PSEUDO + BENCHED


def add_parser(subparsers: Any) -> None:
    """Add `dragbench`; parsing imports no torch."""
    parser = subparsers.add_parser(
        "dragbench",
        help="quality: DragBench's, GoodDrag's or your own set of drags",
        description="Carries out the drags of a set by every method named and says how far the "
        "handles are from their targets (mean distance in its four published definitions), how much "
        "of the picture was kept (SSIM, and LPIPS where it is installed) and how well the dragged "
        "patches arrived (DAI, corrected). Reads DragBench's and GoodDrag's folders and manifests of "
        "your own (docs/formats.md). Start a stopped run again to continue it.",
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="?", metavar="FOLDER", help="the set, or its manifest.json")
    add("--method", type=method_list(ALL), default=["nothing", "dragdiffusion", "gooddrag", "auto"],
        metavar="NAME,NAME",
        help=f"any of {', '.join(BENCHED)}, and for comparison {', '.join(PSEUDO)} "
        "[default nothing,dragdiffusion,gooddrag,auto]")  # fmt: skip
    add("--limit", type=int, default=0, metavar="N",
        help="only the first N drags, by name; 0: all [default 0]")  # fmt: skip
    add("--pictures", type=Path, metavar="FOLDER",
        help="write each result as METHOD/NAME/dragged_image.png, where DragBench's own evaluation "
        "programs look for it")  # fmt: skip
    add_options(parser)
    add("--working-size", type=int, default=0, metavar="PX",
        help="longest side during the edit; 0: the model's native size [default 0]")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print the tables, or print those of earlier runs.

    Raises:
        BadInput: for options out of range, or a set or file that cannot be read.
    """
    from benchmarks.dragbench_report import tables
    from benchmarks.rows import read_records

    if args.report:
        say(tables(read_records(args.report)))
        return 0
    if args.folder is None or args.out is None:
        raise BadInput("Give the FOLDER of a set and --out FILE.jsonl, or --report FILE.jsonl.")
    if args.limit < 0:
        raise BadInput(f"--limit is {args.limit}; give 0 (all) or more.")
    args.lora = LoraConfig(steps=args.lora_steps)
    args.inversion = InversionConfig(steps=args.inversion_steps)
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from benchmarks.readers import find_samples

    entries = find_samples(args.folder)  # before a model is loaded
    entries = entries[: args.limit] if args.limit else entries

    from benchmarks.dragbench_report import tables
    from workbench.cli.engine import steps

    args.folder = args.folder.resolve()  # a worker process may stand elsewhere
    log = ResultLog(args.out, resume=args.resume)
    with steps(quiet=True) as (on_step, _), log:
        if args.workers:
            run_shared(measure, args, log, on_step)
        else:
            measure(args, log, on_step)
    refused = {r["sample"] for r in log.records if r["kind"] == "refused"}
    if len(refused) == len(entries):
        raise BadInput(
            f"None of the {len(refused)} drags in {args.folder} could be read; see above."
        )
    say("")
    say(tables(log.records))
    return 0


def measure(args: argparse.Namespace, log: ResultLog, on_step: OnStep) -> None:
    """Measure what the log lacks of this process's shard."""
    from benchmarks.dragbench_run import Run
    from benchmarks.readers import find_samples
    from workbench.cli.engine import opened_app

    entries = find_samples(args.folder)
    entries = entries[: args.limit] if args.limit else entries
    shard, shards = getattr(args, "shard", (1, 1))
    with opened_app(args) as app:
        measured = Run(app, args, on_step, say)
        try:
            measured.run(entries[shard - 1 :: shards], log)
        finally:
            measured.close()
