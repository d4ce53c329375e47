"""Speed: the reference's computation and ours, in turn, in one run on one machine.

    python -m workbench bench speed --quick
    python -m workbench bench speed --model sd15-random --device cuda --dtype fp16 --no-load-stage --quick

Other work on the machine disturbs both sides alike, so ratios within one run are what counts. A run
with fewer steps than an edit really has (`--quick`) is extended by the steady step of each stage, and
the tables say so.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput

STAGES = ("load", "train", "invert", "drag", "denoise", "decode")
PARTS = ("compare", "second", "warp", "full", "memory", "growth")


def add_parser(subparsers: Any) -> None:
    """Add `speed`; parsing imports no torch."""
    parser = subparsers.add_parser(
        "speed",
        help="time against the reference's computation",
        description="Times the reference's computation and ours in turn: stages, first edit, second "
        "drag on the same picture, warp, memory, growth. Rows appear as they are measured.",
    )
    add = parser.add_argument
    add("--model", default="storybook", metavar="NAME|PATH|sd15-random",
        help="registered name, diffusers folder, or sd15-random (the architecture of Stable "
        "Diffusion 1.5 with random weights) [default storybook]")  # fmt: skip
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 [default auto]")
    add("--dtype", default="auto", metavar="T", help="fp32, fp16, bf16 or auto [default auto]")
    add("--size", type=int, default=0, metavar="PX",
        help="side of the picture, a multiple of 64 [default: the model's own]")  # fmt: skip
    add("--threads", type=int, default=0, metavar="N", help="CPU threads [default: torch's choice]")
    add("--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: CPU seconds of this process, for a machine that others use; best with --threads 1 "
        "[default wall]")  # fmt: skip
    add("--repeats", type=int, default=3, metavar="N", help="alternations, 1 to 100 [default 3]")
    add("--quick", action="store_true", help="fewer steps, extended to full length in the tables")
    add("--seconds", type=float, default=0.0, metavar="S",
        help="begin nothing that would not be over after so many seconds [default: no limit]")  # fmt: skip
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE",
        help=f"only these: {', '.join(STAGES)}; without train no LoRA is trained")  # fmt: skip
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"only these: {', '.join(PARTS)}")  # fmt: skip
    add("--no-load-stage", action="store_true",
        help="no reading from disk; sd15-random is then made on the device, without a file")  # fmt: skip
    add("--mask", action=argparse.BooleanOptionalAction, default=True,
        help="drag with a painted mask; without one the U-Net runs only as far as needed")  # fmt: skip
    add("--previews", action=argparse.BooleanOptionalAction, default=False,
        help="with pictures on the way, which the reference does not make and which take up to a tenth "
        "of the time [default no]")  # fmt: skip
    add("--out", type=Path, metavar="FILE.jsonl", help="write every measurement as a line of JSON")
    add("--report", type=Path, metavar="FILE.jsonl", help="only print the tables of an earlier run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, or print the tables of an earlier run.

    Raises:
        BadInput: for options out of range.
    """
    from benchmarks.speed_report import Sink, read_records, tables

    if args.report is not None:
        Sink.say(tables(read_records(args.report)))
        return 0
    if not 1 <= args.repeats <= 100:
        raise BadInput(f"--repeats is {args.repeats}; give 1 to 100.")
    if args.seconds < 0:
        raise BadInput(f"--seconds is {args.seconds:g}; give a number above 0, or 0 for no limit.")
    if args.size and not (64 <= args.size <= 2048 and args.size % 64 == 0):
        raise BadInput(f"--size is {args.size}; give a multiple of 64 from 64 to 2048.")
    if not 0 <= args.threads <= 1024:
        raise BadInput(f"--threads is {args.threads}; give 0 to 1024.")
    from benchmarks.speed_run import measure

    with Sink(args.out) as sink:
        measure(args, sink)
        sink.say(tables(sink.records))
    return 0
