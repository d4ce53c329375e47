"""Tables of `bench dragbench`: every mean distance under its definition's name, never without fidelity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.judge import finite
from benchmarks.metrics import DAI_RADII
from benchmarks.report import Figure, methods_of
from benchmarks.rows import Record, rows_of
from benchmarks.stats import mean_interval

POOLED = ("global", "mask", "global_e1")  # published as the mean over all points of all pictures
UNITS = {"global": "px", "mask": "px", "global_e1": "px", "discs": "share of the sides"}
KEPT = (
    Figure("ssim", "SSIM to the source", 3, lower_is_better=False),
    Figure("image_fidelity", "IF = 1 - LPIPS", 3, lower_is_better=False),
    Figure("outside_max", "outside, max", 1),
    *(Figure(f"dai_{r}", f"DAI, {r} px", 4) for r in DAI_RADII),
    Figure("wall", "wall s", 1),
)


def tables(records: Sequence[Record]) -> str:
    """Everything as Markdown."""
    rows = [r for r in rows_of(records).values() if not r.get("error")]
    setups = [r for r in records if r["kind"] == "setup"]
    if not rows or not setups:
        return "There is nothing to show."
    prefix = "md" if any("md_global" in r for r in rows) else "own"
    parts = [_head(setups, rows), "", *distances(rows, prefix), "", *kept(rows)]
    categories = sorted({str(r["category"]) for r in rows} - {""})
    if len(categories) > 1:
        parts += ["", f"{prefix}_global, px, by category:", "", *grouped(rows, prefix, categories)]
    parts += ["", *refused(records)]
    return "\n".join(parts).rstrip()


def cell(rows: Iterable[Record], prefix: str, name: str) -> str:
    """A distance with its 95 % interval: of all points, or, for the discs, of pictures."""
    key = f"{prefix}_{name}"
    if name in POOLED:
        values = [finite(v) for r in rows for v in r.get(f"{key}_each", ())]
    else:
        values = [finite(r.get(key)) for r in rows]
    return Figure(key, "", 3 if name == "discs" else 1).cell(mean_interval(values))


def distances(rows: Sequence[Record], prefix: str) -> list[str]:
    """Methods x definitions of the mean distance."""
    heads = [f"{prefix}_{name} ({unit})" for name, unit in UNITS.items()]
    out = ["| method | drags | points | " + " | ".join(heads) + " |"]
    out.append("|---" * (len(heads) + 3) + "|")
    for method in methods_of(rows):
        mine = [r for r in rows if r["method"] == method]
        cells = [cell(mine, prefix, name) for name in UNITS]
        points = sum(int(r["pairs"]) for r in mine)
        out.append(f"| {method} | {len(mine)} | {points} | " + " | ".join(cells) + " |")
    return out


def kept(rows: Sequence[Record]) -> list[str]:
    """Methods x what was kept of the picture, and the dragging accuracy index."""
    figures = [f for f in KEPT if any(finite(r.get(f.name)) == finite(r.get(f.name)) for r in rows)]
    out = ["| method | " + " | ".join(f.title for f in figures) + " |"]
    out.append("|---" * (len(figures) + 1) + "|")
    for method in methods_of(rows):
        mine = [r for r in rows if r["method"] == method]
        cells = [f.cell(mean_interval([finite(r.get(f.name)) for r in mine])) for f in figures]
        out.append(f"| {method} | " + " | ".join(cells) + " |")
    return out


def grouped(rows: Sequence[Record], prefix: str, categories: Sequence[str]) -> list[str]:
    """Categories x methods."""
    methods = methods_of(rows)
    out = ["| category | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for category in categories:
        mine = [r for r in rows if r["category"] == category]
        cells = [cell([r for r in mine if r["method"] == m], prefix, "global") for m in methods]
        out.append(f"| {category} | " + " | ".join(cells) + " |")
    return out


def refused(records: Sequence[Record]) -> list[str]:
    """Samples that could not be read, and methods that failed."""
    out = {str(r["sample"]): f"{r['sample']} was refused: {r['why']}" for r in records
           if r["kind"] == "refused"}  # fmt: skip
    failed = [
        f"{r['sample']}, {r['method']}, failed: {r['error']}"
        for r in rows_of(records).values()
        if r.get("error")
    ]
    return [*out.values(), *failed]


def _head(setups: Sequence[Record], rows: Sequence[Record]) -> str:
    s = setups[-1]
    env = s["environment"]
    gits = sorted({str(x["git"])[:10] + ("+" if x.get("changed") else "") for x in setups})
    notes = " ".join(s["notes"])
    return (
        f"{len({r['drag'] for r in rows})} drags ({', '.join(s['layouts'])}), model "
        f"{s['model_name']} ({s['model'][:16]}), {s['lora']['steps']} LoRA steps, torch "
        f"{env['torch']}, {env['device']} {env['dtype']}, {s['machine']}; code {', '.join(gits)}. "
        f"{notes}"
    )
