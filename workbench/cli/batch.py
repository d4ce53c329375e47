"""`batch` and `sweep`: many edits from one file, or one drag over a grid of methods and parameters."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.app import App
from workbench.cli.edit import (
    add_picture_and_points,
    check_out,
    read_pairs,
    read_request,
    summary,
    write_result,
)
from workbench.cli.engine import follow, opened_app, steps
from workbench.cli.parsers import (
    CONFIGS,
    add_dragging,
    add_model,
    add_run,
    add_strict,
    add_workers,
    read_file,
    read_points,
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
from workbench.core.config import LORA_PRESETS, METHODS, STRENGTHS
from workbench.core.errors import BadInput, Cancelled, WorkbenchError
from workbench.core.options import options_of
from workbench.core.record import JobState, OnStep
from workbench.core.request import PointPair, SweepTask
from workbench.imaging.decode import encode_png
from workbench.sweeps import MOST_AXES, MOST_RUNS, Axis, Plan, key_of, parse_values
from workbench.sweeps.results import (
    Outcome,
    metrics_csv,
    outcomes,
    sheet_of,
    verdict,
)

_MOST_BYTES = 64 * 2**20
_DEFAULTS: dict[str, Any] = {
    "prompt": "", "model": None, "method": None, "preset": "normal", "lora_preset": None, "seed": 0,
    "working_size": 0, "crop": True, "lora": None, "lora_weight": 1.0, "style": None,
    "style_weight": 1.0,
}  # fmt: skip
_OWN = ("picture", "out", "pairs", "points", "mask", "invert_mask", "options")


def _add_batch_parser(subparsers: Any) -> None:
    """Add `batch`."""
    parser = subparsers.add_parser(
        "batch",
        help="many edits from a JSON or JSON-lines file",
        description="Each entry is an object: picture, out, pairs [[x,y,x,y],...] or points (a file), "
        "mask (a file, 'auto' or 'whole'), invert_mask, options {'drag.steps': 120, ...}, and: "
        f"{', '.join(_DEFAULTS)}. Paths are relative to the file. A JSON file may also be "
        '{"defaults": {...}, "edits": [...]}.',
    )
    parser.add_argument("file", type=Path, help="JSON, or JSON lines (.jsonl)")
    parser.add_argument(
        "--again", action="store_true", help="also where the result is there already"
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    add_model(parser)
    add_run(parser)
    add_strict(parser)
    add_workers(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do all edits; 1 when some failed."""
    entries = read_entries(args.file)
    rows, failed = [], 0
    with opened_app(args) as app, steps(quiet=args.quiet) as (on_step, _):
        for one in _in_turn(app, args, entries, on_step):
            rows.append(one.row)
            if not args.json:
                print(f"{one.place}: {one.text}")
            if one.row["state"] == "failed":
                failed += 1
                if args.stop:
                    break
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{len(rows)} of {len(entries)} edits, {failed} failed.")
    return 1 if failed else 0


@dataclass(slots=True)
class _Line:
    """One entry on its way: its job while it runs, then its row of the result."""

    place: str
    out: Path
    job: str = ""
    notices: Sequence[str] = ()
    findings: Sequence[dict[str, Any]] = ()
    row: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    def end(self, state: str, text: str, **more: Any) -> _Line:
        """Fill in how it ended."""
        self.row = {"out": str(self.out), "state": state, **more}
        self.text = text
        return self


def _in_turn(
    app: App, args: argparse.Namespace, entries: Sequence[Entry], on_step: OnStep
) -> Iterator[_Line]:
    """The entries in their order, each once it has ended; some are queued ahead for the workers."""
    waiting: deque[_Line] = deque()
    for number, entry in enumerate(entries, 1):
        line = _Line(f"{number}/{len(entries)} {entry.picture.name}", entry.out)
        if entry.out.exists() and not args.again:
            line.end("there already", "there already")
        else:
            try:
                request, line.notices = read_request(app, entry.namespace(args), entry.pairs)
                line.findings = [f.to_json() for f in app.check(request)]
                line.job = app.submit_edit(request)
            except Cancelled:
                raise
            except WorkbenchError as exc:
                line.end("failed", str(exc), error=str(exc))
        waiting.append(line)
        if len(waiting) > min(app.settings.queue, 2 * app.executor.workers):
            yield _ended(app, waiting.popleft(), on_step)
    while waiting:
        yield _ended(app, waiting.popleft(), on_step)


def _ended(app: App, line: _Line, on_step: OnStep) -> _Line:
    """Wait for an entry's job and write its files."""
    if not line.job:
        return line
    try:
        job = follow(app, line.job, on_step)
        if job.state is not JobState.DONE:
            raise WorkbenchError(job.error or job.state.value)
        record = app.store.record(job.result)
        written = write_result(app, record, line.out, with_card=True)
    except Cancelled:
        raise
    except WorkbenchError as exc:
        return line.end("failed", str(exc), error=str(exc))
    line.out = written["result"]
    text = f"{line.out.name}. {' '.join([*line.notices, *summary(record)])}"
    return line.end("done", text, edit=record.id, findings=list(line.findings))


