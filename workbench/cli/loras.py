"""`loras`: the library of LoRA files: list, show, import, export, convert, remove."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workbench.cli.engine import opened_app
from workbench.cli.parsers import add_model
from workbench.cli.requests import write_file
from workbench.core.errors import BadInput

_WHICH = "a name of the library, or a .safetensors file"


def add_parsers(subparsers: Any) -> None:
    """Add `loras list|show|import|export|remove`."""
    parser = subparsers.add_parser("loras", help="LoRA files: list, show, import, export, remove")
    parser.set_defaults(run=run_list, json=False)
    inner = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = inner.add_parser("list", help="the library")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.set_defaults(run=run_list)
    show = inner.add_parser("show", help="where a LoRA comes from")
    show.add_argument("lora", metavar="NAME|FILE", help=_WHICH)
    show.add_argument("--json", action="store_true", help="machine-readable")
    show.set_defaults(run=run_show)
    bring = inner.add_parser(
        "import",
        help="take a file into the library (diffusers, PEFT, kohya, DragDiffusion, GoodDrag)",
    )
    bring.add_argument("file", type=Path, help="a .safetensors file")
    bring.add_argument("--name", default="", help="name in the library [default: the file's]")
    bring.add_argument("--replace", action="store_true", help="replace one of that name")
    bring.set_defaults(run=run_import)
    export = inner.add_parser("export", help="write a LoRA for other programs")
    export.add_argument("lora", metavar="NAME|FILE", help=_WHICH)
    export.add_argument("-o", "--out", type=Path, required=True, metavar="FILE",
                        help=".safetensors file to write")  # fmt: skip
    export.add_argument(
        "--layout",
        choices=("diffusers", "kohya"),
        default="diffusers",
        help="whose names the tensors get [default diffusers]",
    )
    add_model(export)
    export.set_defaults(run=run_export)
    remove = inner.add_parser("remove", help="remove from the library (edits keep their copy)")
    remove.add_argument("name", help="as 'loras list' shows it")
    remove.set_defaults(run=run_remove)


def run_list(args: argparse.Namespace) -> int:
    """List the library."""
    with opened_app() as app:
        found = app.loras.entries()
    if args.json:
        print(json.dumps([{"name": e.name, "file": str(e.path), "bytes": e.bytes} for e in found],
                         indent=1))  # fmt: skip
        return 0
    for entry in found:
        print(f"{entry.name:<32} {entry.bytes / 1e6:8.2f} MB")
    if not found:
        print("The library is empty; 'loras import FILE' or 'train --name NAME' adds to it.")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Show where a LoRA comes from."""
    from workbench.diffusion.lora_files import read

    with opened_app() as app:
        file = read(app.loras.get(args.lora), args.lora)
    facts: dict[str, Any] = json.loads(file.card.to_text())
    facts |= {"layout": file.layout, "tensors": len(file.weights)}
    facts["notices"] = [str(n) for n in file.notices]
    facts["rank"] = file.rank or facts["rank"]
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        if value not in ("", 0, {}, None, []):
            print(f"{name:<11} {value}")
    return 0


def run_import(args: argparse.Namespace) -> int:
    """Take a file into the library."""
    from workbench.diffusion.lora_files import read

    with opened_app() as app:
        raw = app.loras.get(str(args.file))
        file = read(raw, args.file.name)
        name = args.name or args.file.stem
        app.loras.put(name, raw, replace=args.replace)
    kind = f", for {file.architecture}" if file.architecture else ""
    print(f"{name} is in the library: {file.layout}, rank {file.rank or 'none'}{kind}.")
    for notice in file.notices:
        print(f"{name}: {notice}.")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write a LoRA for other programs."""
    from workbench.diffusion.lora_files import read, write

    if args.out.suffix.lower() != ".safetensors":
        raise BadInput(f"A LoRA is a .safetensors file; {args.out.name!r:.80} is not.")
    with opened_app(args) as app:
        raw = app.loras.get(args.lora)
        file = read(raw, args.lora)
        write_file(args.out, write(file.weights, file.card, args.layout))
    print(f"{args.out}: {len(file.weights)} tensors, rank {file.rank}, {args.layout} naming")
    return 0


def run_remove(args: argparse.Namespace) -> int:
    """Remove from the library."""
    with opened_app() as app:
        app.loras.remove(args.name)
    print(f"{args.name} was removed from the library.")
    return 0
