"""index.html of an export: the edits as a person reads them, in any browser, from a folder.

One file, no script, no request to anywhere: pictures lie beside it. The arrows are drawn over the
picture as SVG. Every text is escaped; a policy in the page forbids whatever got past that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

from workbench.core.config import DragConfig, InversionConfig, LoraConfig, method_label
from workbench.core.options import options_of
from workbench.core.record import EditRecord, Stop

if TYPE_CHECKING:
    from workbench.storage.archive.write import Item

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'">
<title>$count - drag workbench</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --faint: #666; }
@media (prefers-color-scheme: dark) { :root { --faint: #a0a0a0; --bad: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 72rem; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }
header { margin-bottom: 1.5rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
article { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem; margin: 0 0 1.2rem; }
.child { margin-left: 2rem; }
.meta, figcaption, th { color: var(--faint); font-size: .87rem; font-weight: normal; }
.bad { color: var(--bad, #b3261e); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0; }
figure { margin: 0; flex: 1 1 18rem; max-width: 32rem; }
figure svg, figure img { display: block; width: 100%; height: auto; border-radius: .3rem;
 background: repeating-conic-gradient(#8882 0 25%, transparent 0 50%) 0 0/16px 16px; }
table { border-collapse: collapse; font-size: .9rem; }
td, th { text-align: left; vertical-align: top; padding: .15rem 1.2rem .15rem 0; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; }
blockquote { margin: .5rem 0; padding: .2rem .9rem; border-left: 3px solid var(--line);
 white-space: pre-wrap; }
nav ul { padding-left: 1.1rem; }
:target { border-color: #48f; }
</style>
</head>
<body>
<header>
<h1>$count</h1>
<p class="meta">Exported from the drag workbench. Red: handle, blue: target of each arrow; the
darkened part was protected. To go on working with these edits, import the zip
(<code>python -m workbench history import</code>, or the History page).</p>
$left_out
<nav><ul>
$toc
</ul></nav>
</header>
<main>
$edits
</main>
</body>
</html>
""")


def page(items: Sequence[Item], left_out: Sequence[tuple[str, str]]) -> str:
    """The whole page; edits follow the edit that they continue."""
    order = list(_in_order(items))
    count = f"{len(order)} edit" + ("s" if len(order) != 1 else "")
    missing = "".join(
        f'<p class="bad">The edit {escape(name)} is not included. {escape(why)}</p>'
        for name, why in left_out
    )
    toc = "\n".join(
        f'<li><a href="#{escape(i.record.id)}">{_title(i)}</a> '
        f'<span class="meta">{_facts(i.record)}</span></li>'
        for i, _depth in order
    )
    edits = "\n".join(_edit(item, depth, items) for item, depth in order)
    return _PAGE.substitute(count=count, left_out=missing, toc=toc, edits=edits)


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


def _title(item: Item) -> str:
    request = item.record.request
    return escape(item.notes.title or request.prompt[:60] or request.image.name or item.record.id)


def _edit(item: Item, depth: int, items: Sequence[Item]) -> str:
    record = item.record
    star = " ★" if item.notes.favourite else ""
    parts = [
        f'<article id="{escape(record.id)}"{" class=child" if depth else ""}>',
        f"<h2>{_title(item)}{star}</h2>",
        f'<p class="meta">{_facts(record)} · {escape(record.id)}</p>',
    ]
    parent = record.request.parent
    if parent:
        inside = any(i.record.id == parent for i in items)
        link = f'<a href="#{escape(parent)}">{escape(parent)}</a>' if inside else escape(parent)
        parts.append(f'<p class="meta">Continues {link}.</p>')
    if item.notes.note:
        parts.append(f"<blockquote>{escape(item.notes.note)}</blockquote>")
    if record.error:
        parts.append(f'<p class="bad">{escape(record.error)}</p>')
    parts.append(_pictures(item))
    parts.extend(f"<p>{escape(text)}</p>" for text in _outcome(record))
    parts.append(_tables(item))
    parts.append("</article>")
    return "\n".join(parts)


def _pictures(item: Item) -> str:
    request, files = item.record.request, item.files
    figures = [
        f"<figure>{_drawing(item)}<figcaption>{escape(request.image.name)}, "
        f"{request.image.width} × {request.image.height} px</figcaption></figure>"
    ]
    if "result" in files:
        figures.append(
            f'<figure><a href="{escape(files["result"])}"><img src="{escape(files["result"])}" '
            'alt="Result" loading="lazy"></a><figcaption>Result</figcaption></figure>'
        )
    return f'<div class="pictures">{"".join(figures)}</div>'


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
    yield Stop[result.stop].value if result.stop in Stop.__members__ else result.stop
    if result.distances:
        left = ", ".join(f"{d:.1f}" for d in result.distances)
        yield f"Left to go: {left} px after {result.iterations} steps."
    yield from result.notices


def _tables(item: Item) -> str:
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
    body = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in rows)
    links = " · ".join(
        f'<a href="{escape(name)}">{escape(what)}</a>' for what, name in item.files.items()
    )
    return (
        f"<details><summary>Parameters</summary><table>{body}</table></details>"
        f'<p class="meta">Files: {links} · '
        f'<a href="edits/{record.id}/arrows.json">arrows</a> · '
        f'<a href="edits/{record.id}/parameters.json">parameters</a></p>'
    )


def _changed_first(config: LoraConfig | InversionConfig | DragConfig) -> list[tuple[str, Any]]:
    """All options of a config, the ones that differ from the default first."""
    values = [
        (n, getattr(config, n), default)
        for n, (_k, default, _o) in options_of(type(config)).items()
    ]
    return [(n, v) for n, v, d in sorted(values, key=lambda row: row[1] == row[2])]


def _facts(record: EditRecord) -> str:
    method = escape(method_label(record.request.drag.method))
    return f"{record.status.label} · {method} · {escape(_when(record))}"


def _when(record: EditRecord) -> str:
    return (record.finished or record.started).replace("T", " ")[:19] or "time unknown"
