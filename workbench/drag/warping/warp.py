"""Moving a latent along arrows in one step, without optimisation (the idea of FastDrag, 2405.15769).

A latent at noise level t is sqrt(a) x0 + sqrt(1-a) eps. The clean part x0 is smooth and may be
interpolated between cells; the noise eps must keep its unit variance, which interpolation lowers.
Both are warped along one field and put together again.

Frame: (row, col) in latent cells; the centre of the top-left cell is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Size = tuple[int, int]

_REACH = 0.75  # cells: who lands farther from a cell's centre does not cover it


@dataclass(frozen=True, slots=True)
class Field:
    """Where each cell of the result comes from.

    `source` [h,w,2] positions (row, col); `hole` [h,w] bool: nothing came to lie there, so that
    `source` is the cell itself; `moved` [h,w] bool: cells that are not simply their own.
    """

    source: Tensor
    hole: Tensor
    moved: Tensor


def to_cells(points: Tensor, lattice: Size, size: Size) -> Tensor:
    """Lattice positions [P,2] as latent positions, cell centre on cell centre."""
    scale = torch.tensor([size[0] / lattice[0], size[1] / lattice[1]], device=points.device)
    return (points + 0.5) * scale - 0.5


def arrow_mask(handles: Tensor, targets: Tensor, size: Size, *, margin: float = 3.0) -> Tensor:
    """Cells [h,w] within reach of an arrow, where no mask was painted: margin + 0.6 of its length."""
    cells = _cells(size, handles.device)
    way = targets - handles
    along = torch.einsum("hwpc,pc->hwp", cells[:, :, None] - handles, way)
    share = (along / (way**2).sum(1).clamp(min=1e-9)).clamp(0, 1)
    nearest = handles + share[..., None] * way
    gap = (cells[:, :, None] - nearest).norm(dim=-1)
    reach: Tensor = (gap <= margin + 0.6 * way.norm(dim=1)).any(dim=-1)
    return reach.float()


def depth(mask: Tensor) -> Tensor:
    """Distance of each painted cell [h,w] to the nearest unpainted one, 0 outside.

    What lies beyond the picture counts as painted: what touches its border may move along it.
    Without any unpainted cell, the distance to the border is taken.
    """
    h, w = mask.shape
    kept = ~mask.bool()
    if not bool(kept.any()):
        cells = _cells((h, w), mask.device)
        row, col = cells[..., 0], cells[..., 1]
        return torch.stack([row, h - 1 - row, col, w - 1 - col]).amin(0) + 1.0
    # exact Euclidean distance: along each column, then over columns
    far = float(h + w)
    rows = torch.arange(h, device=mask.device, dtype=torch.float32)[:, None]
    above = torch.where(kept, rows, -far).cummax(0).values
    below = torch.where(kept, rows, 2 * far).flip(0).cummin(0).values.flip(0)
    column = torch.minimum(rows - above, below - rows) ** 2
    cols = torch.arange(w, device=mask.device, dtype=torch.float32)
    across = (cols[:, None] - cols[None, :]) ** 2
    deep: Tensor = (across[None] + column[:, None, :]).amin(-1).sqrt()
    return deep


def influence(handles: Tensor, deep: Tensor, rigid: float = 0.75) -> Tensor:
    """How much of each arrow each cell takes part in [P,h,w]: 1 at the handle, 0 at the mask's edge.

    s = depth / (depth + distance to the handle), made flat at both ends, so that what is close to
    the handle moves as one piece; it fits masks of any shape without a parameter. Within `rigid`
    cells of the handle (at least the cell in which it lies) the influence is 1.
    """
    h, w = deep.shape
    gap = (_cells((h, w), deep.device)[None] - handles[:, None, None]).norm(dim=-1)
    s: Tensor = deep / (deep + (gap - rigid).clamp(min=0)).clamp(min=1e-9)
    return s * s * (3 - 2 * s)


def displacement(
    handles: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    sharpness: float = 2.0,
    rigid: float = 0.75,
) -> tuple[Tensor, Tensor]:
    """How far each painted cell travels [h,w,2], and with what priority [h,w].

    Arrows are weighted by (influence / (1 - influence))^sharpness: at a handle its own arrow counts
    alone, in between the stronger one wins. Averaging crossing arrows instead would move what lies
    between them nowhere.
    """
    power = influence(handles, depth(mask), rigid)
    weight = (power / (1 - power).clamp(min=1e-4)).clamp(min=1e-12) ** sharpness
    weight = weight / weight.sum(0)
    travel = torch.einsum("phw,phw,pc->hwc", weight, power, targets - handles)
    priority: Tensor = (weight * power).sum(0)
    return travel * mask[..., None], priority * mask


def forward_field(travel: Tensor, priority: Tensor, mask: Tensor) -> Field:
    """Let each painted cell land at its own place + travel, and ask each cell who landed there.

    Where several land, the one with the highest priority wins (what is nearest to a handle lies on
    top); the source is exact to fractions of a cell. Painted cells in which nobody landed are holes.
    """
    h, w = mask.shape
    own = _cells((h, w), mask.device)
    painted = mask.flatten().bool()
    start, rank = own.reshape(-1, 2)[painted], priority.flatten()[painted]
    landed = start + travel.reshape(-1, 2)[painted]
    corner = landed.floor()
    best = torch.full((h * w,), -torch.inf, device=mask.device)
    winner = torch.full((h * w,), len(start), device=mask.device)
    offers = []
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):  # each lands near four cells
        cell = corner + torch.tensor(step, device=mask.device)
        gap = cell - landed
        row, col = cell[:, 0].long(), cell[:, 1].long()
        good = (row >= 0) & (row < h) & (col >= 0) & (col < w) & (gap.abs().amax(1) <= _REACH)
        index = row.clamp(0, h - 1) * w + col.clamp(0, w - 1)
        good = good & painted[index]
        # priority decides; of equal ones the closer
        score = torch.where(good, rank - 0.05 * gap.norm(dim=1), -torch.inf)
        best = best.scatter_reduce(0, index, score, "amax")
        offers.append((index, score, good))
    order = torch.arange(len(start), device=mask.device)
    for index, score, good in offers:  # of exact ties the first, so that every run is the same
        mine = torch.where(good & (score == best[index]), order, len(start))
        winner = winner.scatter_reduce(0, index, mine, "amin")
    hole = painted & (winner == len(start))
    taken = painted & ~hole
    source = own.reshape(-1, 2).clone()
    chosen = winner[taken]
    source[taken] = start[chosen] + source[taken] - landed[chosen]
    return _field(source.reshape(h, w, 2), hole.reshape(h, w), own)


def backward_field(
    handles: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    sharpness: float = 2.0,
    rigid: float = 0.75,
) -> Field:
    """Stretch: each cell reads from where the arrow that ends nearest to it points back. No holes."""
    ahead = 2 * targets - handles
    travel, _ = displacement(targets, ahead, mask, sharpness=sharpness, rigid=rigid)
    own = _cells((mask.shape[0], mask.shape[1]), mask.device)
    return _field(own - travel, torch.zeros_like(mask, dtype=torch.bool), own)


def _cells(size: Size, device: torch.device) -> Tensor:
    """(row, col) of every cell [h,w,2], float32."""
    rows = torch.arange(size[0], device=device, dtype=torch.float32)
    cols = torch.arange(size[1], device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1)


def _field(source: Tensor, hole: Tensor, own: Tensor) -> Field:
    limit = own[-1, -1]
    source = torch.minimum(source.clamp(min=0), limit)
    return Field(source, hole, hole | ((source - own).norm(dim=-1) > 1e-3))


def pick(latent: Tensor, field: Field, *, noise: bool = False) -> Tensor:
    """Read a latent [1,C,h,w] along a field, bilinearly; holes stay what they were.

    With `noise`, each value is divided by the norm of its four weights, so that independent unit
    noise keeps unit variance wherever between cells it is read.
    """
    h, w = field.hole.shape
    scale = torch.tensor([2 / h, 2 / w], device=latent.device)
    at = (field.source + 0.5) * scale - 1
    grid = at.flip(-1)[None].to(latent.dtype)
    out = F.grid_sample(latent, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if noise:
        part = field.source - field.source.floor()
        axis = part**2 + (1 - part) ** 2
        out = out / (axis[..., 0] * axis[..., 1]).sqrt().to(latent.dtype)
    return torch.where(field.moved & ~field.hole, out, latent)


def fill(latent: Tensor, field: Field) -> Tensor:
    """Close the holes of a warped clean latent from the nearest good cell in each of four directions.

    Weights are inverse distances (FastDrag's bilateral nearest-neighbour interpolation).
    """
    good = (~field.hole).float()
    if bool(good.all()) or not bool(good.any()):
        return latent
    total = torch.zeros_like(latent)
    weight = torch.zeros_like(good)
    for axis, backwards in ((0, False), (0, True), (1, False), (1, True)):
        index, distance = _nearest(good.bool(), axis, backwards)
        share = torch.where(distance > 0, 1 / distance.clamp(min=1), 0.0)
        rows, cols = index
        total = total + latent[:, :, rows, cols] * share
        weight = weight + share
    return torch.where(field.hole, total / weight.clamp(min=1e-9), latent)


def _nearest(good: Tensor, axis: int, backwards: bool) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Index of the nearest good cell in one direction, and its distance (0 = there is none)."""
    h, w = good.shape
    view = good.flip(axis) if backwards else good
    steps = torch.arange(good.shape[axis], device=good.device)
    steps = steps[:, None] if axis == 0 else steps[None, :]
    last = torch.where(view, steps.expand(h, w), -1).cummax(dim=axis).values
    distance = torch.where(last >= 0, steps - last, 0)
    found = last.clamp(min=0)
    if backwards:
        found, distance = (good.shape[axis] - 1 - found).flip(axis), distance.flip(axis)
    other = torch.arange(w if axis == 0 else h, device=good.device)
    other = (other[None, :] if axis == 0 else other[:, None]).expand(h, w)
    return ((found, other) if axis == 0 else (other, found)), distance.float()
