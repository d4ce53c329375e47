"""The drawing as the canvas shows it, and back: generations, inversion, view, masks as polygons.

The canvas is a projection of the drawing on disk. When Python changes the drawing (undo, a number
in the table, another zoom), the canvas is told to load a new projection, and whatever the browser
still sends of the old one must not be taken for a change. So each projection carries its generation
number in an invisible object far outside the picture; Fabric hands it back with every drawing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.canvas.drawing import Arrow, Drawing, Polygon, Rect, Shape, Stroke
from workbench.canvas.fabric import Colours, from_canvas_json, to_canvas_json
from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair
from workbench.imaging.coords import Viewport

ERASER = "#010203"  # opaque and used for nothing else: the browser cuts such strokes out
MASK_COLOURS = {
    "Magenta": "#e0218a",
    "Cyan": "#00a7c7",
    "Lime": "#5fae00",
    "Orange": "#f08000",
    "White": "#f4f4f4",
}
# a tool's name -> what the drawing canvas does with it; Arrow, Pin, Select and Polygon are the stage's own
TOOLS = {
    "Arrow": "freedraw",
    "Pin": "freedraw",
    "Select": "freedraw",
    "Brush": "freedraw",
    "Eraser": "freedraw",
    "Rectangle": "rect",
    "Polygon": "freedraw",
    "Adjust": "rect",
}
ZOOMS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_FAR = -100_000.0


def colours(mask_colour: str, rgb: NDArray[np.uint8] | None = None) -> Colours:
    """The canvas's colours; paint is opaque there, the stage draws it as hatch and outline.

    Args:
        mask_colour: a name of `MASK_COLOURS`, or "Automatic": the one that the picture has least of.
        rgb: the picture, uint8 [H,W,3], for "Automatic".
    """
    known = MASK_COLOURS.get(mask_colour)
    if known is None:
        known = contrasting(rgb) if rgb is not None else MASK_COLOURS["Magenta"]
    return Colours(brush=known, eraser=ERASER, arrow="#ffffff", off="#b8b8b8", arrow_width=3.0)


def contrasting(rgb: NDArray[np.uint8]) -> str:
    """The mask colour that is farthest from the picture's own colours.

    Far from nearly all of them: the distance that 95 % of the pixels keep decides.
    """
    step = max(1, max(rgb.shape[:2]) // 48)
    pixels = rgb[::step, ::step].reshape(-1, 3).astype(np.float32)

    def apart(colour: str) -> float:
        own = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
        weights = np.array(
            [0.55, 0.8, 0.45], np.float32
        )  # about as the eye tells red, green, blue apart
        gaps = np.linalg.norm((pixels - own) * weights, axis=1)
        return float(np.percentile(gaps, 5))

    return max((c for name, c in MASK_COLOURS.items() if name != "White"), key=apart)


def projection(drawing: Drawing, view: Viewport, paint: Colours, generation: int) -> dict[str, Any]:
    """Drawing that the canvas loads: the painted shapes in a view, marked with their generation."""
    made = to_canvas_json(Drawing(shapes=drawing.shapes), view, colours=paint)
    marker = {
        "type": "Rect", "originX": "left", "originY": "top", "left": _FAR - generation,
        "top": _FAR, "width": 1, "height": 1, "strokeWidth": 0, "opacity": 0,
    }  # fmt: skip
    return {**made, "objects": [marker, *made["objects"]]}


def received(raw: Any, view: Viewport, paint: Colours, generation: int) -> tuple[Shape, ...] | None:
    """The shapes that the browser sent, or None when they belong to an older projection.

    Raises:
        BadInput: when it is not what the canvas's own tools produce.
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("objects"), list):
        return None
    kept, found = [], None
    for item in raw["objects"]:
        number = _generation(item)
        if number is None:
            kept.append(item)
        else:
            found = number
    if found != generation:
        return None
    return from_canvas_json({**raw, "objects": kept}, view, colours=paint).shapes


