"""`replay`: recompute an edit from its record and compare."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.cli.engine import (
    EDIT,
    edit_id,
    opened_app,
    steps,
)
from workbench.cli.parsers import add_model, add_run, add_strict
from workbench.cli.requests import told, write_file
from workbench.imaging import decode


def add_parsers(subparsers: Any) -> None:
    """Add `replay`."""
    parser = subparsers.add_parser(
        "replay",
        help="recompute an edit from its record and compare the pictures",
        description="Recompute an edit. With the versions, the device and the processor of its record "
        "the result is expected to be bit-identical; elsewhere, to differ by rounding that a drag "
        "magnifies. Exits with 1 when it differs by more.",
    )
    parser.add_argument("edit", metavar="EDIT", help=EDIT)
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the new picture")
    add_model(parser)
    add_run(parser)
    add_strict(parser)
    parser.set_defaults(run=run)


def verdict(made: Mapping[str, Any]) -> str:
    """What was found, in a sentence."""
    if made["identical"]:
        return "The picture is bit-identical."
    by = f"The pictures differ: at most {made['max']} of 255, {made['mean']:.4f} in the mean"
    if made["expected"] is None:
        return f"{by}."
    if made["expected"] == 0:
        return f"{by}. On the same machine, with the same versions, they should be bit-identical."
    if made["as_expected"]:
        return f"{by}; another machine, device or version explains up to {made['expected']}."
    return f"{by}; another machine, device or version explains {made['expected']}, not this."


def run(args: argparse.Namespace) -> int:
    """Replay and report."""
    with opened_app(args) as app:
        from workbench.jobs.run_job import replay

        edit = edit_id(app, args.edit)
        again = app.store.record(edit).request
        notices = told(app, again, strict=args.strict)
        findings = [f.to_json() for f in app.check(again)]
        with steps(quiet=args.quiet) as (on_step, _):
            made = replay(app, {"edit": edit}, on_step=on_step)
        if args.out:
            record = app.store.record(made["replayed"])
            assert record.result is not None
            write_file(args.out, decode.encode_png(app.store.image(record.result.image)))
    code = 0 if made["as_expected"] else 1
    if args.json:
        print(json.dumps({**made, "findings": findings}, indent=1))
        return code
    for line in (*notices, *made["notices"]):
        print(line)
    print(verdict(made))
    for name, (old, new) in made["environment"].items():
        print(f"{name}: {old or 'not recorded'} then, {new or 'not recorded'} now")
    print(f"Edit {made['replayed']}")
    return code