class Entry:
    """One line of the file, checked."""

    def __init__(self, data: Any, where: str, folder: Path) -> None:
        """Read it.

        Raises:
            BadInput: naming the entry and what is wrong.
        """
        if not isinstance(data, Mapping):
            raise BadInput(f"{where} is not a JSON object.", code="wrong-type")
        unknown = sorted(set(data) - set(_OWN) - set(_DEFAULTS))
        if unknown:
            known = ", ".join((*_OWN, *_DEFAULTS))
            raise BadInput(
                f"{where} does not know {unknown[0]!r}; it has: {known}.", code="unknown-key"
            )
        for name in ("picture", "out"):
            if not isinstance(data.get(name), str):
                raise BadInput(f"{where} lacks {name!r}, a file name.", code="missing")
        self.picture = folder / data["picture"]
        self.out = folder / data["out"]
        self.data = data
        self.folder = folder
        self.where = where
        check_out(self.out, self.picture)
        if "points" in data:
            self.pairs = read_points(folder / str(data["points"]))
        else:
            found = data.get("pairs", [])
            if not isinstance(found, list):
                raise BadInput(
                    f"{where}: 'pairs' must be a list of [hx, hy, tx, ty].", code="not-a-pair"
                )
            self.pairs = [PointPair.from_json(p) for p in found]

    def namespace(self, args: argparse.Namespace) -> argparse.Namespace:
        """The entry as the options of `edit`."""
        values = {**_DEFAULTS, **{k: v for k, v in self.data.items() if k in _DEFAULTS}}
        mask = self.data.get("mask", "auto")
        if not isinstance(mask, str):
            raise BadInput(
                f"{self.where}: 'mask' must be a file name, 'auto' or 'whole'.", code="wrong-type"
            )
        for name, allowed in (("method", METHODS), ("preset", STRENGTHS),
                              ("lora_preset", LORA_PRESETS)):  # fmt: skip
            if values[name] is not None and values[name] not in allowed:
                raise BadInput(
                    f"{self.where}: {name} is {values[name]!r:.40}; choose one of: "
                    f"{', '.join(allowed)}.",
                    code="unknown-name",
                )
        return argparse.Namespace(
            **{**values, "model": values["model"] or args.model},
            **self._options(),
            picture=self.picture,
            mask=self.folder / mask if mask not in ("auto", "whole") else None,
            whole=mask == "whole",
            quiet=args.quiet,
            strict=args.strict,
            invert_mask=bool(self.data.get("invert_mask", False)),
            fresh=False,
        )

    def _options(self) -> dict[str, Any]:
        given = self.data.get("options", {})
        if not isinstance(given, Mapping):
            raise BadInput(
                f"{self.where}: 'options' must be an object such as {{'drag.steps': 9}}.",
                code="wrong-type",
            )
        known = {f"{prefix}.{name}" for prefix, cls, _ in CONFIGS for name in options_of(cls)}
        unknown = sorted(set(map(str, given)) - known)
        if unknown:
            raise BadInput(
                f"{self.where}: there is no option {unknown[0]!r:.60}.", code="unknown-key"
            )
        return dict(given)


def read_entries(path: Path) -> list[Entry]:
    """Read and check the whole file before anything is computed.

    Raises:
        BadInput: naming the entry and what is wrong.
    """
    text = read_file(path, _MOST_BYTES).decode("utf-8", errors="replace")
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            listed: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            listed = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{path.name} is not JSON ({exc}).", code="not-json") from exc
    defaults: Any = {}
    if isinstance(listed, Mapping):
        defaults, listed = listed.get("defaults", {}), listed.get("edits")
    if not isinstance(listed, list) or not listed or not isinstance(defaults, Mapping):
        raise BadInput(f"{path.name} must hold a list of edits, at least one.", code="empty")
    entries = []
    for number, data in enumerate(listed, 1):
        where = f"{path.name}, entry {number}"
        merged = {**defaults, **data} if isinstance(data, Mapping) else data
        entries.append(Entry(merged, where, path.parent))
    outs = [e.out for e in entries]
    twice = sorted(str(o) for o in outs if outs.count(o) > 1)
    if twice:
        raise BadInput(
            f"{path.name}: two entries write to {twice[0]!r}; name another file.", code="twice"
        )
    return entries


def _add_sweep_parser(subparsers: Any) -> None:
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
    add_dragging(parser)
    add_workers(parser)
    parser.set_defaults(run=run_sweep)


def run_sweep(args: argparse.Namespace) -> int:
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
        raise BadInput(
            f"{text!r:.60} is not of the form NAME=V,V,...; write such as drag.steps=20,40,80.",
            code="wrong-type",
        )
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


def add_parsers(subparsers: Any) -> None:
    """Add `batch` and `sweep`."""
    _add_batch_parser(subparsers)
    _add_sweep_parser(subparsers)
