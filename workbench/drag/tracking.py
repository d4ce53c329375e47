"""Feature lattice: samples, patches and point tracking without an upsampled map.

The reference upsamples the feature map [1,C,fh,fw] to half the image ("the lattice", H/2 x W/2;
bilinear, align_corners False) and then reads a few patches of it, between lattice points with
bilinear weights again. Both interpolations are linear and separable, so that a patch is
A_rows @ window @ A_cols^T with a few native cells as the window; that is what is computed here.
The result is equal, and a 640-channel map of half the image is never made.

Frame: (row, col) in lattice pixels; lattice point i lies at (i + 0.5) * cells / lattice - 0.5 on
the native axis. Positions outside the lattice are clamped to its border. P points are one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Tensor = torch.Tensor
Size = tuple[int, int]

_AT_ONCE = 1 << 25  # elements of one batch of tracking windows (128 MiB in float32)


def _axis(first: Tensor, count: int, lattice: int, cells: int, span: int) -> tuple[Tensor, Tensor]:
    """Native indices and weights of `count` lattice positions first, first + 1, ... on one axis.

    Returns:
        indices [P,span] of native cells, and weights [P,count,span].
    """
    position = first[:, None] + torch.arange(count, device=first.device, dtype=first.dtype)
    position = position.clamp(0, lattice - 1)
    low = position.floor()
    high = (low + 1).clamp(max=lattice - 1)
    between = position - low
    start = _native(low[:, 0], lattice, cells).floor().long().clamp(0, cells - span)
    window = start[:, None] + torch.arange(span, device=first.device)
    weights = torch.zeros(*position.shape, span, device=first.device, dtype=first.dtype)
    for point, share in ((low, 1 - between), (high, between)):
        source = _native(point, lattice, cells)
        left = source.floor()
        fraction = source - left
        right = (left + 1).clamp(max=cells - 1)
        for cell, part in ((left, 1 - fraction), (right, fraction)):
            hit = cell.long()[..., None] == window[:, None, :]
            weights = weights + (share * part)[..., None] * hit
    return window, weights


def _native(lattice_index: Tensor, lattice: int, cells: int) -> Tensor:
    """Position of a lattice point on the native axis, by torch's bilinear upsampling."""
    return ((lattice_index + 0.5) * (cells / lattice) - 0.5).clamp(min=0)


def _span(count: int, lattice: int, cells: int) -> int:
    """Native cells that `count` neighbouring lattice positions can touch on one axis."""
    return min(cells, math.ceil(count * cells / lattice) + 2)


def patches(feature: Tensor, lattice: Size, first: Tensor, count: int) -> Tensor:
    """Square patches of the upsampled map, float32, differentiable in the feature.

    Args:
        feature: native map [1,C,fh,fw], any float type.
        lattice: (rows, cols) of the upsampled map.
        first: (row, col) of each patch's top-left sample [P,2], float32, fractions allowed.
        count: samples per side, one lattice pixel apart.

    Returns:
        [P,C,count,count].
    """
    _, channels, fh, fw = feature.shape
    rows, row_weights = _axis(first[:, 0], count, lattice[0], fh, _span(count, lattice[0], fh))
    cols, col_weights = _axis(first[:, 1], count, lattice[1], fw, _span(count, lattice[1], fw))
    cells = feature[0].permute(1, 2, 0).reshape(fh * fw, channels)
    index = rows[:, :, None] * fw + cols[:, None, :]
    window = cells[index].float()  # [P,rows,cols,C]
    return torch.einsum("pkr,prsc,pls->pckl", row_weights, window, col_weights)


def samples(feature: Tensor, lattice: Size, points: Tensor) -> Tensor:
    """Single samples of the upsampled map: points [P,2] (row, col) -> [P,C] float32."""
    return patches(feature, lattice, points, 1)[:, :, 0, 0]


def inside(first: Tensor, count: int, lattice: Size) -> Tensor:
    """Mask of the samples of integer patches that lie on the lattice: [P,count,count] bool."""
    steps = torch.arange(count, device=first.device)
    row, col = first[:, :1] + steps, first[:, 1:] + steps
    good_row = (row >= 0) & (row <= lattice[0] - 1)
    good_col = (col >= 0) & (col <= lattice[1] - 1)
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
    lattice: Size,
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
        lattice: (rows, cols).
        points: current positions [P,2]; the window is centred on the nearest lattice point.
        templates: features at the original handles [P,C], float32.
        radius: of the window, lattice pixels.
        parity: the reference's tie rule.

    Returns:
        New integer positions and their costs.
    """
    side = 2 * radius + 1
    per = max(1, _AT_ONCE // (feature.shape[1] * side * side))
    parts = [
        _track(feature, lattice, points[i : i + per], templates[i : i + per], radius, parity)
        for i in range(0, len(points), per)
    ]
    if not parts:
        return Tracked(points.clone(), points.new_zeros(0))
    return Tracked(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _track(
    feature: Tensor, lattice: Size, points: Tensor, templates: Tensor, radius: int, parity: bool
) -> tuple[Tensor, Tensor]:
    side = 2 * radius + 1
    row, col = points.round().unbind(1)  # limits as numbers: a tensor would be sent to the device
    centre = torch.stack([row.clamp(0, lattice[0] - 1), col.clamp(0, lattice[1] - 1)], dim=1)
    first = centre - radius
    # patches() clamps each position to the border, which keeps window and position in step:
    # an outside candidate repeats the border's and is ruled out below
    found = patches(feature, lattice, first, side)
    channels = feature.shape[1]
    cost = (templates[:, :, None, None] - found).abs().sum(1)
    cost = cost.masked_fill(~inside(first, side, lattice), math.inf).flatten(1)
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