def merge_arrows(
    old: tuple[Arrow, ...], mine: tuple[Arrow, ...], theirs: tuple[Arrow, ...]
) -> tuple[Arrow, ...]:
    """What a browser made of the arrows it knew (`old` -> `mine`), done to the present ones (`theirs`).

    An arrow that was moved keeps its place, as long as none was removed. The canvas does the same
    (`merge` in canvas.js).
    """
    moved = dict(zip(old, mine, strict=True)) if len(old) == len(mine) else {}
    kept = []
    for arrow in theirs:
        now = arrow if arrow in mine or arrow not in old else moved.get(arrow)
        if now is arrow or (now is not None and now not in old and now not in theirs):
            kept.append(now)
    return (*kept, *(a for a in mine if a not in old and a not in kept))


def arrows_sent(items: Any) -> tuple[Arrow, ...]:
    """The arrows that the stage sent.

    Raises:
        BadInput: for anything but a list of {pair, on} within the limits of a drawing.
    """
    return Drawing.from_json({"arrows": items}).arrows


def _generation(item: Any) -> int | None:
    if not isinstance(item, Mapping) or item.get("type") != "Rect":
        return None
    left, top = item.get("left"), item.get("top")
    if not isinstance(left, (int, float)) or not isinstance(top, (int, float)):
        return None
    if item.get("originX") == "center":  # Fabric may hand it back by its centre
        left, top = left - 0.5, top - 0.5
    return round(_FAR - left) if abs(top - _FAR) < 1 and left <= _FAR + 1 else None


def settle(
    before: tuple[Shape, ...], after: tuple[Shape, ...], tolerance: float
) -> tuple[Shape, ...]:
    """`after`, with every shape that only went round through the browser as it was `before`.

    Fabric rounds what it hands back; without this, each stroke would shift all the others by a
    thousandth of a pixel, and every look at the canvas would be a change. `tolerance`: image px.
    """

    def near(a: Any, b: Any) -> bool:
        return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))

    shapes = list(after)
    for n, (was, now) in enumerate(zip(before, shapes, strict=False)):
        if type(was) is type(now) and was.erase == now.erase and near(_flat(was), _flat(now)):
            shapes[n] = was
    return tuple(shapes)


def _flat(shape: Any) -> list[float]:
    if isinstance(shape, Rect):
        return [shape.x0, shape.y0, shape.x1, shape.y1, shape.border]
    thick = shape.width if isinstance(shape, Stroke) else shape.border
    return [thick, *(v for p in shape.points for v in (p.x, p.y))]


def complement(drawing: Drawing, width: int, height: int) -> Drawing:
    """Painted and unpainted exchanged, as shapes that one can go on painting on.

    The complement of "paint and erase in this order" is "paint everything, then erase and paint in
    this order". `Drawing.invert` would do the same to the mask, but a brush would then take away.
    """
    everything = Rect(-0.5, -0.5, width - 0.5, height - 0.5)
    shapes = [dataclasses.replace(s, erase=not s.erase) for s in drawing.shapes]
    if drawing.shapes and drawing.shapes[0] == everything:
        return dataclasses.replace(drawing, shapes=tuple(shapes[1:]), invert=False)
    return dataclasses.replace(drawing, shapes=(everything, *shapes), invert=False)


def whole(drawing: Drawing, width: int, height: int) -> Drawing:
    """Everything painted."""
    everything = Rect(-0.5, -0.5, width - 0.5, height - 0.5)
    return dataclasses.replace(drawing, shapes=(everything,), invert=False)


def stored(data: Mapping[str, Any]) -> Drawing:
    """The drawing of a project record; an empty record is an empty drawing.

    Raises:
        BadInput: when it is damaged.
    """
    return Drawing.from_json(data) if data else Drawing()


def canvas_size(image_width: int, image_height: int, width: int, height: int) -> tuple[int, int]:
    """Width and height of the canvas, CSS px: the largest that fits into a room of that size.

    Raises:
        BadInput: when the picture has no size.
    """
    if image_width < 1 or image_height < 1:
        raise BadInput("The size of this picture is not known. Open it again on the first page.")
    wide = max(160, min(width, round(max(240, height) * image_width / image_height)))
    return wide, max(1, round(image_height * wide / image_width))


def zoom_step(now: float, by: int) -> float:
    """The next larger (1) or smaller (-1) of the zooms."""
    if by > 0:
        return next((z for z in ZOOMS if z > now + 1e-6), ZOOMS[-1])
    return next((z for z in reversed(ZOOMS) if z < now - 1e-6), ZOOMS[0])


