"""index.html of an export: the edits as a person reads them, in any browser, from a folder.

One file, no script, no request to anywhere: pictures lie beside it. The arrows are drawn over the
picture as SVG. page.html is the template; every text is escaped, and a policy in the page forbids
scripts and requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from workbench.core.config import DragConfig, InversionConfig, LoraConfig, method_label
from workbench.core.options import options_of
from workbench.core.record import EditRecord, StopReason

if TYPE_CHECKING:
    from workbench.storage.archive.write import Item

_PAGE = Environment(
    loader=PackageLoader("workbench.storage.archive", ""),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(items: Sequence[Item], left_out: Sequence[tuple[str, str]]) -> str:
    """The whole page; edits follow the edit that they continue."""
    order = list(_in_order(items))
    return _PAGE.get_template("page.html").render(
        count=f"{len(order)} edit" + ("s" if len(order) != 1 else ""),
        left_out=left_out,
        inside={i.record.id for i in items},
        edits=[_edit(item, depth) for item, depth in order],
    )


def _in_order(items: Sequence[Item]) -> Iterator[tuple[Item, int]]:
    """Depth first, oldest first; an edit whose parent is not here is a root."""
    here = {i.record.id: i for i in items}
    seen: set[str] = set()

    def visit(item: Item, depth: int) -> Iterator[tuple[Item, int]]:
        stack = [(item, depth)]
        while stack:
            now, level = stack.pop()
            if now.record.id in seen:
                continue
            seen.add(now.record.id)
            yield now, level
            children = [i for i in items if i.record.request.parent == now.record.id]
            stack.extend((c, level + 1) for c in reversed(children))

    for item in items:
        if item.record.request.parent not in here:
            yield from visit(item, 0)
    for item in items:  # rings of parents, which only a forged history has
        yield from visit(item, 0)


def _edit(item: Item, depth: int) -> dict[str, Any]:
    """The values that page.html shows of an edit."""
    record, request = item.record, item.record.request
    facts = (record.status.label, method_label(request.drag.method), _when(record))
    return {
        "id": record.id,
        "depth": depth,
        "title": item.notes.title or request.prompt[:60] or request.image.name or record.id,
        "favourite": item.notes.favourite,
        "facts": " · ".join(facts),
        "parent": request.parent,
        "note": item.notes.note,
        "error": record.error,
        "drawing": Markup(_drawing(item)),  # noqa: S704  numbers, and names that are escaped
        "image": request.image,
        "files": item.files,
        "outcome": list(_outcome(record)),
        "rows": _rows(item),
    }


def _drawing(item: Item) -> str:
    """The picture with its protected part darkened and its arrows, as SVG in image pixels."""
    request, name = item.record.request, item.record.id
    width, height = request.image.width, request.image.height
    picture = escape(item.files["picture"])
    whole = f'width="{width}" height="{height}"'
    unit = max(width, height) / 100
    out = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Picture with arrows">',
        f'<image href="{picture}" {whole}/>',
    ]
    if "mask" in item.files:
        mask = escape(item.files["mask"])
        out += [
            f'<mask id="m{name}"><image href="{mask}" {whole}/></mask>',
            f'<rect {whole} fill="#000" opacity=".5"/>',
            f'<image href="{picture}" {whole} mask="url(#m{name})"/>',
        ]
    for number, pair in enumerate(request.pairs, 1):
        x1, y1, x2, y2 = (v + 0.5 for v in pair.to_json())  # centre of a pixel: half a pixel in
        out.append(_arrow(x1, y1, x2, y2, unit))
        out.append(
            f'<circle cx="{x1:.2f}" cy="{y1:.2f}" r="{unit:.2f}" fill="#e22" stroke="#fff" '
            f'stroke-width="{unit / 4:.2f}"/><circle cx="{x2:.2f}" cy="{y2:.2f}" r="{unit:.2f}" '
            f'fill="#26e" stroke="#fff" stroke-width="{unit / 4:.2f}"/>'
        )
        if len(request.pairs) > 1:
            away = 3 * unit / max(pair.length, 1e-6)  # behind the handle, where no arrow is
            out.append(
                f'<text x="{x1 - (x2 - x1) * away:.2f}" y="{y1 - (y2 - y1) * away:.2f}" '
                f'fill="#fff" stroke="#000" stroke-width="{unit / 1.6:.2f}" paint-order="stroke" '
                f'text-anchor="middle" dominant-baseline="central" font-size="{4 * unit:.2f}" '
                f'font-family="sans-serif">{number}</text>'
            )
    return "".join([*out, "</svg>"])


def _arrow(x1: float, y1: float, x2: float, y2: float, unit: float) -> str:
    length = math.hypot(x2 - x1, y2 - y1)
    if length < 1e-6:
        return ""
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    tip, base = max(0.0, length - unit), max(0.0, length - 3.2 * unit)
    head = [
        (x1 + ux * tip, y1 + uy * tip),
        (x1 + ux * base - uy * unit, y1 + uy * base + ux * unit),
        (x1 + ux * base + uy * unit, y1 + uy * base - ux * unit),
    ]
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in head)
    style = f'stroke="#fff" stroke-width="{unit / 1.8:.2f}"'
    return (
        f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x1 + ux * base:.2f}" y2="{y1 + uy * base:.2f}" '
        f'{style}/><polygon points="{points}" fill="#fff"/>'
    )


def _outcome(record: EditRecord) -> Iterator[str]:
    result = record.result
    if result is None:
        return
    yield StopReason[result.stop].value if result.stop in StopReason.__members__ else result.stop
    if result.distances:
        left = ", ".join(f"{d:.1f}" for d in result.distances)
        yield f"Left to go: {left} px after {result.iterations} steps."
    yield from result.notices


def _rows(item: Item) -> list[tuple[str, Any]]:
    """The table of parameters."""
    record = item.record
    request = record.request
    rows: list[tuple[str, Any]] = [
        ("Prompt", request.prompt or "(none)"),
        ("Arrows", "; ".join(
            f"({p.handle.x:g}, {p.handle.y:g}) → ({p.target.x:g}, {p.target.y:g})"
            for p in request.pairs) or "(none)"),
        ("Model", f"{request.model.name} {request.model.revision}".strip()),
        ("Fingerprint", request.model.fingerprint or "(unknown)"),
        ("Seed", request.seed),
        ("Working size", f"{request.working_size} px" if request.working_size else "automatic"),
    ]  # fmt: skip
    for what in ("lora_file", "style"):
        lora = getattr(request, what)
        if lora is not None:
            rows.append((what.replace("_", " "), f"{lora.name} × {lora.weight:g}"))
    if item.lora:
        rows.append(("Trained LoRA", item.lora))
    for title, config in (
        ("LoRA", request.lora),
        ("Inversion", request.inversion),
        ("Drag", request.drag),
    ):
        rows += [(f"{title}: {n.replace('_', ' ')}", v) for n, v in _changed_first(config)]
    if record.result:
        rows += [(f"Seconds: {k}", f"{v:.2f}") for k, v in sorted(record.result.seconds.items())]
        if record.result.cached:
            rows.append(("From the cache", ", ".join(record.result.cached)))
    rows += [(f"With {k}", v) for k, v in sorted(record.environment.items())]
    return rows


def _changed_first(config: LoraConfig | InversionConfig | DragConfig) -> list[tuple[str, Any]]:
    """All options of a config, the ones that differ from the default first."""
    values = [
        (n, getattr(config, n), default)
        for n, (_k, default, _o) in options_of(type(config)).items()
    ]
    return [(n, v) for n, v, d in sorted(values, key=lambda row: row[1] == row[2])]


def _when(record: EditRecord) -> str:
    return (record.finished or record.started).replace("T", " ")[:19] or "time unknown"
