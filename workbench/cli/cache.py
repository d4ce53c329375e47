"""`cache`: what can be computed again: list, size, clear."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import defaultdict
from typing import Any

from workbench.cli.parsers import read_settings
from workbench.core.errors import BadInput, StoreError
from workbench.storage.cache import Cache

KINDS = ("lora", "inversion", "reference", "preview", "generation", "state")


def add_parsers(subparsers: Any) -> None:
    """Add `cache list|size|clear`."""
    parser = subparsers.add_parser("cache", help="trained LoRAs and latents: list, size, clear")
    parser.set_defaults(run=run_size, json=False)
    inner = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = inner.add_parser("list", help="every entry, last used first")
    listing.add_argument("--kind", help="only this kind")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.set_defaults(run=run_list)
    size = inner.add_parser("size", help="bytes per kind")
    size.add_argument("--json", action="store_true", help="machine-readable")
    size.set_defaults(run=run_size)
    clear = inner.add_parser("clear", help="remove entries; the history is never touched")
    clear.add_argument("--kind", help="only this kind")
    clear.add_argument("--key", action="append", help="only this entry; may be repeated")
    clear.add_argument("--older-than", type=float, metavar="DAYS", help="not used for so long")
    clear.set_defaults(run=run_clear)


def _check_kind(kind: str | None) -> None:
    if kind is not None and kind not in KINDS:
        raise BadInput(
            f"There is no kind {kind!r:.40} in the cache; there are: {', '.join(KINDS)}."
        )


def _open() -> Cache:
    settings = read_settings()
    cache = Cache(settings.derived, settings.cache_bytes)
    if cache.problem:
        text = cache.problem.rstrip(".")
        raise StoreError(f"{text} (it is in {settings.folder}; WORKBENCH_CACHE names another).")
    return cache


def run_list(args: argparse.Namespace) -> int:
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


def run_size(args: argparse.Namespace) -> int:
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


def run_clear(args: argparse.Namespace) -> int:
    """Remove entries."""
    _check_kind(args.kind)
    cache = _open()
    keys = list(args.key) if args.key else None
    if args.older_than is not None:
        if not args.older_than >= 0:
            raise BadInput(f"--older-than is {args.older_than:g}; it must be 0 days or more.")
        limit = time.time() - args.older_than * 86400
        old = {e.key for e in cache.entries() if e.used < limit}
        keys = sorted(old if keys is None else old & set(keys))
    print(f"{cache.clear(kind=args.kind, keys=keys)} entries were removed.")
    return 0
