"""A mask as polygons, exactly: for masks that come from history or a proposal, to be drawn on.

The outline runs along the pixels' borders, so painting the polygons gives the same mask again to
the pixel. Smoothing it was not wanted: a mask that changes when it is opened is not the same edit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.canvas.drawing import Polygon
from workbench.core.errors import BadInput
from workbench.core.request import Point

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
