"""streamlit-drawable-canvas 0.13 JSON <-> `Drawing`. The only module that knows that format.

The component draws with Fabric 7. An object's own coordinates are centred, and its matrix is
T(centre) R(angle) S(scale, flip) K(skew); `left` and `top` name the origin point of its box, which
the stroke enlarges. Everything is brought to image pixels by a `Viewport`, so that resizing the
window or zooming changes nothing in a drawing.

What the tools mean: a Line is an arrow from handle to target; a Path is a brush stroke, an eraser
stroke when it has the eraser's colour; Rect and Polygon paint (or erase) areas; Circles come from
the point tool and pair up, handle then target. A dashed line is an arrow that is switched off,
and a line with round ends was placed by us (never dropped as click jitter): Fabric keeps those two
properties through every edit, unlike keys of our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.canvas.drawing import (
    Arrow,
    Budget,
    Drawing,
    History,
    Polygon,
    Rect,
    Shape,
    Stroke,
    listed,
    number,
)
from workbench.canvas.rasterize import (
    Affine,
    Placement,
    box_of,
    cubic_box,
    flatten_quadratic,
    rasterise,
)
from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair
from workbench.imaging.coords import Viewport

__all__ = [
    "Arrow",
    "Colours",
    "Drawing",
    "History",
    "Polygon",
    "Rect",
    "Stroke",
    "Viewport",
    "from_canvas_json",
    "rasterise",
    "to_canvas_json",
]

JITTER = 3.0  # canvas px: a shorter line is a click
_OFF_DASH = (7, 7)
_DIGITS = 4  # of an image pixel; Fabric rounds to as many


@dataclass(frozen=True, slots=True)
class Colours:
    """The canvas colours; the eraser's must differ from the brush's, it is what marks it."""

    brush: str = "rgba(255, 255, 255, 0.35)"
    eraser: str = "rgba(20, 20, 20, 0.55)"
    arrow: str = "#ffffff"
    off: str = "#9a9a9a"
    arrow_width: float = 3.0  # canvas px


def from_canvas_json(
    data: Any, view: Viewport, *, colours: Colours | None = None, invert: bool = False
) -> Drawing:
    """Read the component's `json_data` (or `initial_drawing`) into image pixels.

    `invert` is kept beside the canvas, which knows nothing of it.

    Raises:
        BadInput: for anything but what the component's own tools produce, for numbers that are not
            finite, and above 10,000 objects or 200,000 points.
    """
    if data is None:
        return Drawing(invert=invert)
    if not isinstance(data, Mapping):
        raise BadInput(f"The canvas's drawing must be a JSON object, not {type(data).__name__}.")
    eraser = _colour((colours or Colours()).eraser)
    budget, arrows, shapes = Budget(), [], []
    loose: Point | None = None
    for raw in listed(data.get("objects", ()), "the objects"):
        budget.object()
        if not isinstance(raw, Mapping):
            raise BadInput(f"A canvas object must be a JSON object, not {type(raw).__name__}.")
        kind = raw.get("type")
        if kind == "Line":
            arrow = _arrow(raw, view)
            if arrow is not None:
                arrows.append(arrow)
        elif kind == "Circle":
            at = _circle(raw, view)
            if loose is None:
                loose = at
            else:
                arrows.append(Arrow(PointPair(loose, at)))
                loose = None
        elif kind in ("Path", "Rect", "Polygon"):
            erase = _colour(raw.get("stroke")) == eraser
            shapes.extend(_READ[kind](raw, view, erase, budget))
        else:
            raise BadInput(
                f"The canvas holds an object of type {kind!r:.40}; only lines, brush strokes, "
                "rectangles, polygons and points can be used, so remove it."
            )
    return Drawing(tuple(arrows), tuple(shapes), loose, invert)


def to_canvas_json(
    drawing: Drawing, view: Viewport, *, colours: Colours | None = None
) -> dict[str, Any]:
    """The `initial_drawing` that shows a drawing in a viewport; `from_canvas_json` reads it back.

    Build it only when the canvas is remade (its key changes): fed back live, it makes the
    component lose strokes.
    """
    c = colours or Colours()
    objects = [_shape_object(s, view, c) for s in drawing.shapes]
    objects += [_line_object(a, view, c) for a in drawing.arrows]
    if drawing.loose is not None:
        objects.append(_point_object(drawing.loose, view, c))
    return {"version": "7.4.0", "objects": objects}


def _colour(value: Any) -> str:
    return value.replace(" ", "").lower() if isinstance(value, str) else ""


def _num(raw: Mapping[str, Any], key: str, default: float, low: float = -1e6) -> float:
    value = raw.get(key)
    return default if value is None else number(value, key, low)


def _placed(raw: Mapping[str, Any], width: float, height: float) -> Affine:
    """Matrix from an object's centred coordinates to the canvas."""
    return Placement(
        left=_num(raw, "left", 0.0),
        top=_num(raw, "top", 0.0),
        width=width,
        height=height,
        stroke=_num(raw, "strokeWidth", 0.0, 0.0),
        uniform=raw.get("strokeUniform") is True,
        scale_x=_num(raw, "scaleX", 1.0) * (-1 if raw.get("flipX") is True else 1),
        scale_y=_num(raw, "scaleY", 1.0) * (-1 if raw.get("flipY") is True else 1),
        angle=_num(raw, "angle", 0.0),
        skew_x=_num(raw, "skewX", 0.0),
        skew_y=_num(raw, "skewY", 0.0),
        origin_x=str(raw.get("originX", "left")),
        origin_y=str(raw.get("originY", "top")),
    ).matrix()


