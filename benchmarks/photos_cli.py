"""The command `bench photos`: photographs with a known truth; the figures are those of `bench scenes`.

python -m workbench bench photos FOLDER --kind cutouts --method moved,auto --drags 60 --out FILE.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.scenes_cli import add_run_options, measure, say
from workbench.core.config import InversionConfig, LoraConfig
from workbench.core.errors import BadInput


def add_parser(subparsers: Any) -> None:
    """Add `photos`; parsing imports no torch."""
    parser = subparsers.add_parser(
        "photos",
        help="quality: photographs whose true result is known",
        description="Drags parts of photographs, whose true picture after the drag is known: cut-outs of "
        "one photograph over another, moved, turned or scaled by known amounts; two pictures of a face "
        "with landmarks (.tem); frames of a video with drags. The figures are those of `bench scenes`. "
        "A folder of photographs with arrows but no truth is for `bench dragbench`.",
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="the photographs")
    parser.add_argument("--kind", choices=("cutouts", "landmarks", "pairs"), default="cutouts",
        help="what the folder holds (benchmarks/photos.py has the layouts) [default cutouts]")  # fmt: skip
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print the tables, or print those of earlier runs.

    Raises:
        BadInput: for options out of range, or a folder or file that does not fit.
    """
    from benchmarks.report import tables
    from benchmarks.rows import read_records

    if args.report:
        say(tables(read_records(args.report), common=args.common))
        return 0
    if args.folder is None:
        raise BadInput("Give the FOLDER of photographs, or --report FILE.jsonl.")
    from benchmarks.photos import photo_drags

    args.lora = LoraConfig(steps=args.lora_steps)
    args.inversion = InversionConfig(steps=args.inversion_steps)
    drags = photo_drags(args.kind, args.folder, args.drags, args.seed)
    about = {"benchmark": "photos", "set": f"{args.kind}-{args.seed}", "folder": args.folder.name}
    return measure(args, drags, about)
