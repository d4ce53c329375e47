"""What the drag will roughly do, at once: a smooth pixel warp inside the mask, and the pictures
that show a drag (overlay, strip, heat map, sheet, animation; see `overlay` and `sheets`).

The warp is a flow: the handles travel to their targets in small steps, and in each step every
painted place moves by a smooth field that is exact at the handles and zero at the mask's edge.
Each result pixel is traced back through all steps to where its colour comes from. The steps make
the map one-to-one, so nothing folds over and no holes open, whatever the arrows; a single
displacement field tears as soon as an arrow is longer than the mask around it is wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.canvas.drawing import Drawing, Stroke
from workbench.canvas.overlay import Style, canvas_background, overlay
from workbench.canvas.rasterize import rasterise
from workbench.canvas.sheets import (
    animation,
    animation_frames,
    heatmap,
    sheet,
    strip,
)
from workbench.core.request import PointPair
from workbench.imaging.coords import Frame, shrink_mask
from workbench.imaging.decode import fast_resize
from workbench.imaging.resample import distance_inside, sampled, stretched

__all__ = [
    "Style",
    "animation",
    "animation_frames",
    "canvas_background",
    "heatmap",
    "overlay",
    "quick_warp",
    "sheet",
    "strip",
    "warp",
    "warp_field",
]

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

_NODES = 96  # grid nodes along the painted area's longer side
_STEPS = (6, 24)  # fewest and most steps of the flow
_BAND = 512  # rows at a time


def warp(rgb: U8, mask: Mask | None, pairs: Sequence[PointPair]) -> U8:
    """Move what is under each handle to its target, smoothly, inside the painted area only.

    Args:
        rgb: uint8 [H, W, 3].
        mask: bool [H, W], True = may change; None or empty = the whole picture may.
        pairs: arrows in image pixels; a pair of length 0 holds its point still.

    Returns:
        uint8 [H, W, 3], bit-identical outside the mask. At every target whose way lies in the mask
        it shows what was at the handle (to a tenth of a pixel); the rest is stretched between.
    """
    out = rgb.copy()
    field = warp_field(rgb.shape[1], rgb.shape[0], mask, pairs)
    if field is None:
        return out
    y0, x0, dy, dx = field
    h, w = dx.shape
    free = mask is None or not mask.any()
    for top in range(0, h, _BAND):
        rows = slice(top, min(h, top + _BAND))
        moved = (np.abs(dx[rows]) > 0.01) | (np.abs(dy[rows]) > 0.01)
        if mask is not None and not free:
            moved &= mask[y0 + rows.start : y0 + rows.stop, x0 : x0 + w]
        i, j = np.nonzero(moved)
        if not len(i):
            continue
        i += top
        out[i + y0, j + x0] = sampled(rgb, i + y0 - dy[i, j], j + x0 - dx[i, j])
    return out


def quick_warp(rgb: U8, mask: Mask | None, pairs: Sequence[PointPair], longest: int = 640) -> U8:
    """`warp` on a picture reduced to `longest` px, for showing beside the canvas: some 30 ms.

    Returns: uint8, the picture's aspect, longest side at most `longest`.
    """
    height, width = rgb.shape[:2]
    k = min(1.0, longest / max(width, height))
    size = max(1, round(width * k)), max(1, round(height * k))
    frame = Frame.whole(width, height, *size)
    small = shrink_mask(mask, (size[1], size[0])) if mask is not None else None
    if mask is not None and small is not None and mask.any() and not small.any():
        return fast_resize(rgb, size)  # a dot of a mask that vanishes at this size
    return warp(fast_resize(rgb, size), small, [frame.forward_pair(p) for p in pairs])


def warp_field(
    width: int, height: int, mask: Mask | None, pairs: Sequence[PointPair]
) -> tuple[int, int, F32, F32] | None:
    """Displacement of the warp on the painted area's box: (first row, first column, dy, dx).

    The result at (row, col) shows the source at (row - dy, col - dx); float32 [h, w] each, pixels.
    None when nothing moves.
    """
    if not any(p.length > 0 for p in pairs):
        return None
    region = _Region.of(_with_ways(mask, pairs, width, height))
    handles = np.array([(p.handle.y, p.handle.x) for p in pairs], np.float64)
    targets = np.array([(p.target.y, p.target.x) for p in pairs], np.float64)
    here = region.depth(handles) > 0
    if not here.any():
        return None
    handles, targets = handles[here], targets[here]
    ends = region.nodes()
    starts = _trace_back(region, ends, handles, targets)
    shape = (region.rows, region.cols, 2)
    dy, dx = region.upsample((ends - starts).reshape(shape))
    _correct(region, dy, dx, handles, targets)
    return region.y0, region.x0, dy, dx


def _with_ways(mask: Mask | None, pairs: Sequence[PointPair], width: int, height: int) -> Mask:
    """The mask, bridged where an arrow with both ends in it crosses something protected.

    Without the bridge the handle could not pass; what is protected still stays as it is, since
    only painted pixels are taken from the warp.
    """
    if mask is None or not mask.any():
        return np.ones((height, width), np.bool_)
    bridges = []
    for pair in pairs:
        t = np.linspace(0.0, 1.0, 2 + int(pair.length))
        x = np.rint(pair.handle.x + t * (pair.target.x - pair.handle.x)).astype(int)
        y = np.rint(pair.handle.y + t * (pair.target.y - pair.handle.y)).astype(int)
        there = mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
        if there[0] and there[-1] and not there.all():
            bridges.append(Stroke((pair.handle, pair.target), max(24.0, 0.5 * pair.length)))
    if not bridges:
        return mask
    return mask | rasterise(Drawing(shapes=tuple(bridges)), width, height)


@dataclass(frozen=True, slots=True)
class _Region:
    """The painted area's box, a grid of nodes on it, and the distance of each to the edge."""

    y0: int
    x0: int
    height: int
    width: int
    step: float  # pixels between nodes; node (i, j) lies at (y0 + (i - 1) step, ...)
    distance: F64  # [rows, cols], pixels to the nearest place that is kept

    @classmethod
    def of(cls, mask: Mask) -> _Region:
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y0, y1, x0, x1 = int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1
        h, w = y1 - y0, x1 - x0
        step = max(1.0, max(h, w) / _NODES)
        rows, cols = int(np.ceil((h - 1) / step)) + 3, int(np.ceil((w - 1) / step)) + 3
        at_y = np.round((np.arange(rows) - 1) * step).astype(int)
        at_x = np.round((np.arange(cols) - 1) * step).astype(int)
        good = np.outer((at_y >= 0) & (at_y < h), (at_x >= 0) & (at_x < w))
        box = mask[y0:y1, x0:x1]
        nodes = box[np.clip(at_y, 0, h - 1)][:, np.clip(at_x, 0, w - 1)] & good
        return cls(y0, x0, h, w, step, distance_inside(nodes) * step)

    @property
    def rows(self) -> int:
        return int(self.distance.shape[0])

    @property
    def cols(self) -> int:
        return int(self.distance.shape[1])

    def nodes(self) -> F64:
        """Positions (y, x) of all nodes, [n, 2]."""
        i, j = np.mgrid[: self.rows, : self.cols].reshape(2, -1)
        return np.stack([self.y0 + (i - 1) * self.step, self.x0 + (j - 1) * self.step], axis=1)

    def depth(self, at: F64) -> F64:
        """Distance to the mask's edge at (y, x) [n, 2], interpolated; 0 outside."""
        y = np.clip((at[:, 0] - self.y0) / self.step + 1, 0, self.rows - 1)
        x = np.clip((at[:, 1] - self.x0) / self.step + 1, 0, self.cols - 1)
        i = np.minimum(y.astype(np.int64), self.rows - 2)
        j = np.minimum(x.astype(np.int64), self.cols - 2)
        v, u = y - i, x - j
        d = self.distance
        top = d[i, j] * (1 - u) + d[i, j + 1] * u
        low = d[i + 1, j] * (1 - u) + d[i + 1, j + 1] * u
        deep: F64 = top * (1 - v) + low * v
        return deep

    def upsample(self, field: F64) -> tuple[F32, F32]:
        """A [rows, cols, 2] field on the nodes to all pixels of the box."""
        box = (
            1.0,
            1.0,
            1.0 + (self.width - 1) / self.step,
            1.0 + (self.height - 1) / self.step,
        )
        return (
            stretched(field[..., 0].astype(np.float32), box, self.width, self.height),
            stretched(field[..., 1].astype(np.float32), box, self.width, self.height),
        )


