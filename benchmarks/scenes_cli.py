"""The commands `bench scenes` and `bench compare`: quality against known truth.

python -m workbench bench scenes --method dragdiffusion,warp,auto --drags 12 --out figures.jsonl
python -m workbench bench scenes --report figures.jsonl
python -m workbench bench compare dragdiffusion auto --in figures.jsonl
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rows import ResultLog
from benchmarks.shared import BENCHED, add_options, method_list, run_shared
from workbench.core.config import InversionConfig, LoraConfig
from workbench.core.errors import BadInput
from workbench.core.record import OnStep

if TYPE_CHECKING:
    from benchmarks.scenes import AnyDrag

PSEUDO = ("nothing", "truth", "roundtrip", "moved")
ALL = PSEUDO + BENCHED


def add_parsers(subparsers: Any) -> None:
    """Add `scenes` and `compare`; parsing imports no torch."""
    parser = subparsers.add_parser(
        "scenes",
        help="quality: drags whose true result is known",
        description="Drags things in held-out scenes, whose true picture after the drag is known, by "
        "every method named, and says how far the handles are from their targets (found by the "
        "model's features, and independently by template matching), how far the picture is from the "
        "true one relative to doing nothing, what changed outside the mask, and how long it took. "
        "Start a stopped run again to continue it.",
    )
    add_run_options(parser)
    parser.set_defaults(run=run_scenes)

    parser = subparsers.add_parser(
        "compare",
        help="which differences between two methods or two runs are beyond the intervals",
        description="Pairs the drags that A and B have both measured and says, figure by figure, "
        "whether the 95 %% bootstrap interval of their differences leaves out 0. A and B are result "
        "files (all methods that both hold are compared), FILE:METHOD, or with --in two methods.",
    )
    parser.add_argument("a", metavar="A", help="FILE.jsonl, FILE.jsonl:METHOD, or METHOD with --in")
    parser.add_argument("b", metavar="B", help="likewise")
    parser.add_argument("--in", dest="files", type=Path, nargs="+", metavar="FILE.jsonl",
        help="where the methods A and B are found (the shards of a run)")  # fmt: skip
    parser.set_defaults(run=run_compare)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of a quality benchmark with a known truth."""
    add = parser.add_argument
    add("--method", type=method_list(ALL), default=list(ALL), metavar="NAME,NAME",
        help=f"any of {', '.join(BENCHED)}, and the rows of sanity {', '.join(PSEUDO)} "
        "[default all]")  # fmt: skip
    add(
        "--drags",
        type=int,
        default=12,
        metavar="N",
        help="drags of the set, from its first [default 12]",
    )
    add("--seed", type=int, default=1, metavar="S",
        help="which set, 0 to 999999; report on another one than you tune on [default 1]")  # fmt: skip
    add("--shard", type=_shard, default=(1, 1), metavar="I/N",
        help="do only every N-th drag, beginning with the I-th: N processes share a set, each with a "
        "file of its own [default 1/1]")  # fmt: skip
    add_options(parser)
    add("--strips", type=Path, metavar="FOLDER",
        help="write a labelled strip per drag: source with arrows, each method, the truth")  # fmt: skip
    add("--judge", action="store_true",
        help="also measure the pictures that auto chooses between (METHOD:moved, METHOD:drawn), and "
        "say how often it chose the better one")  # fmt: skip
    add("--common", action="store_true",
        help="tables over the drags that every method has, not over each method's own")  # fmt: skip
    add("--threads", type=int, default=0, metavar="N",
        help="CPU threads; 1 makes CPU seconds comparable [default: torch's choice]")  # fmt: skip


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    shard, shards = (int(g) for g in found.groups()) if found else (0, 0)
    if not 1 <= shard <= shards:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 1/2 or 2/2")
    return shard, shards


def say(text: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_scenes(args: argparse.Namespace) -> int:
    """Measure and print the tables, or print those of earlier runs.

    Raises:
        BadInput: for options out of range, or a file that does not fit.
    """
    from benchmarks.report import tables
    from benchmarks.rows import read_records

    if args.report:
        say(tables(read_records(args.report), common=args.common))
        return 0
    from benchmarks.scenes import drag_set, facts

    args.lora = LoraConfig(steps=args.lora_steps)
    args.inversion = InversionConfig(steps=args.inversion_steps)
    drags = drag_set(args.drags, args.seed)  # refuses a bad count or seed before a model is loaded
    return measure(args, drags, {"benchmark": "scenes", **facts(args.seed)})


def measure(args: argparse.Namespace, drags: Sequence[AnyDrag], head: Mapping[str, Any]) -> int:
    """Run the methods on drags, and print the tables; `head` names the set in the result file.

    Raises:
        BadInput: for options out of range.
    """
    if not 0 <= args.threads <= 1024:
        raise BadInput(f"--threads is {args.threads}; give 0 to 1024.")
    if args.shard[1] > len(drags):
        raise BadInput(f"{len(drags)} drags cannot be shared by {args.shard[1]} processes.")
    import tempfile

    from benchmarks.report import tables
    from workbench.cli.engine import steps

    with tempfile.TemporaryDirectory(prefix="bench-scenes-") as folder:
        log = ResultLog(args.out or Path(folder) / "rows.jsonl", resume=args.resume)
        part = functools.partial(measure_part, drags=drags, head=head)
        with steps(quiet=True) as (on_step, _), log:
            if args.workers:
                run_shared(part, args, log, on_step)
            else:
                part(args, log, on_step)
        say("")
        say(tables(log.records, common=args.common))
    return 0


def measure_part(
    args: argparse.Namespace,
    log: ResultLog,
    on_step: OnStep,
    *,
    drags: Sequence[AnyDrag],
    head: Mapping[str, Any],
) -> None:
    """Measure what the log lacks of this process's shard, and write the strips."""
    from benchmarks.scenes_run import Scenes
    from benchmarks.strips import write_strips
    from workbench.cli.engine import opened_app

    with opened_app(args) as app:
        scenes = Scenes(app, args, drags, head, on_step, say)
        try:
            scenes.run(log)
            if args.strips is not None:
                write_strips(args.strips, scenes.drags, log.rows(), args.method, scenes.store)
        finally:
            scenes.close()


def run_compare(args: argparse.Namespace) -> int:
    """Print the comparison.

    Raises:
        BadInput: when a file cannot be read, or nothing is common to both.
    """
    from benchmarks.compare import comparison

    say(comparison(args.a, args.b, args.files))
    return 0
