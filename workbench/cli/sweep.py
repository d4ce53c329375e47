"""`sweep`: one drag over a grid of methods and parameters, as one labelled picture and a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from workbench.app import App
from workbench.cli.edit import add_picture_and_points, check_out, read_pairs
from workbench.cli.engine import follow, opened_app, steps
from workbench.cli.parsers import (
    CONFIGS,
    add_config,
    add_method,
    add_model,
    add_run,
    add_strict,
    add_workers,
)
from workbench.cli.requests import (
    add_common,
    make_request,
    read_mask,
    read_parent,
    read_picture,
    told,
    write_file,
)
from workbench.core.errors import BadInput
from workbench.core.request import SweepTask
from workbench.imaging.decode import encode_png
from workbench.sweeps.plan import (
    MOST_AXES,
    MOST_RUNS,
    Axis,
    Plan,
    key_of,
    parse_values,
)
from workbench.sweeps.results import (
    Outcome,
    metrics_csv,
    outcomes,
    sheet_of,
    verdict,
)


def add_parsers(subparsers: Any) -> None:
    """Add `sweep`."""
    parser = subparsers.add_parser(
        "sweep",
        help="one drag over a grid of methods and parameters",
        usage="%(prog)s PICTURE --pair X,Y:X,Y [...] --vary NAME=V,V [--vary ...] [options]",
        epilog="Example: %(prog)s robot.png --pair 226,149:218,93 --vary method=warp,auto "
        "--vary lora.steps=40,80 -o sheet.png",
        description="Repeat a drag with every combination of the given values and write a contact "
        f"sheet of all, rows by columns. At most {MOST_RUNS} runs; the last --vary gives the columns. "
        "What the history has already is not run again.",
    )
    add_picture_and_points(parser)
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="NAME=V,V,...",
        help="what to vary: method, or an option such as drag.steps, lora.rank, inversion.strength; "
        f"1 to {MOST_AXES} times",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="PNG of the sheet [default: <name of the picture>-sweep.png, here]",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the measures as CSV")
    add_common(parser)
    add_model(parser)
    add_method(parser)
    add_run(parser)
    add_strict(parser)
    add_workers(parser)
    for prefix, cls, title in CONFIGS:
        add_config(parser, prefix, cls, title)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what is missing and write the sheet; 1 when some runs failed."""
    out = args.out or Path.cwd() / f"{args.picture.stem}-sweep.png"
    check_out(out, args.picture)
    axes = tuple(axis(text) for text in args.vary)
    pairs = read_pairs(args)
    with opened_app(args) as app:
        picture = read_picture(app, args.picture)
        image, notices, parent = picture.asset, picture.notices, read_parent(app, picture)
        base = make_request(app, args, image=image, mask=None, pairs=pairs, parent=parent)
        Plan(base, axes)  # says what is wrong before a mask is looked for
        wanted: str | Path = args.mask or ("whole" if args.whole else "auto")
        mask, more = read_mask(app, image, picture.rgb, pairs, wanted, invert=args.invert_mask)
        plan = Plan(dataclasses.replace(base, mask=mask), axes)
        more += told(app, plan.base, strict=args.strict)
        findings = [f.to_json() for f in app.check(plan.base)]
        found = carry_out(app, plan, quiet=args.quiet)
        write_file(out, encode_png(sheet_of(plan, found, app.store.image)))
        if args.csv is not None:
            write_file(args.csv, metrics_csv(plan, found).encode())
    failed = sum(one.state == "failed" for one in found)
    if args.json:
        rows = [
            {
                "name": one.cell.name,
                "state": one.state,
                "edit": one.record.id if one.record else None,
                "reason": one.reason,
            }
            for one in found
        ]
        print(json.dumps({"sheet": str(out), "cells": rows, "findings": findings}, indent=1))
    else:
        for line in (*notices, *more, *(_line(one) for one in found), str(out)):
            print(line)
    return 1 if failed else 0


def axis(text: str) -> Axis:
    """Read 'drag.steps=20,40,80'.

    Raises:
        BadInput: naming what is wrong.
    """
    name, equals, values = text.partition("=")
    if not equals:
        raise BadInput(f"{text!r:.60} is no NAME=V,V,...; write such as drag.steps=20,40,80.")
    name = name.strip()
    return Axis(name, parse_values(name, values))


def carry_out(app: App, plan: Plan, *, quiet: bool) -> list[Outcome]:
    """Run the cells that the history lacks; all cells as they stand then.

    Raises:
        WorkbenchError: whatever stops the whole sweep; a failed cell is in its outcome.
    """

    def look(errors: dict[str, str]) -> list[Outcome]:
        return outcomes(plan, app.store.records(image=plan.base.image.id), errors=errors)

    done = {one.cell.key for one in look({}) if one.state == "done"}
    missing = [cell.request for cell in plan.runs() if cell.key not in done]
    if not missing:
        return look({})
    with steps(quiet=quiet) as (on_step, _):
        made = follow(app, app.submit_sweep(SweepTask(tuple(missing), plan.title)), on_step).result
    return look({key_of(missing[int(n)]): text for n, text in made["errors"].items()})


def _line(one: Outcome) -> str:
    words = verdict(one.record) if one.record and one.state == "done" else one.reason or one.state
    edit = f" ({one.record.id})" if one.record and one.state == "done" else ""
    return f"{one.cell.name}: {words}{edit}"
