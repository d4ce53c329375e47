"""The commands of `python -m workbench bench`; parsing imports no torch."""

from __future__ import annotations

from typing import Any

from benchmarks import dragbench, scenes_cli, speed


def add_parsers(subparsers: Any) -> None:
    """Add the commands to an argparse subparsers object; each sets `run(args) -> int`."""
    scenes_cli.add_parsers(subparsers)
    dragbench.add_parser(subparsers)
    speed.add_parser(subparsers)
