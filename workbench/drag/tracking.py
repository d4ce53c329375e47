"""Point tracking on the feature grid, and template matching of a handle's pixels in the result.

The reference upsamples the feature map [1,C,fh,fw] to half the image ("the feature grid", H/2 x W/2;
bilinear, align_corners False) and then reads a few patches of it, between grid points with
bilinear weights again. Both interpolations are linear and separable, so that a patch is
A_rows @ window @ A_cols^T with a few native cells as the window; that is what is computed here.
The result is equal, and a 640-channel map of half the image is never made.

Frame: (row, col) in grid pixels; grid point i lies at (i + 0.5) * cells / size - 0.5 on
the native axis. Positions outside the feature grid are clamped to its border. P points are one batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.core.request import Point, PointPair

Tensor = torch.Tensor
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Size = tuple[int, int]

_AT_ONCE = 1 << 25  # elements of one batch of tracking windows (128 MiB in float32)


def _axis(first: Tensor, count: int, size: int, cells: int, span: int) -> tuple[Tensor, Tensor]:
    """Native indices and weights of `count` grid positions first, first + 1, ... on one axis.

    Returns:
        indices [P,span] of native cells, and weights [P,count,span].
    """
    position = first[:, None] + torch.arange(count, device=first.device, dtype=first.dtype)
    position = position.clamp(0, size - 1)
    low = position.floor()
    high = (low + 1).clamp(max=size - 1)
    between = position - low
    start = _native(low[:, 0], size, cells).floor().long().clamp(0, cells - span)
    window = start[:, None] + torch.arange(span, device=first.device)
    weights = torch.zeros(*position.shape, span, device=first.device, dtype=first.dtype)
    for point, share in ((low, 1 - between), (high, between)):
        source = _native(point, size, cells)
        left = source.floor()
        fraction = source - left
        right = (left + 1).clamp(max=cells - 1)
        for cell, part in ((left, 1 - fraction), (right, fraction)):
            hit = cell.long()[..., None] == window[:, None, :]
            weights = weights + (share * part)[..., None] * hit
    return window, weights


def _native(grid_index: Tensor, size: int, cells: int) -> Tensor:
    """Position of a grid point on the native axis, by torch's bilinear upsampling."""
    return ((grid_index + 0.5) * (cells / size) - 0.5).clamp(min=0)


def _span(count: int, size: int, cells: int) -> int:
    """Native cells that `count` neighbouring grid positions can touch on one axis."""
    return min(cells, math.ceil(count * cells / size) + 2)


def patches(feature: Tensor, feature_grid: Size, first: Tensor, count: int) -> Tensor:
    """Square patches of the upsampled map, float32, differentiable in the feature.

    Args:
        feature: native map [1,C,fh,fw], any float type.
        feature_grid: (rows, cols) of the upsampled map.
        first: (row, col) of each patch's top-left sample [P,2], float32, fractions allowed.
        count: samples per side, one grid pixel apart.

    Returns:
        [P,C,count,count].
    """
    _, channels, fh, fw = feature.shape
    rows, row_weights = _axis(
        first[:, 0], count, feature_grid[0], fh, _span(count, feature_grid[0], fh)
    )
    cols, col_weights = _axis(
        first[:, 1], count, feature_grid[1], fw, _span(count, feature_grid[1], fw)
    )
    cells = feature[0].permute(1, 2, 0).reshape(fh * fw, channels)
    index = rows[:, :, None] * fw + cols[:, None, :]
    window = cells[index].float()  # [P,rows,cols,C]
    return torch.einsum("pkr,prsc,pls->pckl", row_weights, window, col_weights)


def samples(feature: Tensor, feature_grid: Size, points: Tensor) -> Tensor:
    """Single samples of the upsampled map: points [P,2] (row, col) -> [P,C] float32."""
    return patches(feature, feature_grid, points, 1)[:, :, 0, 0]


def inside(first: Tensor, count: int, feature_grid: Size) -> Tensor:
    """Mask of the samples of integer patches that lie on the feature grid: [P,count,count] bool."""
    steps = torch.arange(count, device=first.device)
    row, col = first[:, :1] + steps, first[:, 1:] + steps
    good_row = (row >= 0) & (row <= feature_grid[0] - 1)
    good_col = (col >= 0) & (col <= feature_grid[1] - 1)
    return good_row[:, :, None] & good_col[:, None, :]


