"""The commands of `python -m workbench bench`; parsing imports no torch."""

from __future__ import annotations

from typing import Any

from benchmarks import cards, dragbench, photos_cli, scenes_cli, speed


def add_parsers(subparsers: Any) -> None:
    """Add the commands to an argparse subparsers object; each sets `run(args) -> int`."""
    scenes_cli.add_parsers(subparsers)
    photos_cli.add_parser(subparsers)
    dragbench.add_parser(subparsers)
    speed.add_parser(subparsers)
    cards.add_parser(subparsers)
