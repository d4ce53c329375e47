"""Rasterise a drawing to a mask (a pixel is painted when its centre is within the brush); its geometry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from workbench.canvas.drawing import (
    Drawing,
    Rect,
    Shape,
    Stroke,
)
from workbench.core.request import Point

XY = tuple[float, float]
Mask = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_ORIGIN = {"left": 0.5, "top": 0.5, "center": 0.0, "right": -0.5, "bottom": -0.5}
_FLATNESS = 0.1  # canvas px between a curve and its polyline
_MOST = 64  # pieces of one curve


@dataclass(frozen=True, slots=True)
class Affine:
    """x' = a x + c y + e, y' = b x + d y + f."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 1.0
    e: float = 0.0
    f: float = 0.0

    def apply(self, x: float, y: float) -> XY:
        """Map a point."""
        return self.a * x + self.c * y + self.e, self.b * x + self.d * y + self.f

    @property
    def stretch(self) -> float:
        """Factor on lengths, the same in every direction for turns and even scaling."""
        return math.sqrt(abs(self.a * self.d - self.b * self.c))

    @property
    def upright(self) -> bool:
        """True if axes stay axes (no turn but by quarter circles, no skew)."""
        tiny = 1e-9 * (abs(self.a) + abs(self.b) + abs(self.c) + abs(self.d))
        straight = abs(self.b) <= tiny and abs(self.c) <= tiny
        return straight or (abs(self.a) <= tiny and abs(self.d) <= tiny)


@dataclass(frozen=True, slots=True)
class Placement:
    """An object's placement as Fabric stores it: canvas px and degrees.

    `left` and `top` place the origin point of the object's box, which includes the stroke: scaled
    with the object, or, when `uniform`, added after scaling. Negative scales are flips.
    """

    left: float
    top: float
    width: float
    height: float
    stroke: float = 0.0
    uniform: bool = False
    scale_x: float = 1.0
    scale_y: float = 1.0
    angle: float = 0.0
    skew_x: float = 0.0
    skew_y: float = 0.0
    origin_x: str = "left"
    origin_y: str = "top"

    def matrix(self) -> Affine:
        """From the object's centred coordinates to the canvas: T(centre) R(angle) S(scale) K(skew)."""
        kx, ky = math.tan(math.radians(self.skew_x)), math.tan(math.radians(self.skew_y))
        # S * K, with K = [1 kx; 0 1] * [1 0; ky 1]
        a, c = self.scale_x * (1 + kx * ky), self.scale_x * kx
        b, d = self.scale_y * ky, self.scale_y
        inner, outer = (0.0, self.stroke) if self.uniform else (self.stroke, 0.0)
        w, h = self.width + inner, self.height + inner
        ox = _ORIGIN.get(self.origin_x, 0.0) * (abs(a) * w + abs(c) * h + outer)
        oy = _ORIGIN.get(self.origin_y, 0.0) * (abs(b) * w + abs(d) * h + outer)
        co, si = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        return Affine(
            co * a - si * b,
            si * a + co * b,
            co * c - si * d,
            si * c + co * d,
            self.left + co * ox - si * oy,
            self.top + si * ox + co * oy,
        )


def flatten_quadratic(p: XY, q: XY, r: XY) -> list[XY]:
    """Points after `p` along the curve p, q (control), r, within 0.1 px of it; ends with `r`."""
    bulge = math.hypot(p[0] - 2 * q[0] + r[0], p[1] - 2 * q[1] + r[1]) / 4
    n = min(_MOST, max(1, math.ceil(math.sqrt(bulge / _FLATNESS))))
    made = []
    for i in range(1, n):
        t = i / n
        u, v, w = (1 - t) ** 2, 2 * t * (1 - t), t * t
        made.append((u * p[0] + v * q[0] + w * r[0], u * p[1] + v * q[1] + w * r[1]))
    return [*made, r]


def cubic_box(p: XY, q: XY, r: XY) -> list[XY]:
    """Two opposite corners of the box that Fabric assigns to a quadratic curve.

    Fabric takes the box of the CUBIC with q as both control points, which is a little larger than
    the curve's own; the box's centre is where the stroke's coordinates have their origin, so the
    same must be done here.
    """
    xs = [p[0], r[0], *(_bezier(p[0], q[0], r[0], t) for t in _turns(p[0], q[0], r[0]))]
    ys = [p[1], r[1], *(_bezier(p[1], q[1], r[1], t) for t in _turns(p[1], q[1], r[1]))]
    return [(min(xs), min(ys)), (max(xs), max(ys))]