def _trace_back(region: _Region, ends: F64, handles: F64, targets: F64) -> F64:
    """Where the matter now at `ends` came from, when the handles have reached their targets."""
    way = targets - handles
    longest = float(np.hypot(way[:, 0], way[:, 1]).max())
    room = float(region.distance.max())
    steps = int(np.clip(np.ceil(6 * longest / max(room, 1.0)), *_STEPS))
    at = ends.copy()
    inside = region.depth(at) > 0
    live = at[inside]
    for k in range(steps, 0, -1):
        centres = handles + way * (k / steps)
        weights = _kernel(region, centres, centres)
        push, *_ = np.linalg.lstsq(weights, way / steps, rcond=1e-2)
        live = live - _kernel(region, live, centres) @ push
    at[inside] = live
    return at


def _kernel(region: _Region, at: F64, centres: F64) -> F64:
    """Influence [n, m] of each centre on each place: 1 at the centre, 0 at the mask's edge.

    s = depth / (depth + distance to the centre) falls linearly from the centre to the edge in
    every direction, so it fits masks of any shape without a parameter; the polynomial makes it
    flat at both ends (what is near the handle moves with it as one piece).
    """
    deep = region.depth(at)[:, None]
    gap = np.hypot(at[:, None, 0] - centres[:, 0], at[:, None, 1] - centres[:, 1])
    s = deep / np.maximum(deep + gap, 1e-9)
    return s * s * (3 - 2 * s)


def _correct(region: _Region, dy: F32, dx: F32, handles: F64, targets: F64) -> None:
    """Take away, around each target, what interpolation between the nodes left over."""
    h, w = dx.shape
    reach = 3 * region.step
    for _ in range(3):
        for (hy, hx), (ty, tx) in zip(handles, targets, strict=True):
            y, x = ty - region.y0, tx - region.x0
            if not (0 <= y <= h - 1 and 0 <= x <= w - 1):
                continue
            i, j = min(round(y), h - 1), min(round(x), w - 1)
            ey, ex = (ty - hy) - float(dy[i, j]), (tx - hx) - float(dx[i, j])
            if np.hypot(ey, ex) > region.step:
                continue  # the way is blocked by the mask's edge or by another arrow
            r = int(np.ceil(2.5 * reach))
            rows, cols = slice(max(0, i - r), i + r + 1), slice(max(0, j - r), j + r + 1)
            v = np.arange(h)[rows] - i
            u = np.arange(w)[cols] - j
            bump = np.exp(-(v[:, None] ** 2 + u[None, :] ** 2) / (2 * reach * reach))
            dy[rows, cols] += (bump * ey).astype(np.float32)
            dx[rows, cols] += (bump * ex).astype(np.float32)
