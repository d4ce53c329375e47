"""The export for people (index.html) and for programs (the metadata of each result's PNG).

One file, no script, no request to anywhere: pictures lie beside it. The arrows are drawn over the
picture as SVG. page.html is the template; every text is escaped, and a policy in the page forbids
scripts and requests.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from numpy.typing import NDArray

from workbench import __version__
from workbench.core.config import DragConfig, InversionConfig, LoraConfig, method_label
from workbench.core.errors import BadInput, StoreError
from workbench.core.options import options_of
from workbench.core.record import EditRecord, StopReason
from workbench.core.request import EditRequest
from workbench.imaging import decode
from workbench.imaging.masks import connected as spread
from workbench.storage.history import Store

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


FORMAT = 1
_FAINT, _SOLID = 48, 88  # levels of ink (255 - colour): up to here a haze on white, then a thing
_MOST_MASK = 160 * 1024  # bytes of PNG; the chunk as a whole has a limit too


@dataclass(frozen=True, slots=True)
class Restored:
    """An edit read from a PNG: a request that fits into this history, and what could not be."""

    request: EditRequest
    edit: str  # id of the edit that made the picture, where it was made
    notices: tuple[str, ...] = ()


def card(record: EditRecord, store: Store) -> dict[str, Any]:
    """The JSON that goes into the PNG of an edit's result."""
    data = card_of_request(record.request, record.id)
    if record.request.mask is not None:
        raw = decode.encode_mask_png(store.mask(record.request.mask.id))
        if len(raw) <= _MOST_MASK:
            data["mask"] = base64.b64encode(raw).decode("ascii")
    return data


def card_of_request(request: EditRequest, edit: str = "") -> dict[str, Any]:
    """The JSON of a request without its mask; `edit` is the id of what it made, "" for nothing yet."""
    return {
        "format": FORMAT,
        "workbench": __version__,
        "edit": edit,
        "request": request.to_json(),
    }


def result_png(record: EditRecord, store: Store, *, with_card: bool = True) -> bytes:
    """The result of an edit as a PNG to take away: alpha of its picture, and the card if wanted.

    Raises:
        BadInput: when the edit has no result.
        StoreError: when its picture is missing or was changed.
    """
    if record.result is None:
        raise BadInput(f"The edit {record.id} has no result; it is {record.status.value}.")
    rgb, alpha = store.image(record.result.image), alpha_of(record.request, store)
    if alpha is not None:
        alpha = followed(alpha, store.image(record.request.image.id), rgb)
    return decode.encode_png(
        rgb,
        alpha=alpha,
        edit=card(record, store) if with_card else None,
    )


def followed(
    alpha: NDArray[np.uint8], before: NDArray[np.uint8], after: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The alpha channel after an edit: it goes along with what was moved.

    The model sees and gives back pictures on white, so what is opaque has to be told from what
    changed: clearly more ink than the alpha there allows is something that was moved onto it, and is
    opaque; white where ink was, connected to what is transparent, is the place that it left. White
    inside of a thing (the white of an eye) stays what it was.

    Args:
        alpha: of the picture before, [H,W], 0 to 255.
        before: the picture on white, [H,W,3].
        after: the edited picture on white, [H,W,3].

    Returns:
        [H,W]; equal to `alpha` where nothing changed.
    """
    had, has = (255 - rgb.min(axis=2).astype(np.int16) for rgb in (before, after))
    changed = (before != after).any(axis=2)
    over = np.where(changed, has - alpha, 0)
    share = np.clip((over - _FAINT) / (_SOLID - _FAINT), 0, 1)  # soft, for soft edges
    out = np.maximum(alpha, np.rint(255 * share).astype(np.uint8))
    blank = (alpha == 0) & (has <= _FAINT)
    left = changed & (alpha > 0) & (had > _FAINT) & (has <= _FAINT)
    out[left & spread(blank, blank | left)] = 0
    return out


def alpha_of(request: EditRequest, store: Store) -> NDArray[np.uint8] | None:
    """The alpha channel [H,W] of a request's picture, or None.

    Raises:
        StoreError: when it is missing or does not fit the picture.
    """
    if request.image.alpha is None:
        return None
    from workbench.storage.history.blobs import decode_png

    alpha = decode_png(store.blob(request.image.alpha), "L")
    if alpha.shape != (request.image.height, request.image.width):
        raise StoreError("The picture's alpha channel has another size than the picture.")
    return alpha


def restore(data: Mapping[str, Any], rgb: NDArray[np.uint8], store: Store) -> Restored:
    """Read a card; `rgb` [H,W,3] is the picture that carried it.

    Where the source picture is not in this history, the carried picture takes its place.

    Raises:
        BadInput: when the card is damaged or of a newer format.
    """
    if type(data.get("format")) is not int or data["format"] != FORMAT:
        raise BadInput(
            f"The picture's edit settings have format {data.get('format')!r:.20}, and this version "
            f"reads {FORMAT}; the picture itself is fine."
        )
    request = EditRequest.from_json(data.get("request"), strict=False)
    notices = []
    height, width = rgb.shape[:2]
    if not store.has(request.image.id):
        if (request.image.width, request.image.height) != (width, height):
            raise BadInput("The picture's edit settings belong to a picture of another size.")
        asset = store.put_image(rgb, request.image.name)
        request = dataclasses.replace(request, image=asset, parent=None)
        notices.append("The original is not in this history: the arrows stand on the result.")
    elif data.get("edit"):
        notices.append("This is a result: its original, mask, arrows and settings are back.")
    mask = request.mask
    if mask is not None and not store.has(mask.id):
        painted = _mask(data.get("mask"), mask.width, mask.height)
        if painted is None:
            request = dataclasses.replace(request, mask=None)
            notices.append("The mask was too large to travel with the picture; paint it again.")
        else:
            request = dataclasses.replace(request, mask=store.put_mask(painted))
    gone = [x for x in (request.lora_file, request.style) if x and not store.has(x.id)]
    if gone:
        request = dataclasses.replace(
            request,
            lora_file=None if request.lora_file in gone else request.lora_file,
            style=None if request.style in gone else request.style,
        )
        names = " and ".join(repr(x.name or x.id) for x in gone)
        notices.append(f"The LoRA {names} is not in this history and was left out.")
    return Restored(request, str(data.get("edit", "")), tuple(notices))


def _mask(text: Any, width: int, height: int) -> NDArray[np.bool_] | None:
    if not isinstance(text, str):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadInput("The mask in the picture's edit settings cannot be read.") from exc
    return decode.decode_mask(raw, width, height)
