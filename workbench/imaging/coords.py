"""The only coordinate conversions: canvas <-> image <-> working image <-> feature grid.

Frames
    image     pixels of the stored picture; x right, y down; (0, 0) is the CENTRE of the top-left
              pixel, so the picture covers [-0.5, W - 0.5] x [-0.5, H - 0.5]
    working   the same convention on the resized (and cropped) picture that the model edits
    canvas    CSS pixels of the browser's canvas as mouse events report them; see `Viewport`
    grid      (row, col) on the feature grid, half the working image each way

Resizing maps areas onto areas: x' = (x + 0.5) * w'/w - 0.5. This is what image resamplers do
(Pillow; torch with align_corners=False), so a point keeps its place on the thing it marks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair

Mask = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle of the picture, shown or processed at another size.

    `x0, y0, width, height`: the rectangle in image pixels, columns x0 .. x0 + width - 1;
    `out_width, out_height`: its size in the other frame.
    """

    x0: int
    y0: int
    width: int
    height: int
    out_width: int
    out_height: int

    def __post_init__(self) -> None:
        """Refuse empty rectangles."""
        if min(self.width, self.height, self.out_width, self.out_height) < 1:
            raise BadInput(
                f"A view of {self.width}x{self.height} px at {self.out_width}x{self.out_height} "
                "px is empty; each side must have at least 1 px.",
                code="empty",
            )

    @classmethod
    def whole(cls, width: int, height: int, out_width: int, out_height: int) -> Frame:
        """The whole picture at another size."""
        return cls(0, 0, width, height, out_width, out_height)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the other frame per image pixel, in x and y."""
        return self.out_width / self.width, self.out_height / self.height

    def forward(self, p: Point) -> Point:
        """Image pixels to the other frame."""
        sx, sy = self.scale
        return Point((p.x - self.x0 + 0.5) * sx - 0.5, (p.y - self.y0 + 0.5) * sy - 0.5)

    def back(self, p: Point) -> Point:
        """The other frame to image pixels."""
        sx, sy = self.scale
        return Point((p.x + 0.5) / sx - 0.5 + self.x0, (p.y + 0.5) / sy - 0.5 + self.y0)

    def forward_pair(self, pair: PointPair) -> PointPair:
        """Both ends of an arrow to the other frame."""
        return replace(pair, handle=self.forward(pair.handle), target=self.forward(pair.target))

    def contains(self, p: Point) -> bool:
        """True if an image point lies within the rectangle."""
        return (
            self.x0 - 0.5 <= p.x <= self.x0 + self.width - 0.5
            and self.y0 - 0.5 <= p.y <= self.y0 + self.height - 0.5
        )


@dataclass(frozen=True, slots=True)
class Viewport:
    """View of the canvas: the rectangle of the picture and the canvas's size in CSS pixels.

    A zoomed view is only another rectangle. With k = image pixels per canvas pixel:

        image = x0 + canvas * k + (min(k, 1) - 1) / 2

    A mouse reports the corner of the pixel that it is in. Shrunken (k >= 1) the report names the
    image pixel under that corner, so image = canvas * k; at k = 1, pixel i is i. Magnified, the
    middle of the canvas pixel is meant, and the formula is the area mapping of `Frame`. Plain
    canvas * k would be half an image pixel off then: 4 canvas pixels at eightfold zoom.

    That is for points, which name a pixel. The outlines of painted areas lie between pixels
    (a brush of radius 2 at canvas 10 covers the columns 8 to 11): `outline_to_image` is
    x0 + canvas * k - 1/2 at every zoom. With it a mask is what the browser painted.
    """

    x0: float
    y0: float
    width: float
    height: float
    canvas_width: int
    canvas_height: int

    def __post_init__(self) -> None:
        """Refuse what is not a finite, non-empty rectangle."""
        values = (self.x0, self.y0, self.width, self.height, self.canvas_width, self.canvas_height)
        if not all(math.isfinite(v) for v in values) or min(values[2:]) <= 0:
            raise BadInput(
                f"A view of {self.width:g}x{self.height:g} px on a canvas of "
                f"{self.canvas_width}x{self.canvas_height} px is empty.",
                code="empty",
            )

    @classmethod
    def fit(cls, width: int, height: int, canvas_width: int, canvas_height: int = 0) -> Viewport:
        """The whole picture on a canvas; the height follows from the width, unless given."""
        tall = canvas_height or max(1, round(height * canvas_width / width))
        return cls(0, 0, width, height, canvas_width, tall)

    @property
    def scale(self) -> tuple[float, float]:
        """k: image pixels per canvas pixel, in x and y."""
        return self.width / self.canvas_width, self.height / self.canvas_height

    @property
    def k(self) -> float:
        """Image pixels per canvas pixel for lengths (the geometric mean of both directions)."""
        kx, ky = self.scale
        return math.sqrt(kx * ky)

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """Canvas to image pixels."""
        kx, ky = self.scale
        return self.x0 + x * kx + _half(kx), self.y0 + y * ky + _half(ky)

    def to_canvas(self, x: float, y: float) -> tuple[float, float]:
        """Image to canvas pixels."""
        kx, ky = self.scale
        return (x - self.x0 - _half(kx)) / kx, (y - self.y0 - _half(ky)) / ky

    def outline_to_image(self, x: float, y: float) -> tuple[float, float]:
        """A position on a painted area's outline (or brush centre), canvas to image pixels."""
        kx, ky = self.scale
        return self.x0 + x * kx - 0.5, self.y0 + y * ky - 0.5

    def outline_to_canvas(self, x: float, y: float) -> tuple[float, float]:
        """The inverse of `outline_to_image`."""
        kx, ky = self.scale
        return (x + 0.5 - self.x0) / kx, (y + 0.5 - self.y0) / ky

    def zoomed(self, factor: float, at: Point, image_width: int, image_height: int) -> Viewport:
        """This canvas with a view `factor` times magnified against the whole, centred on `at`.

        The view stays inside the picture; factor 1 (or less) shows all of it.
        """
        f = max(1.0, factor)
        w, h = image_width / f, image_height / f
        x0 = min(max(at.x + 0.5 - w / 2, 0.0), image_width - w)
        y0 = min(max(at.y + 0.5 - h / 2, 0.0), image_height - h)
        # Whole pixels: the background shown behind the canvas is cut on pixel borders.
        x0, y0 = float(round(x0)), float(round(y0))
        w, h = (
            min(float(max(1, round(w))), image_width - x0),
            min(float(max(1, round(h))), image_height - y0),
        )
        return Viewport(x0, y0, w, h, self.canvas_width, self.canvas_height)