def viewport(
    image: tuple[int, int], canvas: tuple[int, int], zoom: float, centre: tuple[float, float] | None
) -> Viewport:
    """View at a zoom around a centre (image px; None: the middle)."""
    whole_view = Viewport.fit(*image, *canvas)
    if zoom <= 1.0:
        return whole_view
    x, y = centre or ((image[0] - 1) / 2, (image[1] - 1) / 2)
    return whole_view.zoomed(zoom, Point(x, y), *image)


def half_up(value: float) -> int:
    """Rounded as the browser rounds."""
    return int(value + 0.5)


def first_arrow(view: Viewport) -> PointPair:
    """An arrow to begin with by keyboard: from the middle of the view a tenth of it to the right."""
    x, y = view.x0 + view.width / 2, view.y0 + view.height / 2
    return PointPair(Point(round(x), round(y)), Point(round(x + view.width / 10), round(y)))


MOST_CORNERS = 60_000  # what the browser's canvas still takes


def polygons(mask: NDArray[np.bool_]) -> tuple[Polygon, ...]:
    """Shapes that paint exactly `mask`, bool [H,W]: outer rings paint, holes erase, largest first.

    Raises:
        BadInput: when the outline has too many corners to be drawn on (noise, not a painted mask).
    """
    rings = [_corners(ring) for ring in _rings(mask)]
    if sum(len(r) for r in rings) > MOST_CORNERS:
        raise BadInput(
            f"The mask's outline has more than {MOST_CORNERS} corners, too many to edit; "
            "paint a new one."
        )
    sized = sorted(((_area(r), r) for r in rings), key=lambda pair: -abs(pair[0]))
    return tuple(
        Polygon(tuple(Point(x - 0.5, y - 0.5) for x, y in ring), erase=area < 0)
        for area, ring in sized
    )


def _rings(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Closed outlines over pixel corners (x, y), painted side on the right (y points down)."""
    m = np.pad(mask, 1)
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def edges(where: NDArray[np.bool_], a: tuple[int, int], b: tuple[int, int]) -> None:
        for y, x in np.argwhere(where):
            start = (int(x) + a[0], int(y) + a[1])
            ways.setdefault(start, []).append((int(x) + b[0], int(y) + b[1]))

    inner = m[1:-1, 1:-1]
    edges(inner & ~m[:-2, 1:-1], (0, 0), (1, 0))  # top border, to the right
    edges(inner & ~m[1:-1, 2:], (1, 0), (1, 1))  # right border, down
    edges(inner & ~m[2:, 1:-1], (1, 1), (0, 1))  # bottom border, to the left
    edges(inner & ~m[1:-1, :-2], (0, 1), (0, 0))  # left border, up
    rings = []
    while ways:
        start = next(iter(ways))
        ring, at, came = [start], start, (0, 0)
        while True:
            ends = ways[at]
            # where two pixels touch by a corner only, turn right: they stay two rings
            best = max(range(len(ends)), key=lambda i: _turn(came, at, ends[i]))
            after = ends.pop(best)
            if not ends:
                del ways[at]
            came, at = (after[0] - at[0], after[1] - at[1]), after
            if at == start:
                break
            ring.append(at)
        rings.append(ring)
    return rings


def _turn(came: tuple[int, int], at: tuple[int, int], to: tuple[int, int]) -> int:
    """1 for a right turn (y points down), 0 straight on, -1 for a left turn."""
    return came[0] * (to[1] - at[1]) - came[1] * (to[0] - at[0])


def _corners(ring: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ring without the points on straight lines."""
    kept = []
    for n, (x, y) in enumerate(ring):
        (a, b), (c, d) = ring[n - 1], ring[(n + 1) % len(ring)]
        if (x - a) * (d - y) != (y - b) * (c - x):
            kept.append((x, y))
    return kept


def _area(ring: list[tuple[int, int]]) -> float:
    """Signed area in px²; positive where the inside is painted (clockwise on the screen)."""
    total = 0
    for n, (x, y) in enumerate(ring):
        a, b = ring[n - 1]
        total += a * y - b * x
    return total / 2
