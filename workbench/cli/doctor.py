"""`doctor`: is this installation in order; and with `--drag`, does a model work on it?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.doctor import examine, verdict

_MARKS = {"ok": "ok", "warning": "! ", "problem": "X ", "skipped": "- "}


def add_parsers(subparsers: Any) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser(
        "doctor", help="check packages, device, memory, models, cache and history"
    )
    parser.add_argument(
        "--deep", action="store_true", help="also read every stored byte and load the model"
    )
    parser.add_argument(
        "--drag",
        action="store_true",
        help="let the model prove itself: load, round trip, prompt, inversion, one drag; with a report",
    )
    parser.add_argument("--model", metavar="NAME|PATH", help="with --drag [default: the settings']")
    parser.add_argument("--device", metavar="D", help="with --drag: auto, cpu, cuda, mps")
    parser.add_argument("--dtype", choices=("auto", "fp32", "fp16", "bf16"), help="with --drag")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="with --drag: HTML report [default: NAME-report.html]",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings and the sum of them; 1 when there is a problem."""
    if args.drag:
        return _prove(args)
    if args.model or args.out:
        raise BadInput("--model and --out belong to --drag.", code="arguments", field="--model")
    from workbench.cli.engine import opened_app

    found = []
    with opened_app() as app:
        for finding in examine(app, deep=args.deep):
            found.append(finding)
            if not args.json:
                print(f"{_MARKS[finding.state]}  {finding.what:<26} {finding.text}", flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(f) for f in found], indent=1))
    else:
        print(f"\n{verdict(found)}")
        if not args.deep:
            print(
                "'python -m workbench doctor --deep' also reads every stored byte and loads the model."
            )
    return 1 if any(f.state == "problem" for f in found) else 0


def _prove(args: argparse.Namespace) -> int:
    """Print each step as it ends, and write the report."""
    from workbench.cli.engine import opened_app, steps
    from workbench.cli.proof import page, prove
    from workbench.cli.requests import write_file

    found = []
    with opened_app(args) as app:
        model = args.model or app.settings.model
        out = args.out or Path.cwd() / f"{Path(model).stem}-report.html"
        with steps(quiet=args.json) as (on_step, _):
            for step in prove(app, model, on_step):
                found.append(step)
                if not args.json:
                    print(f"{_MARKS[step.state]}  {step.name:<12} {step.text} [{step.seconds:.1f} s, "
                          f"{step.memory:.1f} GB]", flush=True)  # fmt: skip
        write_file(out, page(model, found, f"{platform.system()} {platform.machine()}").encode())
    failed = [s.name for s in found if s.state == "problem"]
    if args.json:
        data = {"model": model, "report": str(out), "steps": [s.to_json() for s in found]}
        print(json.dumps(data, indent=1))
    else:
        print(
            f"\n{'Falls short: ' + ', '.join(failed) if failed else 'Everything holds'}. Report: {out}"
        )
    return 1 if failed else 0
