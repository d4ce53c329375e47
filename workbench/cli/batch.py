"""`batch`: many edits from one file, shared by the workers; what is done is skipped the next time."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.app import App
from workbench.cli.edit import (
    check_out,
    read_request,
    summary,
    write_result,
)
from workbench.cli.engine import follow, opened_app, steps
from workbench.cli.parsers import (
    CONFIGS,
    add_model,
    add_run,
    add_strict,
    add_workers,
    read_file,
    read_points,
)
from workbench.core.config import LORA_PRESETS, METHODS, STRENGTHS
from workbench.core.errors import BadInput, Cancelled, WorkbenchError
from workbench.core.options import options_of
from workbench.core.record import JobState, OnStep
from workbench.core.request import PointPair

_MOST_BYTES = 64 * 2**20
_DEFAULTS: dict[str, Any] = {
    "prompt": "", "model": None, "method": None, "preset": "normal", "lora_preset": None, "seed": 0,
    "working_size": 0, "crop": True, "lora": None, "lora_weight": 1.0, "style": None,
    "style_weight": 1.0,
}  # fmt: skip
_OWN = ("picture", "out", "pairs", "points", "mask", "invert_mask", "options")


def add_parsers(subparsers: Any) -> None:
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
            raise BadInput(f"{where} is no JSON object.")
        unknown = sorted(set(data) - set(_OWN) - set(_DEFAULTS))
        if unknown:
            known = ", ".join((*_OWN, *_DEFAULTS))
            raise BadInput(f"{where} does not know {unknown[0]!r}; it has: {known}.")
        for name in ("picture", "out"):
            if not isinstance(data.get(name), str):
                raise BadInput(f"{where} lacks {name!r}, a file name.")
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
                raise BadInput(f"{where}: 'pairs' must be a list of [hx, hy, tx, ty].")
            self.pairs = [PointPair.from_json(p) for p in found]

    def namespace(self, args: argparse.Namespace) -> argparse.Namespace:
        """The entry as the options of `edit`."""
        values = {**_DEFAULTS, **{k: v for k, v in self.data.items() if k in _DEFAULTS}}
        mask = self.data.get("mask", "auto")
        if not isinstance(mask, str):
            raise BadInput(f"{self.where}: 'mask' must be a file name, 'auto' or 'whole'.")
        for name, allowed in (("method", METHODS), ("preset", STRENGTHS),
                              ("lora_preset", LORA_PRESETS)):  # fmt: skip
            if values[name] is not None and values[name] not in allowed:
                raise BadInput(
                    f"{self.where}: {name} is {values[name]!r:.40}; choose one of: "
                    f"{', '.join(allowed)}."
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
                f"{self.where}: 'options' must be an object such as {{'drag.steps': 9}}."
            )
        known = {f"{prefix}.{name}" for prefix, cls, _ in CONFIGS for name in options_of(cls)}
        unknown = sorted(set(map(str, given)) - known)
        if unknown:
            raise BadInput(f"{self.where}: there is no option {unknown[0]!r:.60}.")
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
        raise BadInput(f"{path.name} is no JSON ({exc}).") from exc
    defaults: Any = {}
    if isinstance(listed, Mapping):
        defaults, listed = listed.get("defaults", {}), listed.get("edits")
    if not isinstance(listed, list) or not listed or not isinstance(defaults, Mapping):
        raise BadInput(f"{path.name} must hold a list of edits, at least one.")
    entries = []
    for number, data in enumerate(listed, 1):
        where = f"{path.name}, entry {number}"
        merged = {**defaults, **data} if isinstance(data, Mapping) else data
        entries.append(Entry(merged, where, path.parent))
    outs = [e.out for e in entries]
    twice = sorted(str(o) for o in outs if outs.count(o) > 1)
    if twice:
        raise BadInput(f"{path.name}: two entries write to {twice[0]!r}; name another file.")
    return entries
