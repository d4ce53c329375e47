"""The part of a picture in which something may move, reduced to cells on which equations are solved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.core.request import Point
from workbench.imaging.decode import fast_resize
from workbench.imaging.resample import enlarged

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

SPAN = 256  # lengths are given for a picture of this size, of which the painted part is 1 / AROUND
AROUND = 1.7
CELLS = (
    88  # along the longer side of the painted box; finer cells were no better (docs/algorithm.md)
)
_MARGIN = 4  # cells around the painted box
_LEAST = 8  # cells: a smaller box holds nothing that could be moved


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The painted box as cells; the centre of cell (i, j) is pixel (y0 + (i + .5) ky - .5, ...)."""

    y0: int
    x0: int
    height: int  # of the box, pixels
    width: int
    rgb: F32  # [h, w, 3], 0..1
    area: Mask  # [h, w], True = may change
    unit: float  # cells per 1/SPAN of the surroundings: scale of all lengths below
    border: tuple[bool, bool, bool, bool]  # sides that are the picture's: top, bottom, left, right

    @classmethod
    def of(cls, rgb: U8, mask: Mask | None, cells: int = CELLS) -> Grid | None:
        """Reduce the painted box of a picture uint8 [H, W, 3]; None when it is too small.

        Args:
            rgb: the picture.
            mask: bool [H, W], True = may change; None or empty = all of it.
            cells: most cells along the box's longer side; a cell is never less than a pixel.
        """
        rows, cols = rgb.shape[:2]
        if mask is None or not mask.any():
            mask = np.ones((rows, cols), np.bool_)
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = max(int(ys[-1] - ys[0]), int(xs[-1] - xs[0])) + 1
        k = max(1.0, box / cells)
        room = round(_MARGIN * k)
        y0, x0 = max(0, int(ys[0]) - room), max(0, int(xs[0]) - room)
        y1, x1 = min(rows, int(ys[-1]) + 1 + room), min(cols, int(xs[-1]) + 1 + room)
        height, width = y1 - y0, x1 - x0
        w, h = max(1, round(width / k)), max(1, round(height / k))
        if min(h, w) < _LEAST:
            return None
        small, area = rgb[y0:y1, x0:x1], mask[y0:y1, x0:x1]
        if (h, w) != (height, width):
            small = fast_resize(np.ascontiguousarray(small), (w, h))
            area = fast_resize(area.astype(np.uint8) * 255, (w, h)) > 127
        span = min(float(max(rows, cols)), max(float(SPAN), AROUND * box))
        border = (y0 == 0, y1 == rows, x0 == 0, x1 == cols)
        colours = small.astype(np.float32) / np.float32(255)
        return cls(y0, x0, height, width, colours, area, span / SPAN / k, border)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.area.shape[0], self.area.shape[1]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels per cell, (down, right)."""
        return self.height / self.shape[0], self.width / self.shape[1]

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that the cells stand for."""
        return slice(self.y0, self.y0 + self.height), slice(self.x0, self.x0 + self.width)

    def cell(self, p: Point) -> tuple[float, float]:
        """Image point -> (row, col) in cells."""
        ky, kx = self.scale
        return (p.y - self.y0 + 0.5) / ky - 0.5, (p.x - self.x0 + 0.5) / kx - 0.5

    def inside(self, p: Point) -> bool:
        """Whether a point lies on a cell that may change."""
        row, col = (round(v) for v in self.cell(p))
        h, w = self.shape
        return 0 <= row < h and 0 <= col < w and bool(self.area[row, col])

    def halved(self) -> Grid:
        """The same box with half as many cells each way, on which displacements are found."""
        h, w = (max(4, n // 2) for n in self.shape)
        rgb = np.stack([_reduced(self.rgb[..., c], (h, w)) for c in range(3)], axis=2)
        area = _reduced(self.area.astype(np.float32), (h, w)) > 0.5
        unit = self.unit * h / self.shape[0]
        return Grid(self.y0, self.x0, self.height, self.width, rgb, area, unit, self.border)

    def full(self, cells: F32) -> F32:
        """Values on cells [h, w] as values on the box's pixels [height, width], bilinear."""
        return enlarged(cells, (self.height, self.width))


def _reduced(a: F32, shape: tuple[int, int]) -> F32:
    """Means over blocks of about a / shape cells."""
    for axis, n in enumerate(shape):
        edges = np.round(np.linspace(0, a.shape[axis], n + 1)).astype(np.int64)
        sums = np.add.reduceat(a, edges[:-1], axis=axis)
        counts = np.diff(edges).astype(np.float32)
        a = np.asarray(sums / (counts[:, None] if axis == 0 else counts), np.float32)
    return np.asarray(a, np.float32)


def reduced(a: F32, shape: tuple[int, int]) -> F32:
    """Values of a grid [h, w] on a smaller one of `shape`."""
    return a if a.shape == shape else _reduced(a, shape)
