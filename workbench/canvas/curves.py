"""Plane geometry of canvas objects: Fabric's matrix, quadratic curves and bounding boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

XY = tuple[float, float]

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
        """Whether axes stay axes (no turn but by quarter circles, no skew)."""
        tiny = 1e-9 * (abs(self.a) + abs(self.b) + abs(self.c) + abs(self.d))
        straight = abs(self.b) <= tiny and abs(self.c) <= tiny
        return straight or (abs(self.a) <= tiny and abs(self.d) <= tiny)


def affine(
    *,
    left: float,
    top: float,
    width: float,
    height: float,
    stroke: float,
    uniform: bool,
    scale_x: float,
    scale_y: float,
    angle: float,
    skew_x: float,
    skew_y: float,
    origin_x: str,
    origin_y: str,
) -> Affine:
    """Fabric's matrix from an object's centred coordinates to the canvas.

    T(centre) R(angle) S(scale, flip) K(skew). `left` and `top` place the origin point of the box,
    which includes the stroke: scaled with the object, or, when `uniform`, added after scaling.
    Negative scales are flips.
    """
    kx, ky = math.tan(math.radians(skew_x)), math.tan(math.radians(skew_y))
    # S * K, with K = [1 kx; 0 1] * [1 0; ky 1]
    a, c = scale_x * (1 + kx * ky), scale_x * kx
    b, d = scale_y * ky, scale_y
    inner = 0.0 if uniform else stroke
    w, h = width + inner, height + inner
    outer = stroke if uniform else 0.0
    box_w = abs(a) * w + abs(c) * h + outer
    box_h = abs(b) * w + abs(d) * h + outer
    ox, oy = _ORIGIN.get(origin_x, 0.0) * box_w, _ORIGIN.get(origin_y, 0.0) * box_h
    co, si = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return Affine(
        co * a - si * b,
        si * a + co * b,
        co * c - si * d,
        si * c + co * d,
        left + co * ox - si * oy,
        top + si * ox + co * oy,
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
    """Where the cubic p, q, q, r stands still: (q-p) - 2(q-p) t + (r-p) t^2 = 0, in (0, 1)."""
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
