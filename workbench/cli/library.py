"""`models`, `loras`, `cache`: list, show, fetch, add, import and remove what is on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from workbench.cli.engine import opened_app
from workbench.cli.parsers import add_model, read_settings
from workbench.cli.requests import write_file
from workbench.core.errors import BadInput, ModelError, StoreError
from workbench.diffusion.registry import ModelSpec, Registry
from workbench.diffusion.registry.files import find_files, fingerprint, native_size
from workbench.editing.lora_library import label_of
from workbench.storage.cache import Cache


def _add_models_parser(subparsers: Any) -> None:
    """Add `models list|show|download|add|remove`."""
    parser = subparsers.add_parser("models", help="list, show, download and add models")
    inner = parser.add_subparsers(dest="action", metavar="ACTION")
    parser.set_defaults(run=run_models, json=False)

    show_all = inner.add_parser("list", help="all registered models")
    show_all.add_argument("--json", action="store_true", help="machine-readable")
    show_all.set_defaults(run=run_models)

    show = inner.add_parser("show", help="one model: files, size, kind, fingerprint")
    show.add_argument("model", help="name, folder or .safetensors file")
    show.add_argument("--json", action="store_true", help="machine-readable")
    show.set_defaults(run=run_model)

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
    remove.set_defaults(run=run_forget_model)


def run_models(args: argparse.Namespace) -> int:
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


def run_model(args: argparse.Namespace) -> int:
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
            raise BadInput("Nobody can be asked here; add --yes to download.", code="not-confirmed")
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


def run_forget_model(args: argparse.Namespace) -> int:
    """Unregister a model of one's own."""
    Registry(read_settings().models_file).remove(args.name)
    print(f"{args.name} is no longer registered.")
    return 0


_WHICH = "a name of the library, a .safetensors file, or PEFT's folder"


def _add_loras_parser(subparsers: Any) -> None:
    """Add `loras list|show|import|export|remove`."""
    parser = subparsers.add_parser("loras", help="LoRA files: list, show, import, export, remove")
    parser.set_defaults(run=run_loras, json=False)
    inner = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = inner.add_parser("list", help="the library")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.set_defaults(run=run_loras)
    show = inner.add_parser("show", help="where a LoRA comes from")
    show.add_argument("lora", metavar="NAME|FILE", help=_WHICH)
    show.add_argument("--json", action="store_true", help="machine-readable")
    show.set_defaults(run=run_lora)
    bring = inner.add_parser(
        "import",
        help="take a file into the library (diffusers, PEFT, kohya, DragDiffusion, GoodDrag)",
    )
    bring.add_argument(
        "file", type=Path, help="a .safetensors file, or PEFT's folder with adapter_config.json"
    )
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
    remove.set_defaults(run=run_remove_lora)


def run_loras(args: argparse.Namespace) -> int:
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


def run_lora(args: argparse.Namespace) -> int:
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
        name = args.name or label_of(args.file)
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
        raise BadInput(
            f"A LoRA is a .safetensors file; {args.out.name!r:.80} is not.", code="bad-name"
        )
    with opened_app(args) as app:
        raw = app.loras.get(args.lora)
        file = read(raw, args.lora)
        write_file(args.out, write(file.weights, file.card, args.layout))
    print(f"{args.out}: {len(file.weights)} tensors, rank {file.rank}, {args.layout} naming")
    return 0


def run_remove_lora(args: argparse.Namespace) -> int:
    """Remove from the library."""
    with opened_app() as app:
        app.loras.remove(args.name)
    print(f"{args.name} was removed from the library.")
    return 0


KINDS = ("lora", "inversion", "reference", "preview", "generation", "state")


def _add_cache_parser(subparsers: Any) -> None:
    """Add `cache list|size|clear`."""
    parser = subparsers.add_parser("cache", help="trained LoRAs and latents: list, size, clear")
    parser.set_defaults(run=run_cache_size, json=False)
    inner = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = inner.add_parser("list", help="every entry, last used first")
    listing.add_argument("--kind", help="only this kind")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.set_defaults(run=run_cache)
    size = inner.add_parser("size", help="bytes per kind")
    size.add_argument("--json", action="store_true", help="machine-readable")
    size.set_defaults(run=run_cache_size)
    clear = inner.add_parser("clear", help="remove entries; the history is never touched")
    clear.add_argument("--kind", help="only this kind")
    clear.add_argument("--key", action="append", help="only this entry; may be repeated")
    clear.add_argument("--older-than", type=float, metavar="DAYS", help="not used for so long")
    clear.set_defaults(run=run_clear_cache)


def _check_kind(kind: str | None) -> None:
    if kind is not None and kind not in KINDS:
        raise BadInput(
            f"There is no kind {kind!r:.40} in the cache; there are: {', '.join(KINDS)}.",
            code="unknown-name",
        )


def _open() -> Cache:
    settings = read_settings()
    cache = Cache(settings.derived, settings.cache_bytes)
    if cache.problem:
        text = cache.problem.rstrip(".")
        raise StoreError(f"{text} (it is in {settings.folder}; WORKBENCH_CACHE names another).")
    return cache


def run_cache(args: argparse.Namespace) -> int:
    """List the entries."""
    _check_kind(args.kind)
    found = [e for e in _open().entries() if args.kind in (None, e.kind)]
    if args.json:
        print(json.dumps([dataclasses.asdict(e) for e in found], indent=1))
        return 0
    for entry in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{entry.key}  {entry.kind:<10} {entry.bytes / 1e6:9.2f} MB  {used}  {entry.label}")
    if not found:
        print("The cache is empty." if args.kind is None else f"There is no {args.kind} in it.")
    return 0


def run_cache_size(args: argparse.Namespace) -> int:
    """Bytes per kind and in all."""
    cache = _open()
    sizes: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for entry in cache.entries():
        sizes[entry.kind] += entry.bytes
        counts[entry.kind] += 1
    total = sum(sizes.values())
    if args.json:
        print(json.dumps({"folder": str(cache.folder), "limit": cache.limit_bytes, "bytes": total,
                          "kinds": {k: {"bytes": sizes[k], "entries": counts[k]} for k in sizes}},
                         indent=1))  # fmt: skip
        return 0
    for kind in sorted(sizes, key=lambda k: -sizes[k]):
        print(f"{kind:<12} {counts[kind]:>5} entries {sizes[kind] / 1e6:10.2f} MB")
    print(f"{'all':<12} {sum(counts.values()):>5} entries {total / 1e6:10.2f} MB "
          f"of {cache.limit_bytes / 1e6:,.0f} MB in {cache.folder}")  # fmt: skip
    return 0


def run_clear_cache(args: argparse.Namespace) -> int:
    """Remove entries."""
    _check_kind(args.kind)
    cache = _open()
    keys = list(args.key) if args.key else None
    if args.older_than is not None:
        if not args.older_than >= 0:
            raise BadInput(
                f"--older-than is {args.older_than:g}; it must be 0 days or more.",
                code="out-of-range",
                field="--older-than",
            )
        limit = time.time() - args.older_than * 86400
        old = {e.key for e in cache.entries() if e.used < limit}
        keys = sorted(old if keys is None else old & set(keys))
    print(f"{cache.clear(kind=args.kind, keys=keys)} entries were removed.")
    return 0


def add_parsers(subparsers: Any) -> None:
    """Add `models`, `loras` and `cache`."""
    _add_models_parser(subparsers)
    _add_loras_parser(subparsers)
    _add_cache_parser(subparsers)