def contrast(feature: Tensor, templates: Tensor) -> Tensor:
    """Mean |difference| [P] of each template [P,C] to all places of the map.

    The unit of doubt: a match whose cost is a small part of it is a find, one that costs as much is
    any place.
    """
    cells = feature[0].flatten(1).T.float()
    return torch.cdist(templates, cells, p=1).mean(1) / feature.shape[1]


@dataclass(frozen=True, slots=True)
class Tracked:
    """Positions of the templates: `points` [P,2] float32, `cost` [P] mean |difference|. On the
    feature's device.
    """  # fmt: skip

    points: Tensor
    cost: Tensor


@torch.no_grad()
def track(
    feature: Tensor,
    feature_grid: Size,
    points: Tensor,
    templates: Tensor,
    radius: int,
    *,
    parity: bool = False,
) -> Tracked:
    """Nearest neighbour of each template in a window round its point (paper Eq. 6, docs/algorithm.md 2).

    Distance is the L1 norm over channels. The window has side 2 radius + 1 and is clipped at the
    border. Equal distances (flat features) go to the candidate nearest to the current point, so that
    a point on a flat surface stays; with `parity` to the first in row-major order.

    Args:
        feature: native map [1,C,fh,fw] of now.
        feature_grid: (rows, cols).
        points: current positions [P,2]; the window is centred on the nearest grid point.
        templates: features at the original handles [P,C], float32.
        radius: of the window, grid pixels.
        parity: the reference's tie rule.

    Returns:
        New integer positions and their costs.
    """
    side = 2 * radius + 1
    per = max(1, _AT_ONCE // (feature.shape[1] * side * side))
    parts = [
        _track(feature, feature_grid, points[i : i + per], templates[i : i + per], radius, parity)
        for i in range(0, len(points), per)
    ]
    if not parts:
        return Tracked(points.clone(), points.new_zeros(0))
    return Tracked(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _track(
    feature: Tensor,
    feature_grid: Size,
    points: Tensor,
    templates: Tensor,
    radius: int,
    parity: bool,
) -> tuple[Tensor, Tensor]:
    side = 2 * radius + 1
    row, col = points.round().unbind(1)  # limits as numbers: a tensor would be sent to the device
    centre = torch.stack(
        [row.clamp(0, feature_grid[0] - 1), col.clamp(0, feature_grid[1] - 1)], dim=1
    )
    first = centre - radius
    # patches() clamps each position to the border, which keeps window and position in step:
    # an outside candidate repeats the border's and is ruled out below
    found = patches(feature, feature_grid, first, side)
    channels = feature.shape[1]
    cost = (templates[:, :, None, None] - found).abs().sum(1)
    cost = cost.masked_fill(~inside(first, side, feature_grid), math.inf).flatten(1)
    least = cost.min(dim=1).values
    if parity:
        best = cost.argmin(dim=1)
    else:
        steps = torch.arange(-radius, radius + 1, device=points.device, dtype=points.dtype)
        away = (steps[:, None] ** 2 + steps[None, :] ** 2).flatten()
        # costs that differ by rounding only are a tie: 1e-6 of the template's own norm
        tie = cost <= (least + 1e-6 * templates.abs().sum(1))[:, None]
        best = torch.where(tie, away, math.inf).argmin(dim=1)
    moved = first + torch.stack([best // side, best % side], dim=1).to(points.dtype)
    chosen = cost.gather(1, best[:, None])[:, 0]
    return moved, chosen / channels


@dataclass(frozen=True, slots=True)
class Found:
    """Position of a found feature in image pixels, and its similarity (1 = the same)."""

    point: Point
    score: float


@dataclass(frozen=True, slots=True)
class Disc:
    """The part of the picture in which a feature is looked for."""

    centre: Point
    radius: float

    @classmethod
    def around(cls, pair: PointPair) -> Disc:
        """Both ends of the arrow, and as far again beyond them as half of it, at least 16 px.

        Small enough that the other ear is not taken for the one that was dragged, large enough for a
        feature that stayed, overshot or slipped aside.
        """
        half = pair.length / 2
        middle = Point((pair.handle.x + pair.target.x) / 2, (pair.handle.y + pair.target.y) / 2)
        return cls(middle, half + max(16.0, half))


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The locator; its defaults were chosen on truth pictures (docs/benchmarks.md).

    First at half the resolution over all turns and sizes, then around the best few places at the
    full one, between the turns and sizes too.
    """

    radius: float = 18.0  # px of the patch in a picture of 256 px; grows with the picture
    sigma: float = 8.0  # px, of the patch's Gaussian weight
    angles: tuple[float, ...] = (-60, -45, -30, -15, 0, 15, 30, 45, 60)  # degrees
    scales: tuple[float, ...] = (0.8, 0.9, 1.0, 1.1, 1.25)
    flat: float = 6.0  # contrast (0..255) below which a patch counts as featureless
    tint: float = 0.25  # weight of the squared difference in mean colour
    candidates: int = 4

    name = "template"

    def find(self, source: U8, result: U8, pair: PointPair) -> Found:
        """The place in `result` that looks most like the source around the pair's handle.

        Both pictures are uint8 [H, W, 3] of one size; the pair is in image pixels.
        """
        unit = max(1.0, max(source.shape[:2]) / 256)
        disc = Disc.around(pair)
        # whole pixels on both sides: the source's own patch is then found exactly
        handle = Point(round(pair.handle.x), round(pair.handle.y))
        soft = _softened(source), _softened(result)
        rough = [
            self._search(*soft, handle, disc, self.angles, scale, unit, 2) for scale in self.scales
        ]
        best: Hit | None = None
        for hit in _apart([h for hits in rough for h in hits], 8 * unit)[: self.candidates]:
            near = Disc(hit.point, 3 * unit)
            for scale in (0.95 * hit.scale, hit.scale, 1.05 * hit.scale):
                turns = (hit.angle - 7.5, hit.angle, hit.angle + 7.5)
                for found in self._search(source, result, handle, near, turns, scale, unit, 1):
                    if best is None or found.score > best.score:
                        best = found
        assert best is not None
        x = best.point.x + pair.handle.x - handle.x
        y = best.point.y + pair.handle.y - handle.y
        return Found(Point(x, y), best.score)

    def _search(
        self,
        source: U8 | F32,
        result: U8 | F32,
        handle: Point,
        disc: Disc,
        angles: Sequence[float],
        scale: float,
        unit: float,
        step: int,
    ) -> list[Hit]:
        """The best place of each turn at one size, on every `step`-th pixel of the disc."""
        radius = max(2, math.ceil(self.radius * unit * scale / step))
        weight = self._weight(radius, self.sigma * unit * scale / step)
        area, x0, y0 = _cut(result, disc, radius, step)
        patches = np.stack([_patch(source, handle, radius, a, scale, step) for a in angles])
        scores = _correlate(area, patches, weight, self.flat, self.tint)
        rows, cols = np.indices(scores.shape[1:])
        y, x = y0 + rows * step, x0 + cols * step
        scores[:, np.hypot(y - disc.centre.y, x - disc.centre.x) > disc.radius] = -2.0
        hits = []
        for angle, score in zip(angles, scores, strict=True):
            row, col = np.unravel_index(int(score.argmax()), score.shape)
            dy, dx = _peak(score, int(row), int(col))
            at = Point(x0 + (float(col) + dx) * step, y0 + (float(row) + dy) * step)
            hits.append(Hit(float(score[row, col]), at, float(angle), scale))
        return hits

    @staticmethod
    def _weight(radius: int, sigma: float) -> F32:
        steps = np.arange(-radius, radius + 1)
        square = steps[:, None] ** 2 + steps[None] ** 2
        weight = np.exp(-square / (2 * sigma**2)) * (square <= radius**2)
        out: F32 = (weight / weight.sum()).astype(np.float32)
        return out


@dataclass(frozen=True, slots=True)
class Hit:
    """A candidate: how alike, where, and how the patch was turned and enlarged."""

    score: float
    point: Point
    angle: float
    scale: float


def _apart(hits: Sequence[Hit], gap: float) -> list[Hit]:
    """The best hits first, without those that lie within `gap` of a better one."""
    kept: list[Hit] = []
    for hit in sorted(hits, key=lambda h: -h.score):
        if all(hit.point.distance(k.point) > gap for k in kept):
            kept.append(hit)
    return kept


def _softened(rgb: U8) -> F32:
    """The picture under a 1-2-1 filter each way, so that every second pixel stands for all."""
    x = rgb.astype(np.float32)
    for axis in (0, 1):
        before = np.concatenate([x.take([0], axis), x.take(range(x.shape[axis] - 1), axis)], axis)
        after = np.concatenate([x.take(range(1, x.shape[axis]), axis), x.take([-1], axis)], axis)
        x = (before + 2 * x + after) / 4
    return x


def _patch(rgb: U8 | F32, at: Point, radius: int, angle: float, scale: float, step: int) -> F32:
    """The surroundings of a point, turned by `angle` degrees and enlarged; float32 [3, n, n]."""
    steps = np.arange(-radius, radius + 1, dtype=np.float64) * step
    dy, dx = np.meshgrid(steps, steps, indexing="ij")
    c, s = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    return sample(rgb, at.y + c * dy - s * dx, at.x + c * dx + s * dy)


def sample(rgb: U8 | F32, y: NDArray[np.float64], x: NDArray[np.float64]) -> F32:
    """Bilinear colours at positions [n, m], the border repeated; float32 [3, n, m]."""
    height, width = rgb.shape[:2]
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    i, j = np.minimum(y.astype(int), height - 2), np.minimum(x.astype(int), width - 2)
    v, u = (y - i)[..., None], (x - j)[..., None]
    top = rgb[i, j] * (1 - u) + rgb[i, j + 1] * u
    low = rgb[i + 1, j] * (1 - u) + rgb[i + 1, j + 1] * u
    out: F32 = np.moveaxis(top * (1 - v) + low * v, -1, 0).astype(np.float32)
    return out


def _cut(rgb: U8 | F32, disc: Disc, margin: int, step: int) -> tuple[F32, int, int]:
    """Every `step`-th pixel of the disc's box with `margin` of them around, the border repeated.

    float32 [3, h, w], and the column and row (x0, y0) at which the first whole patch is centred.
    """
    height, width = rgb.shape[:2]
    x0 = max(0, math.floor(disc.centre.x - disc.radius))
    y0 = max(0, math.floor(disc.centre.y - disc.radius))
    x1 = min(width - 1, math.ceil(disc.centre.x + disc.radius))
    y1 = min(height - 1, math.ceil(disc.centre.y + disc.radius))
    reach = margin * step
    rows = np.clip(np.arange(y0 - reach, y1 + reach + 1, step), 0, height - 1)
    cols = np.clip(np.arange(x0 - reach, x1 + reach + 1, step), 0, width - 1)
    return np.moveaxis(rgb[np.ix_(rows, cols)], -1, 0).astype(np.float32), x0, y0


def _correlate(area: F32, patches: F32, weight: F32, flat: float, tint: float) -> F32:
    """Likeness of patches [K, 3, n, n] at every place of `area` [3, h, w]: [K, h-n+1, w-n+1].

        (2 cov + f) / (var_patch + var_place + tint |mean_patch - mean_place|^2 + f)

    with weighted moments over the patch, the channels together, and f = flat^2: the structure term
    of SSIM, that is, normalised cross-correlation times the likeness of the contrasts, with a price
    on another colour. It is 1 for the same patch and less for any other. Plain NCC, which was tried
    first, divides by sqrt(var_patch var_place) and so finds the middle of a plain sun or cheek on
    any edge that has the right direction.
    """
    import torch
    import torch.nn.functional as F

    w, t = torch.from_numpy(weight), torch.from_numpy(patches)
    kernel = w[None, None]
    shade = (t * w).sum((2, 3))
    t = t - shade[:, :, None, None]
    contrast = (t * t * w).sum((1, 2, 3))[:, None, None]
    a = torch.from_numpy(area)
    centre = a.mean((1, 2), keepdim=True)
    a = a - centre  # changes nothing in exact arithmetic; keeps the variances exact in float32
    means = F.conv2d(a[:, None], kernel)[:, 0]
    spread = F.conv2d((a * a)[:, None], kernel)[:, 0] - means * means
    local = spread.sum(0).clamp(min=0)[None]
    colour = ((shade[:, :, None, None] - (means + centre)[None]) ** 2).sum(1)
    top = 2 * F.conv2d(a[None], t * w)[0] + flat**2
    score: F32 = (top / (contrast + local + tint * colour + flat**2)).numpy()
    return score


def _peak(score: F32, row: int, col: int) -> tuple[float, float]:
    """Sub-pixel offset (dy, dx) of a maximum: the top of the parabola through its neighbours."""

    def top(before: float, here: float, after: float) -> float:
        bend = before - 2 * here + after
        if bend >= 0 or min(before, after) < -1:
            return 0.0
        return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))

    height, width = score.shape
    dy = top(*score[row - 1 : row + 2, col].tolist()) if 0 < row < height - 1 else 0.0
    dx = top(*score[row, col - 1 : col + 2].tolist()) if 0 < col < width - 1 else 0.0
    return dy, dx