def _half(k: float) -> float:
    return (min(k, 1.0) - 1.0) / 2


def feature_grid_size(width: int, height: int) -> tuple[int, int]:
    """(rows, cols) on which points are supervised and tracked: half the image, rounded down."""
    return max(1, height // 2), max(1, width // 2)


def latent_size(width: int, height: int) -> tuple[int, int]:
    """(rows, cols) of the latent: an eighth of the image, rounded down."""
    return max(1, height // 8), max(1, width // 8)


def to_feature_grid(
    points: Iterable[Point],
    size: tuple[int, int],
    feature_grid: tuple[int, int],
    *,
    parity: bool = True,
    clamp: bool = True,
) -> F64:
    """Points of a picture of `size` (width, height) to (row, col) on a feature grid of (rows, cols).

    parity: the reference's rule (docs/algorithm.md 1.5), round-half-even of y / H * rows and x / W * cols.
    It depends on y / H only, so image and working pixels give the same. This is what the
    `dragdiffusion` method uses: its tracker compares features at whole grid positions.
    Otherwise the area mapping (y + 0.5) * rows / H - 0.5, not rounded, which is where the
    feature map (resampled with align_corners=False) really has the point.

    clamp: into [0, rows - 1] x [0, cols - 1]. A point on the last row would round to `rows`, an
    IndexError in the reference.

    Returns: float64 [n, 2].
    """
    (w, h), (rows, cols) = size, feature_grid
    xy = np.array([(p.y, p.x) for p in points], np.float64).reshape(-1, 2)
    span, count = np.array([h, w], np.float64), np.array([rows, cols], np.float64)
    at = np.rint(xy / span * count) if parity else (xy + 0.5) * count / span - 0.5
    return np.clip(at, 0.0, count - 1.0) if clamp else at


def from_feature_grid(
    at: npt.ArrayLike, size: tuple[int, int], feature_grid: tuple[int, int], *, parity: bool = True
) -> tuple[Point, ...]:
    """(row, col) [n, 2] back to points of a picture of `size` (width, height), kept inside it.

    The inverse of `to_feature_grid` up to its rounding, so a point that has not moved is shown within
    half a grid step of where it was put.
    """
    (w, h), (rows, cols) = size, feature_grid
    rc = np.asarray(at, np.float64).reshape(-1, 2)
    span, count = np.array([h, w], np.float64), np.array([rows, cols], np.float64)
    yx = rc * span / count if parity else (rc + 0.5) * span / count - 0.5
    yx = np.clip(yx, 0.0, span - 1.0)
    return tuple(Point(float(x), float(y)) for y, x in yx)


def shrink_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Nearest-neighbour resample of a mask to (rows, cols), with the reference's choice of pixel.

    Source index = floor(i * in / out), as OpenCV's and torch's "nearest"; the quotient in float32,
    as torch has it, since at some sizes the last bit decides.
    """
    rows = _nearest(mask.shape[0], size[0])
    cols = _nearest(mask.shape[1], size[1])
    return np.ascontiguousarray(mask[rows][:, cols])


def mask_levels(mask: Mask) -> tuple[Mask, Mask]:
    """A working-size mask on the feature grid and, from there, on the latent (docs/algorithm.md 1.5)."""
    height, width = mask.shape
    feature_grid = shrink_mask(mask, feature_grid_size(width, height))
    return feature_grid, shrink_mask(feature_grid, latent_size(width, height))


def _nearest(n_in: int, n_out: int) -> npt.NDArray[np.int64]:
    scale = np.float32(n_in) / np.float32(n_out)
    at = np.floor(np.arange(n_out, dtype=np.float32) * scale).astype(np.int64)
    kept: npt.NDArray[np.int64] = np.minimum(at, n_in - 1)
    return kept


def clamp_point(p: Point, width: int, height: int) -> Point:
    """The nearest point on the picture's pixel centres' extent, [0, W - 1] x [0, H - 1]."""
    return Point(min(max(p.x, 0.0), width - 1.0), min(max(p.y, 0.0), height - 1.0))


def bounds(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Least x, least y, greatest x, greatest y of at least one point."""
    xs, ys = [p.x for p in points], [p.y for p in points]
    return min(xs), min(ys), max(xs), max(ys)