def _image(view: Viewport, xy: tuple[float, float]) -> Point:
    x, y = view.to_image(*xy)
    return Point(round(number(x, "x"), _DIGITS), round(number(y, "y"), _DIGITS))


def _outline(view: Viewport, xy: tuple[float, float]) -> Point:
    x, y = view.outline_to_image(*xy)
    return Point(round(number(x, "x"), _DIGITS), round(number(y, "y"), _DIGITS))


def _stroke_px(raw: Mapping[str, Any], view: Viewport, m: Affine) -> float:
    """Stroke width in image pixels; a stroke is scaled with its object unless it is uniform."""
    scale = 1.0 if raw.get("strokeUniform") is True else m.stretch
    width = _num(raw, "strokeWidth", 1.0, 0.0) * scale * view.k
    return round(number(width, "stroke width", 0.0), _DIGITS)


def _arrow(raw: Mapping[str, Any], view: Viewport) -> Arrow | None:
    x1, y1 = _num(raw, "x1", 0.0), _num(raw, "y1", 0.0)
    x2, y2 = _num(raw, "x2", 0.0), _num(raw, "y2", 0.0)
    m = _placed(raw, abs(x2 - x1), abs(y2 - y1))
    a, b = m.apply(x1, y1), m.apply(x2, y2)
    ours = raw.get("strokeLineCap") == "round"
    if math.dist(a, b) < JITTER and not ours:
        return None
    dashed = raw.get("strokeDashArray")
    return Arrow(PointPair(_image(view, a), _image(view, b)), on=not dashed)


def _circle(raw: Mapping[str, Any], view: Viewport) -> Point:
    size = 2 * _num(raw, "radius", 0.0, 0.0)
    return _image(view, _placed(raw, size, size).apply(0.0, 0.0))