def _bezier(p: float, q: float, r: float, t: float) -> float:
    s = 1 - t
    return s**3 * p + 3 * s * t * q * (s + t) + t**3 * r


def _turns(p: float, q: float, r: float) -> list[float]:
    """Parameters at which the cubic p, q, q, r has no slope: (q-p) - 2(q-p) t + (r-p) t^2 = 0, in (0, 1)."""
    m, k = q - p, r - p
    if abs(k) < 1e-12:
        roots = [0.5] if abs(m) > 1e-12 else []
    else:
        disc = m * m - m * k
        if disc < 0:
            return []
        roots = [(m + math.sqrt(disc)) / k, (m - math.sqrt(disc)) / k]
    return [t for t in roots if 0 < t < 1]


def box_of(points: Iterable[XY]) -> tuple[float, float, float, float]:
    """Least x, least y, greatest x, greatest y of at least one point."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


_BAND = 1024  # rows at a time: keeps the counters of a 64 MP mask small
_CHUNK = 1 << 20  # intervals at a time
_HEAVY = 1e7  # points times radius
_LEAST = 0.75  # radius below which a dot could fall between the pixel centres


def rasterise(drawing: Drawing, width: int, height: int) -> Mask:
    """Paint and erase in the drawing's order; True = painted = may change.

    Returns: bool [height, width]. An empty drawing gives an empty mask (see `checklist` for what
    that means), an inverted empty one a full mask.
    """
    mask = np.zeros((height, width), np.bool_)
    for erase, group in groupby(drawing.shapes, key=lambda s: s.erase):
        shapes = list(group)
        for top in range(0, height, _BAND):
            band = mask[top : top + _BAND]
            cover = _cover(shapes, width, top, band.shape[0])
            if erase:
                band &= ~cover
            else:
                band |= cover
    return ~mask if drawing.invert else mask


def _cover(shapes: Sequence[Shape], width: int, top: int, rows: int) -> Mask:
    """Union of shapes on rows top .. top + rows - 1."""
    cover = np.zeros((rows, width), np.bool_)
    segments: list[F64] = []
    for shape in shapes:
        if isinstance(shape, Stroke):
            segments.append(_segments(shape.points, shape.width, closed=False))
            continue
        corners = shape.corners if isinstance(shape, Rect) else shape.points
        _fill(_array(corners), cover, top)
        if shape.border > 0:
            segments.append(_segments(corners, shape.border, closed=True))
    if segments:
        _sweep(np.concatenate(segments), cover, top)
    return cover


def _array(points: Sequence[Point]) -> F64:
    # to a millionth of a pixel, so that no segment is almost, but not quite, upright
    return np.round(np.array([(p.x, p.y) for p in points], np.float64).reshape(-1, 2), 6)


def _segments(points: Sequence[Point], width: float, *, closed: bool) -> F64:
    """Rows of ax, ay, bx, by, r; a single point is a segment without length."""
    p = _array(points)
    r = max(width / 2, _LEAST)
    if len(p) * r > _HEAVY:  # nobody paints so: merge what lies within a 32nd of the radius
        cells = np.round(p / (r / 32))
        p = p[np.r_[True, np.any(np.diff(cells, axis=0) != 0, axis=1)]]
    a, b = (p, np.roll(p, -1, axis=0)) if closed or len(p) == 1 else (p[:-1], p[1:])
    return np.hstack([a, b, np.full((len(a), 1), r)])


def _sweep(seg: F64, cover: Mask, top: int) -> None:
    """Paint all capsules into `cover`, whose first row is picture row `top`."""
    rows, width = cover.shape
    low = np.minimum(seg[:, 1], seg[:, 3]) - seg[:, 4]
    high = np.maximum(seg[:, 1], seg[:, 3]) + seg[:, 4]
    first = np.clip(np.ceil(low) - top, 0, rows).astype(np.int64)
    last = np.clip(np.floor(high) - top, -1, rows - 1).astype(np.int64)
    count = np.maximum(last - first + 1, 0)
    seg, first, count = seg[count > 0], first[count > 0], count[count > 0]
    if not len(seg):
        return
    y0, y1 = int(first.min()), int((first + count).max())
    level = np.zeros((y1 - y0, width + 1), np.int32)
    done = 0
    ends = np.cumsum(count)
    while done < len(seg):
        base = ends[done - 1] if done else 0
        stop = max(done + 1, int(np.searchsorted(ends, base + _CHUNK, "right")))
        _mark(level, seg[done:stop], first[done:stop], count[done:stop], top, y0)
        done = stop
    cover[y0:y1] |= np.cumsum(level[:, :-1], axis=1, dtype=np.int32) > 0


def _mark(
    level: npt.NDArray[np.int32], seg: F64, first: I64, count: I64, top: int, y0: int
) -> None:
    which = np.repeat(np.arange(len(seg)), count)
    row = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
    ax, ay, bx, by, r = seg[which].T
    left, right = _intervals(ax, row + top - ay, bx - ax, by - ay, r)
    width = level.shape[1] - 1
    start = np.clip(np.ceil(left), 0, width)
    end = np.clip(np.floor(right) + 1, 0, width)
    some = end > start
    at = row[some] - y0
    np.add.at(level, (at, start[some].astype(np.int64)), 1)
    np.add.at(level, (at, end[some].astype(np.int64)), -1)


def _intervals(ax: F64, v: F64, dx: F64, dy: F64, r: F64) -> tuple[F64, F64]:
    """Leftmost and rightmost x of each capsule on a row, v rows below the segment's start.

    The union of two discs and the rectangle between them; no part: left = inf, right = -inf.
    """
    inf = np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        h0 = np.sqrt(r * r - v * v)  # nan where the row misses the disc
        h1 = np.sqrt(r * r - (v - dy) ** 2)
        length = np.hypot(dx, dy)
        # along the segment: 0 <= u dx + v dy <= length^2, solved for u = x - ax
        t0, t1 = -v * dy / dx, (length * length - v * dy) / dx
        ok = (v * dy >= 0) & (v * dy <= length * length)
        lo = np.where(dx == 0, np.where(ok, -inf, inf), np.minimum(t0, t1))
        hi = np.where(dx == 0, np.where(ok, inf, -inf), np.maximum(t0, t1))
        # across: |u dy - v dx| <= r length
        s0, s1 = (v * dx - r * length) / dy, (v * dx + r * length) / dy
        ok = np.abs(v) <= r
        lo = np.maximum(lo, np.where(dy == 0, np.where(ok, -inf, inf), np.minimum(s0, s1)))
        hi = np.minimum(hi, np.where(dy == 0, np.where(ok, inf, -inf), np.maximum(s0, s1)))
    body = (lo <= hi) & (length > 0)
    left = np.where(body, ax + lo, inf)
    right = np.where(body, ax + hi, -inf)
    left = np.fmin(left, np.fmin(ax - h0, ax + dx - h1))
    right = np.fmax(right, np.fmax(ax + h0, ax + dx + h1))
    return left, right


def _fill(p: F64, cover: Mask, top: int) -> None:
    """Fill one closed polygon by non-zero winding, as a browser does."""
    rows, width = cover.shape
    q = np.roll(p, -1, axis=0)
    low, high = np.minimum(p[:, 1], q[:, 1]), np.maximum(p[:, 1], q[:, 1])
    first = np.clip(np.ceil(low) - top, 0, rows).astype(np.int64)
    count = np.maximum(np.clip(np.ceil(high) - top, 0, rows).astype(np.int64) - first, 0)
    if not count.any():
        return
    which = np.repeat(np.arange(len(p)), count)
    row = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
    a, b = p[which], q[which]
    x = a[:, 0] + (row + top - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    turn = np.where(b[:, 1] > a[:, 1], 1, -1)
    y0, y1 = int(row.min()), int(row.max()) + 1
    level = np.zeros((y1 - y0, width + 1), np.int32)
    np.add.at(level, (row - y0, np.clip(np.ceil(x), 0, width).astype(np.int64)), turn)
    cover[y0:y1] |= np.cumsum(level[:, :-1], axis=1, dtype=np.int32) != 0
