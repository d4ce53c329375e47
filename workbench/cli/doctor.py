"""`doctor`: is this installation in order?"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from workbench.doctor import examine, verdict


def add_parsers(subparsers: Any) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser(
        "doctor", help="check packages, device, memory, models, cache and history"
    )
    parser.add_argument(
        "--deep", action="store_true", help="also read every stored byte and load the model"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings and the sum of them; 1 when there is a problem."""
    from workbench.cli.engine import opened_app

    marks = {"ok": "ok", "warning": "! ", "problem": "X "}
    found = []
    with opened_app() as app:
        for finding in examine(app, deep=args.deep):
            found.append(finding)
            if not args.json:
                print(f"{marks[finding.state]}  {finding.what:<26} {finding.text}", flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(f) for f in found], indent=1))
    else:
        print(f"\n{verdict(found)}")
        if not args.deep:
            print(
                "'python -m workbench doctor --deep' also reads every stored byte and loads the model."
            )
    return 1 if any(f.state == "problem" for f in found) else 0