def _rect(raw: Mapping[str, Any], view: Viewport, erase: bool, budget: Budget) -> list[Shape]:
    w, h = _num(raw, "width", 0.0), _num(raw, "height", 0.0)
    budget.spend(4)
    m = _placed(raw, w, h)
    corners = [m.apply(sx * w / 2, sy * h / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    points = tuple(_outline(view, c) for c in corners)
    border = _stroke_px(raw, view, m)
    if m.upright:
        xs, ys = sorted(p.x for p in points), sorted(p.y for p in points)
        return [Rect(xs[0], ys[0], xs[3], ys[3], erase, border)]
    return [Polygon(points, erase, border)]


def _polygon(raw: Mapping[str, Any], view: Viewport, erase: bool, budget: Budget) -> list[Shape]:
    given = listed(raw.get("points", ()), "a polygon's points")
    budget.spend(len(given))
    xy = []
    for p in given:
        if not isinstance(p, Mapping):
            raise BadInput(f"A polygon's point must be an object, not {type(p).__name__}.")
        xy.append((number(p.get("x"), "x"), number(p.get("y"), "y")))
    if len(xy) < 3:
        return []
    x0, y0, x1, y1 = box_of(xy)
    m = _placed(raw, x1 - x0, y1 - y0)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    points = tuple(_outline(view, m.apply(x - cx, y - cy)) for x, y in xy)
    return [Polygon(points, erase, _stroke_px(raw, view, m))]


def _path(raw: Mapping[str, Any], view: Viewport, erase: bool, budget: Budget) -> list[Shape]:
    """Brush strokes; one per sub-path, a closed one is an area."""
    parts: list[tuple[list[tuple[float, float]], bool]] = []
    box: list[tuple[float, float]] = []
    start = at = (0.0, 0.0)
    for command in listed(raw.get("path", ()), "a path"):
        name, *args = listed(command, "a path command") or [None]
        wanted = {"M": 2, "L": 2, "Q": 4, "Z": 0}.get(name if isinstance(name, str) else "")
        if wanted is None or len(args) != wanted:
            raise BadInput(
                f"A brush stroke has a command {name!r:.20} with {len(args)} numbers; "
                "only M, L, Q and Z are drawn by the brush."
            )
        n = [number(v, "path") for v in args]
        if name == "M":
            start = at = (n[0], n[1])
            parts.append(([at], False))
        elif not parts:
            raise BadInput("A brush stroke does not begin with M.")
        elif name == "Z":
            at = start
            parts[-1] = (parts[-1][0], True)
            continue
        elif name == "L":
            at = (n[0], n[1])
            parts[-1][0].append(at)
            box += [start, at]
        else:
            added = flatten_quadratic(at, (n[0], n[1]), (n[2], n[3]))
            budget.spend(len(added) - 1)
            box += cubic_box(at, (n[0], n[1]), (n[2], n[3]))
            parts[-1][0].extend(added)
            at = (n[2], n[3])
        budget.spend(1)
    if not parts:
        return []
    x0, y0, x1, y1 = box_of(box or [start])
    if raw.get("left") is None and raw.get("top") is None:
        m, cx, cy = Affine(), 0.0, 0.0  # not yet placed by Fabric: absolute
    else:
        m, cx, cy = _placed(raw, x1 - x0, y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2
    width = _stroke_px(raw, view, m)
    shapes: list[Shape] = []
    for xy, closed in parts:
        points = tuple(_outline(view, m.apply(x - cx, y - cy)) for x, y in xy)
        if closed and len(points) > 2:
            shapes.append(Polygon(points, erase, width))
        else:
            shapes.append(Stroke(points, width, erase))
    return shapes


_READ = {"Path": _path, "Rect": _rect, "Polygon": _polygon}


def _object(kind: str, box: tuple[float, float, float, float], **extra: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "type": kind, "originX": "center", "originY": "center",
        "left": (x0 + x1) / 2, "top": (y0 + y1) / 2, "width": x1 - x0, "height": y1 - y0,
        "scaleX": 1, "scaleY": 1, "angle": 0, "skewX": 0, "skewY": 0, "flipX": False,
        "flipY": False, "strokeLineCap": "round", "strokeLineJoin": "round", **extra,
    }  # fmt: skip


def _line_object(arrow: Arrow, view: Viewport, c: Colours) -> dict[str, Any]:
    a = view.to_canvas(arrow.pair.handle.x, arrow.pair.handle.y)
    b = view.to_canvas(arrow.pair.target.x, arrow.pair.target.y)
    colour = c.arrow if arrow.on else c.off
    return _object(
        "Line", box_of([a, b]), stroke=colour, fill=colour, strokeWidth=c.arrow_width,
        strokeDashArray=None if arrow.on else list(_OFF_DASH),
        x1=(a[0] - b[0]) / 2, y1=(a[1] - b[1]) / 2, x2=(b[0] - a[0]) / 2, y2=(b[1] - a[1]) / 2,
    )  # fmt: skip


def _point_object(p: Point, view: Viewport, c: Colours) -> dict[str, Any]:
    x, y = view.to_canvas(p.x, p.y)
    return _object(
        "Circle", (x - 4, y - 4, x + 4, y + 4), radius=4, stroke=c.arrow, fill=c.arrow,
        strokeWidth=0,
    )  # fmt: skip


def _short(xy: tuple[float, float]) -> tuple[float, float]:
    """As many digits as Fabric keeps: the component sends all points at every stroke."""
    return round(xy[0], _DIGITS), round(xy[1], _DIGITS)


def _shape_object(shape: Shape, view: Viewport, c: Colours) -> dict[str, Any]:
    colour = c.eraser if shape.erase else c.brush
    if isinstance(shape, Rect):
        a, b = (
            view.outline_to_canvas(shape.x0, shape.y0),
            view.outline_to_canvas(shape.x1, shape.y1),
        )
        return _object(
            "Rect", box_of([a, b]), stroke=colour, fill=colour, strokeUniform=True,
            strokeWidth=shape.border / view.k,
        )  # fmt: skip
    xy = [_short(view.outline_to_canvas(p.x, p.y)) for p in shape.points]
    if isinstance(shape, Polygon):
        return _object(
            "Polygon", box_of(xy), stroke=colour, fill=colour,
            strokeWidth=shape.border / view.k, points=[{"x": x, "y": y} for x, y in xy],
        )  # fmt: skip
    # A dot keeps a hair of length: browsers draw no round cap on a path without any.
    tail = xy[1:] or [(xy[0][0] + 0.01, xy[0][1])]
    path = [["M", *xy[0]], *(["L", *p] for p in tail)]
    return _object(
        "Path", box_of([xy[0], *tail]), stroke=colour, fill=None,
        strokeWidth=shape.width / view.k, path=path,
    )  # fmt: skip
