"""`models`: what there is, what is on this machine, fetching, adding one's own."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from workbench.cli.parsers import read_settings
from workbench.core.errors import BadInput, ModelError
from workbench.diffusion.registry import (
    ModelSpec,
    Registry,
    find_files,
    fingerprint,
    native_size,
)


def add_parsers(subparsers: Any) -> None:
    """Add `models list|show|download|add|remove`."""
    parser = subparsers.add_parser("models", help="list, show, download and add models")
    inner = parser.add_subparsers(dest="action", metavar="ACTION")
    parser.set_defaults(run=run_list, json=False)

    show_all = inner.add_parser("list", help="all registered models")
    show_all.add_argument("--json", action="store_true", help="machine-readable")
    show_all.set_defaults(run=run_list)

    show = inner.add_parser("show", help="one model: files, size, kind, fingerprint")
    show.add_argument("model", help="name, folder or .safetensors file")
    show.add_argument("--json", action="store_true", help="machine-readable")
    show.set_defaults(run=run_show)

    fetch = inner.add_parser(
        "download", help="fetch a hub model (shows size and licence, asks first)"
    )
    fetch.add_argument("model", help="registered name")
    fetch.add_argument("--yes", action="store_true", help="do not ask")
    fetch.add_argument("--full", action="store_true", help="float32 weights where there are both")
    fetch.add_argument(
        "--config-only", action="store_true", help="no weights: enough to read single files"
    )
    fetch.add_argument("--quiet", action="store_true", help="no progress")
    fetch.set_defaults(run=run_download)

    add = inner.add_parser("add", help="register a model of your own in models.toml")
    add.add_argument("name", help="letters, digits, '.', '_' and '-'")
    add.add_argument("source", help="diffusers folder, .safetensors file or hub id owner/name")
    for field, text in (
        ("title", "what lists show"),
        ("config", "single file: registered model or folder that lends its configuration"),
        ("vae", "another autoencoder: diffusers folder or .safetensors file"),
        ("prediction", "epsilon or v_prediction, where the files do not say"),
        ("revision", "hub: branch, tag or commit"),
    ):
        add.add_argument(f"--{field}", default="", help=text)
    add.add_argument(
        "--native-size", type=int, default=0, metavar="PX", help="px; 0: from the U-Net"
    )
    add.set_defaults(run=run_add)

    remove = inner.add_parser("remove", help="unregister a model of your own (its files stay)")
    remove.add_argument("name", help="as 'models list' shows it")
    remove.set_defaults(run=run_remove)


def run_list(args: argparse.Namespace) -> int:
    """List every model and whether it is here."""
    registry = Registry(read_settings().models_file)
    rows: list[dict[str, Any]] = []
    for spec in registry.specs():
        try:
            files = find_files(spec, registry)
            state, size = "here", files.bytes
        except ModelError as exc:
            state, size = str(exc), 0
        rows.append({"name": spec.name, "title": spec.shown, "source": spec.hub or spec.path,
                     "licence": spec.licence, "here": state == "here", "state": state,
                     "bytes": size, "native_size": spec.native_size})  # fmt: skip
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        here = f"{row['bytes'] / 1e6:,.0f} MB" if row["here"] else "not on this machine"
        print(f"{row['name']:<12} {row['title']:<44} {here}")
    print("A diffusers folder or a .safetensors file can be named by its path.")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Show one model."""
    settings = read_settings()
    registry = Registry(settings.models_file)
    spec = registry.resolve(args.model)
    files = find_files(spec, registry)
    facts: dict[str, Any] = {
        "name": spec.name,
        "title": spec.shown,
        "source": spec.hub or spec.path,
        "licence": spec.licence,
        "folder": str(files.root),
        "file": str(files.single) if files.single else None,
        "architecture": "Stable Diffusion XL" if files.is_sdxl else "Stable Diffusion 1.x or 2.x",
        "prediction": files.config("scheduler").get("prediction_type", "epsilon"),
        "zero_terminal_snr": files.zero_snr,
        "notices": list(files.notices),
        "native_size": native_size(files),
        "bytes": files.bytes,
        "variants": {k: v or "plain" for k, v in files.variants.items()},
        "fingerprint": fingerprint(files, settings.folder / "fingerprints.json"),
    }
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    for key, value in facts.items():
        if value:
            print(f"{key:<13} {value}")
    return 0


def run_download(args: argparse.Namespace) -> int:
    """Fetch a model after showing size and licence."""
    from workbench.cli.engine import steps
    from workbench.diffusion.registry.download import download, plan

    registry = Registry(read_settings().models_file)
    chosen = plan(registry.resolve(args.model), full=args.full, config_only=args.config_only)
    print(f"{chosen.spec.shown} ({chosen.spec.hub})")
    print(f"{len(chosen.files)} files, {chosen.bytes / 1e6:,.0f} MB; licence: {chosen.licence}")
    if not args.yes:
        if not sys.stdin.isatty():
            raise BadInput("Nobody can be asked here; add --yes to download.")
        if input("Download? [y/N] ").strip().lower() not in ("y", "yes"):
            return 0
    with steps(quiet=args.quiet) as (on_step, _progress):
        folder = download(chosen, on_step)
    print(f"Here it is: {folder}")
    return 0


def run_add(args: argparse.Namespace) -> int:
    """Register a model of one's own."""
    registry = Registry(read_settings().models_file)
    registry.check_name(args.name)  # before files are looked for
    spec = ModelSpec(
        name=args.name,
        title=args.title,
        config=args.config,
        vae=args.vae,
        prediction=args.prediction,
        revision=args.revision,
        native_size=args.native_size,
        **registry.source(args.source),
    )
    if spec.path:
        find_files(spec, registry)  # says what is wrong before it is registered
    registry.add(spec)
    print(f"{spec.name} is registered.")
    return 0


def run_remove(args: argparse.Namespace) -> int:
    """Unregister a model of one's own."""
    Registry(read_settings().models_file).remove(args.name)
    print(f"{args.name} is no longer registered.")
    return 0
