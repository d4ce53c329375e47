"""`history` and `replay`: list, show, export, import, verify, bin; recompute an edit and compare."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.app import App
from workbench.cli.edit import check_out, summary, write_result
from workbench.cli.engine import EDIT, edit_id, opened_app, steps
from workbench.cli.parsers import add_model, add_run, add_strict
from workbench.cli.requests import told, write_file
from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.record import EditRecord, StepInfo
from workbench.imaging import decode


def _add_history_parser(subparsers: Any) -> None:
    """Add `history list|show|save|export|import|verify|bin|restore|empty-bin`."""
    parser = subparsers.add_parser("history", help="every edit: list, show, export, import, verify")
    parser.set_defaults(run=run_list, search="", limit=20, json=False, binned=False)
    inner = parser.add_subparsers(dest="action", metavar="ACTION")

    listing = inner.add_parser("list", help="edits, newest first")
    listing.add_argument("--search", default="", metavar="WORDS", help="in prompt, names, notes")
    listing.add_argument("--limit", type=int, default=20, help="at most so many; 0: all")
    listing.add_argument("--binned", action="store_true", help="what is in the bin")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.set_defaults(run=run_list)

    show = inner.add_parser("show", help="one edit with all its settings")
    show.add_argument("edit", metavar="EDIT", help=EDIT)
    show.add_argument("--json", action="store_true", help="machine-readable")
    show.set_defaults(run=run_show)

    save = inner.add_parser("save", help="write an edit's result and strip as PNGs")
    save.add_argument("edit", metavar="EDIT", help=EDIT)
    save.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    save.add_argument("--no-card", action="store_true", help="without the settings in the PNG")
    save.set_defaults(run=run_save)

    export = inner.add_parser("export", help="write edits as a zip that any browser can show")
    export.add_argument("out", type=Path, metavar="ZIP", help="file to write")
    export.add_argument(
        "edits", nargs="*", default=[], metavar="EDIT", help=f"{EDIT}; default: all"
    )
    export.add_argument("--with-lora", action="store_true", help="the LoRAs go along")
    export.set_defaults(run=run_export)

    bring = inner.add_parser("import", help="merge such a zip into this history")
    bring.add_argument("zip", type=Path, metavar="ZIP", help="what 'history export' wrote")
    bring.add_argument("--quiet", action="store_true", help="no progress")
    bring.set_defaults(run=run_import)

    verify = inner.add_parser("verify", help="check every hash")
    verify.add_argument("--json", action="store_true", help="machine-readable")
    verify.add_argument("--quiet", action="store_true", help="no progress")
    verify.set_defaults(run=run_verify)

    for name, text in (("bin", "put edits into the bin"), ("restore", "take edits out of it")):
        move = inner.add_parser(name, help=text)
        move.add_argument("edits", nargs="+", metavar="EDIT", help="ids of edits")
        move.set_defaults(run=run_bin if name == "bin" else run_restore)
    empty = inner.add_parser("empty-bin", help="remove what is in the bin, for good")
    empty.add_argument("--yes", action="store_true", help="really")
    empty.set_defaults(run=run_empty)


def run_list(args: argparse.Namespace) -> int:
    """List edits."""
    from workbench.storage.history.folder import disk_use

    if args.limit < 0:
        raise BadInput(
            f"--limit is {args.limit}; give 0 for all, or how many at most.",
            code="out-of-range",
            field="--limit",
        )
    with opened_app() as app:
        store = app.store
        found = store.search(args.search) if args.search else store.records(binned=args.binned)
        shown = found[: args.limit] if args.limit > 0 else found
        broken = store.unreadable()
        use = "" if args.json else disk_use(store)
    if args.json:
        print(json.dumps([r.to_json() for r in shown], indent=1))
        return 0
    for record in shown:
        print(_line(record))
    if len(found) > len(shown):
        print(f"... and {len(found) - len(shown)} more (--limit 0 shows all)")
    if not found:
        print("The history is empty." if not args.search else "Nothing was found.")
    for item in broken:
        print(f"cannot be read: {item.name}: {item.reason}")
    if found:
        print(f"The whole history: {use}.")
    return 0


def _line(record: EditRecord) -> str:
    request = record.request
    when = record.finished[:16].replace("T", " ")
    pairs = f"{len(request.pairs)} arrow" + ("s" if len(request.pairs) != 1 else "")
    prompt = " ".join(request.prompt.split())[:40]
    return (
        f"{record.id}  {when}  {record.status.value:<11} {request.drag.method:<13} "
        f"{request.image.name[:24]:<24} {pairs:<9} {prompt}"
    )


def run_show(args: argparse.Namespace) -> int:
    """Show one edit."""
    with opened_app() as app:
        record = app.store.record(edit_id(app, args.edit))
        notes = app.store.notes(record.id)
    if args.json:
        print(json.dumps(record.to_json(), indent=1))
        return 0
    print(_line(record))
    for name, value in (("title", notes.title), ("note", notes.note), ("error", record.error)):
        if value:
            print(f"{name}: {value}")
    for line in summary(record) if record.result else ():
        print(line)
    for number, pair in enumerate(record.request.pairs, 1):
        h, t = pair.handle, pair.target
        print(f"arrow {number}: ({h.x:g}, {h.y:g}) to ({t.x:g}, {t.y:g})")
    print(f"model: {record.request.model.name} {record.request.model.fingerprint}")
    for name, value in sorted(record.environment.items()):
        print(f"{name}: {value}")
    return 0


def run_save(args: argparse.Namespace) -> int:
    """Write an edit's pictures."""
    check_out(args.out, args.out)
    with opened_app() as app:
        record = app.store.record(edit_id(app, args.edit))
        if record.result is None:
            raise BadInput(
                f"The edit {record.id} has no result; it is {record.status.value}.",
                code="no-result",
            )
        written = write_result(app, record, args.out, with_card=not args.no_card)
    print(f"{written['result']} and {written['strip'].name}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write the zip."""
    from workbench.storage.archive.write import export_file

    if args.out.suffix.lower() != ".zip" or args.out.is_dir():
        raise BadInput(
            f"An export is a zip, but {args.out.name!r:.80} does not end in .zip.", code="bad-name"
        )
    if not args.out.parent.is_dir():
        raise BadInput(
            f"The folder {str(args.out.parent)!r:.200} does not exist; make it first.",
            code="no-folder",
        )
    with opened_app() as app:
        lora_of = (lambda record: _lora(app, record)) if args.with_lora else None
        done = export_file(
            app.store, args.out, [edit_id(app, e) for e in args.edits] or None, lora_of=lora_of
        )
    for name, reason in done.left_out:
        print(f"left out {name}: {reason}")
    print(f"{len(done.edits)} edits, {done.bytes / 1e6:.1f} MB: {args.out}")
    return 0


def _lora(app: App, record: EditRecord) -> bytes | None:
    """The LoRA of an edit, or None where it or its model is gone."""
    try:
        return app.lora_of(record.request)
    except WorkbenchError:
        return None


def run_import(args: argparse.Namespace) -> int:
    """Merge a zip."""
    from workbench.storage.archive.read import import_zip

    if not args.zip.is_file():
        raise BadInput(
            f"There is no file {str(args.zip)!r:.200}; check its name and folder.", code="no-file"
        )
    with opened_app() as app, steps(quiet=args.quiet) as (on_step, _):
        done = import_zip(
            app.store,
            args.zip,
            name=args.zip.name,
            on_step=lambda i, n: on_step(StepInfo(stage="check", step=i, total=n)),
        )
    print(f"{len(done.added)} edits were added, {len(done.known)} were known.")
    if done.differing:
        print(f"{len(done.differing)} are here with another content and stay as they are: "
              f"{', '.join(done.differing[:5])}")  # fmt: skip
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check every hash; 1 when something is wrong."""
    from workbench.storage.history.folder import verify

    with opened_app() as app, steps(quiet=args.quiet or args.json) as (on_step, _):
        found = verify(app.store, lambda i, n: on_step(StepInfo(stage="check", step=i, total=n)))
    if args.json:
        rows = [{"where": p.where, "what": p.what} for p in found.problems]
        print(json.dumps({"checked": found.checked, "problems": rows}, indent=1))
    else:
        for problem in found.problems:
            print(f"{problem.where}: {problem.what}")
        print(f"{found.checked} records and files were checked, {len(found.problems)} problems.")
    return 0 if found.ok else 1


def run_bin(args: argparse.Namespace) -> int:
    """Put edits into the bin."""
    with opened_app() as app:
        app.store.bin([edit_id(app, e) for e in args.edits])
    print(f"{len(args.edits)} edits are in the bin; 'history restore' takes them out.")
    return 0


def run_restore(args: argparse.Namespace) -> int:
    """Take edits out of the bin."""
    with opened_app() as app:
        app.store.restore(args.edits)
    print(f"{len(args.edits)} edits are back.")
    return 0


def run_empty(args: argparse.Namespace) -> int:
    """Remove what is in the bin."""
    from workbench.storage.history.folder import empty_bin

    if not args.yes:
        raise BadInput(
            "This removes the binned edits for good; add --yes if that is wanted.",
            code="not-confirmed",
        )
    with opened_app() as app:
        count, freed = empty_bin(app.store)
    print(f"{count} edits were removed, {freed / 1e6:.1f} MB freed.")
    return 0


def _add_replay_parser(subparsers: Any) -> None:
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
    """The findings in one sentence."""
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


def add_parsers(subparsers: Any) -> None:
    """Add `history` and `replay`."""
    _add_history_parser(subparsers)
    _add_replay_parser(subparsers)
