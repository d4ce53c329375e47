"""The user's drawing in image pixels: arrows, and ordered brush strokes and shapes.

This is the state that a project keeps; the browser's canvas (`fabric.py`) is a projection of it and
the mask (`rasterize.py`) its outcome. Immutable: every change gives a new `Drawing`, so undo is a list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair

MAX_OBJECTS = 10_000
MAX_POINTS = 200_000
MAX_COORDINATE = 1e6
DRAWING_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Arrow:
    """A pair and whether it takes part in the next run."""

    pair: PointPair
    on: bool = True


@dataclass(frozen=True, slots=True)
class Stroke:
    """A brush (or eraser) stroke: all pixels within `width` / 2 of the polyline."""

    points: tuple[Point, ...]
    width: float
    erase: bool = False


@dataclass(frozen=True, slots=True)
class Rect:
    """An upright rectangle between two corners, plus half of `border` around it."""

    x0: float
    y0: float
    x1: float
    y1: float
    erase: bool = False
    border: float = 0.0

    @property
    def corners(self) -> tuple[Point, ...]:
        """The four corners in order."""
        xs, ys = (self.x0, self.x1), (self.y0, self.y1)
        return tuple(Point(xs[i], ys[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)))


@dataclass(frozen=True, slots=True)
class Polygon:
    """A closed polygon (non-zero winding), plus half of `border` around it."""

    points: tuple[Point, ...]
    erase: bool = False
    border: float = 0.0


Shape = Stroke | Rect | Polygon


@dataclass(frozen=True, slots=True)
class Drawing:
    """Arrows, and shapes in the order in which they paint or erase.

    `loose` is a handle that was clicked and still lacks its target. `invert` exchanges painted and
    unpainted. The same numbers mean the same picture at every zoom: all are image pixels.
    """

    arrows: tuple[Arrow, ...] = ()
    shapes: tuple[Shape, ...] = ()
    loose: Point | None = None
    invert: bool = False

    @property
    def pairs(self) -> tuple[PointPair, ...]:
        """The pairs that are switched on."""
        return tuple(a.pair for a in self.arrows if a.on)

    @property
    def has_mask(self) -> bool:
        """True if anything was painted, or the mask inverted."""
        return self.invert or any(not s.erase for s in self.shapes)

    def with_arrow(self, pair: PointPair) -> Drawing:
        """One more arrow."""
        return dataclasses.replace(self, arrows=(*self.arrows, Arrow(pair)))

    def with_pair(self, index: int, pair: PointPair) -> Drawing:
        """Another pair at an index (the table's numbers were edited)."""
        return self._arrow(index, dataclasses.replace(self.arrows[index], pair=pair))

    def switched(self, index: int, on: bool) -> Drawing:
        """An arrow switched on or off."""
        return self._arrow(index, dataclasses.replace(self.arrows[index], on=on))

    def without_arrow(self, index: int) -> Drawing:
        """One arrow less."""
        kept = (*self.arrows[:index], *self.arrows[index + 1 :])
        return dataclasses.replace(self, arrows=kept)

    def without_arrows(self) -> Drawing:
        """No arrows; the mask stays."""
        return dataclasses.replace(self, arrows=(), loose=None)

    def without_mask(self) -> Drawing:
        """Nothing painted and nothing inverted; the arrows stay."""
        return dataclasses.replace(self, shapes=(), invert=False)

    def inverted(self) -> Drawing:
        """Painted and unpainted exchanged."""
        return dataclasses.replace(self, invert=not self.invert)

    def _arrow(self, index: int, arrow: Arrow) -> Drawing:
        made = (*self.arrows[:index], arrow, *self.arrows[index + 1 :])
        return dataclasses.replace(self, arrows=made)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` restores an equal drawing."""
        return {
            "format": DRAWING_FORMAT,
            "arrows": [{"pair": a.pair.to_json(), "on": a.on} for a in self.arrows],
            "shapes": [_shape_json(s) for s in self.shapes],
            "loose": [self.loose.x, self.loose.y] if self.loose else None,
            "invert": self.invert,
        }

    @classmethod
    def from_json(cls, data: Any) -> Drawing:
        """Read what `to_json` wrote.

        Raises:
            BadInput: naming what is missing, of a wrong type, not finite, or too many.
        """
        if not isinstance(data, Mapping):
            raise BadInput(f"A drawing must be a JSON object, not {type(data).__name__}.")
        if data.get("format", DRAWING_FORMAT) != DRAWING_FORMAT:
            raise BadInput(
                f"The drawing has format {data.get('format')!r:.20}; "
                f"this version reads {DRAWING_FORMAT}."
            )
        budget = Budget()
        arrows = tuple(_arrow_from(a, budget) for a in listed(data.get("arrows", ()), "the arrows"))
        shapes = tuple(_shape_from(s, budget) for s in listed(data.get("shapes", ()), "the shapes"))
        loose = data.get("loose")
        return cls(
            arrows,
            shapes,
            None if loose is None else point(loose),
            flag(data.get("invert", False), "invert"),
        )


class Budget:
    """Counts objects and points while untrusted data is read, and stops at the limits."""

    def __init__(self) -> None:
        """Start at zero."""
        self.objects = 0
        self.points = 0

    def object(self) -> None:
        """Count one object.

        Raises:
            BadInput: above MAX_OBJECTS.
        """
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise BadInput(
                f"The drawing has more than {MAX_OBJECTS} objects; clear it and draw again.",
                code="too-many",
            )

    def spend(self, points: int) -> None:
        """Count points.

        Raises:
            BadInput: above MAX_POINTS.
        """
        self.points += points
        if self.points > MAX_POINTS:
            raise BadInput(
                f"The drawing has more than {MAX_POINTS} points; clear it and draw again.",
                code="too-many",
            )


@dataclass(frozen=True, slots=True)
class History:
    """Undo and redo as lists of drawings; every method returns a new history."""

    present: Drawing = Drawing()
    past: tuple[Drawing, ...] = ()
    future: tuple[Drawing, ...] = ()
    limit: int = 100

    def push(self, drawing: Drawing) -> History:
        """The drawing changed; what was undone before is forgotten. No change, no step."""
        if drawing == self.present:
            return self
        past = (*self.past, self.present)[-self.limit :]
        return History(drawing, past, (), self.limit)

    def undo(self) -> History:
        """One step back, if there is one."""
        if not self.past:
            return self
        future = (self.present, *self.future)
        return History(self.past[-1], self.past[:-1], future, self.limit)

    def redo(self) -> History:
        """One step forward again, if there is one."""
        if not self.future:
            return self
        past = (*self.past, self.present)
        return History(self.future[0], past, self.future[1:], self.limit)

    @property
    def can_undo(self) -> bool:
        """True if `undo` changes anything."""
        return bool(self.past)

    @property
    def can_redo(self) -> bool:
        """True if `redo` changes anything."""
        return bool(self.future)


def number(value: Any, what: str, low: float = -MAX_COORDINATE) -> float:
    """A finite number of sane size from untrusted JSON.

    Raises:
        BadInput: for text, booleans, NaN, infinities, and beyond the limits.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not low <= value <= MAX_COORDINATE:
        raise BadInput(
            f"The drawing's {what} is {value!r:.40}; "
            f"it must be a number from {low:g} to {MAX_COORDINATE:g}.",
            code="out-of-range",
        )
    return float(value)


def flag(value: Any, what: str) -> bool:
    """A boolean from untrusted JSON.

    Raises:
        BadInput: for anything else.
    """
    if not isinstance(value, bool):
        raise BadInput(f"The drawing's {what} is {value!r:.40}; it must be true or false.")
    return value


def listed(value: Any, what: str) -> Sequence[Any]:
    """A list from untrusted JSON.

    Raises:
        BadInput: for anything else.
    """
    if not isinstance(value, (list, tuple)):
        raise BadInput(f"In the drawing, {what} must be a list, not {type(value).__name__}.")
    return value


def point(value: Any) -> Point:
    """A point [x, y] from untrusted JSON.

    Raises:
        BadInput: when it is not two finite numbers.
    """
    xy = listed(value, "a point")
    if len(xy) != 2:
        raise BadInput(f"A point of the drawing has {len(xy)} numbers; it must have 2.")
    return Point(number(xy[0], "x"), number(xy[1], "y"))


def crossing(a: PointPair, b: PointPair) -> bool:
    """True if two arrows cross at an inner point of both."""
    p, r = a.handle, (a.target.x - a.handle.x, a.target.y - a.handle.y)
    q, s = b.handle, (b.target.x - b.handle.x, b.target.y - b.handle.y)
    det = r[0] * s[1] - r[1] * s[0]
    if abs(det) < 1e-9:
        return False
    dx, dy = q.x - p.x, q.y - p.y
    t, u = (dx * s[1] - dy * s[0]) / det, (dx * r[1] - dy * r[0]) / det
    return 0 < t < 1 and 0 < u < 1


def _shape_json(shape: Shape) -> dict[str, Any]:
    if isinstance(shape, Rect):
        box = [shape.x0, shape.y0, shape.x1, shape.y1]
        return {"kind": "rect", "box": box, "border": shape.border, "erase": shape.erase}
    points = [[p.x, p.y] for p in shape.points]
    if isinstance(shape, Stroke):
        return {"kind": "stroke", "points": points, "width": shape.width, "erase": shape.erase}
    return {"kind": "polygon", "points": points, "border": shape.border, "erase": shape.erase}


def _arrow_from(data: Any, budget: Budget) -> Arrow:
    budget.object()
    if not isinstance(data, Mapping):
        raise BadInput(f"An arrow must be a JSON object, not {type(data).__name__}.")
    pair = listed(data.get("pair"), "a pair")
    if len(pair) not in (4, 5):
        raise BadInput(
            f"A pair is four numbers [hx, hy, tx, ty], not {len(pair)}.", code="not-a-pair"
        )
    ends = (point(pair[:2]), point(pair[2:4]))
    more = PointPair.from_json([0, 0, 0, 0, *pair[4:]])
    return Arrow(PointPair(*ends, more.grow, more.move), flag(data.get("on", True), "on"))


def _shape_from(data: Any, budget: Budget) -> Shape:
    budget.object()
    if not isinstance(data, Mapping):
        raise BadInput(f"A shape must be a JSON object, not {type(data).__name__}.")
    erase = flag(data.get("erase", False), "erase")
    kind = data.get("kind")
    border = number(data.get("border", 0.0), "border", 0.0)
    if kind == "rect":
        box = listed(data.get("box"), "a rectangle")
        if len(box) != 4:
            raise BadInput(f"A rectangle is four numbers [x0, y0, x1, y1], not {len(box)}.")
        x0, y0, x1, y1 = (number(v, "rectangle") for v in box)
        return Rect(x0, y0, x1, y1, erase, border)
    if kind not in ("stroke", "polygon"):
        raise BadInput(f"The drawing has a shape {kind!r:.40}; use stroke, rect or polygon.")
    raw = listed(data.get("points"), "points")
    budget.spend(len(raw))
    points = tuple(point(p) for p in raw)
    if not points:
        raise BadInput(f"The drawing has a {kind} without points.")
    if kind == "stroke":
        return Stroke(points, number(data.get("width"), "stroke width", 0.0), erase)
    return Polygon(points, erase, border)
