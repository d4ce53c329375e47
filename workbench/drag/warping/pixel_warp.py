"""Moving a picture's pieces along arrows in pixels: what hangs together moves, what lies behind stays.

A latent cell covers 8x8 pixels, so a warped latent cannot follow an outline, and shifts by fractions
of a cell are not what the autoencoder would give. Here the picture itself is moved and encoded anew.

Which pixels belong to what is dragged is asked of the picture (`numerics.heat`): heat flows from the
handles to everything unpainted, easily through even colour and hardly across edges. What stays warm
moves; a background, which is open to the unpainted part on all sides, stays cold, however close to a
handle it lies. A piece moves as rigidly as it can (`numerics.rigid`), tempered by the smooth
displacement of `numerics.warp`.

Frame: (row, col) in pixels of the working picture; the centre of the top-left pixel is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from workbench.drag.warping.arap import Rigidity, rigid_travel
from workbench.drag.warping.random_walker import attachment, resized
from workbench.drag.warping.warp import (
    Field,
    displacement,
    fill,
    forward_field,
    pick,
)

Tensor = torch.Tensor
Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Numbers of the pixel warp; lengths are shares of the picture's longer side."""

    rigid: float = 0.1  # radius round a handle that moves as one piece
    sharpness: float = 2.0  # between arrows: small blends them, large lets the nearest win
    edge: float = 0.05  # step in colour (0..1) that lets 1/e of the heat through
    warm: float = (
        0.2  # heat above which a pixel belongs to what is dragged (half of it is the limit)
    )
    rim: int = 2  # px (of 256) that are taken along with a piece: its anti-aliased outline
    longest: int = 256  # px at which heat and displacement are computed
    smooth: float = 0.3  # share of the smooth displacement in that of a piece; the rest is rigid
    hold: float = 0.07  # radius round a handle that is carried without turning
    rigidity: Rigidity = field(default_factory=Rigidity)


@dataclass(frozen=True, slots=True)
class Moved:
    """A picture with its pieces moved: `picture` [1,3,H,W], `changed` [H,W] bool."""

    picture: Tensor
    changed: Tensor


@torch.no_grad()
def move_pieces(
    picture: Tensor, mask: Tensor, handles: Tensor, targets: Tensor, options: Pieces
) -> Moved:
    """Move what the arrows hold on to, and close what it leaves behind.

    Args:
        picture: [1,3,H,W] in [-1,1].
        mask: [H,W], 1 = may change.
        handles, targets: [P,2] pixels.
        options: see there.

    Returns:
        The picture, unchanged outside the mask. Gaps inside a stretched piece are filled from around,
        what a piece uncovers from what did not move.
    """
    size = (mask.shape[0], mask.shape[1])
    field, moving = _field(picture, mask, handles, targets, options)
    out = pick(picture, field)
    came = (pick(moving[None, None], field)[0, 0] > 0.5) & ~field.hole
    hidden = field.hole | came
    behind = _smooth(fill(out, Field(field.source, hidden, hidden)), field.hole, ~came)
    around = fill(out, field)
    width = _odd(7 * max(size) / 256)
    piece = F.avg_pool2d(came.float()[None, None], width, 1, width // 2)[0, 0]
    out = torch.where(field.hole, torch.where(piece > 0.5, around, behind), out)
    return Moved(out, field.hole | field.moved)


def _smooth(x: Tensor, hole: Tensor, valid: Tensor, times: int = 24) -> Tensor:
    """Relax what was filled in [1,3,H,W]: means of 3x3 neighbours among `valid`, inside `hole` only.

    Filling along rows and columns leaves streaks, which a denoise at a low noise level would keep.
    """
    part = valid.float()[None, None]
    share = F.avg_pool2d(part, 3, 1, 1).clamp(min=1e-6)
    for _ in range(times):
        x = torch.where(hole, F.avg_pool2d(x * part, 3, 1, 1) / share, x)
    return x


def _field(
    picture: Tensor, mask: Tensor, handles: Tensor, targets: Tensor, options: Pieces
) -> tuple[Field, Tensor]:
    """Where each pixel comes from, and which pixels of the source move [H,W]."""
    size = (mask.shape[0], mask.shape[1])
    small = _reduced(size, options.longest)
    scale = torch.tensor([small[0] / size[0], small[1] / size[1]], device=mask.device)
    seen = F.interpolate(picture, small, mode="area") if small != size else picture
    area = (resized(mask, small) > 0.5).float() if small != size else mask
    begin, end = (handles + 0.5) * scale - 0.5, (targets + 0.5) * scale - 0.5
    smooth, _ = displacement(
        begin, end, area, sharpness=options.sharpness, rigid=options.rigid * max(small)
    )
    cut, corner = _painted(area)  # nothing happens elsewhere
    near = seen[(..., *cut)], area[cut]
    heat, travel = torch.zeros_like(area), smooth.clone()
    heat[cut] = attachment(*near, begin - corner, options.edge)
    travel[cut] += (1 - options.smooth) * (
        _rigid(*near, heat[cut], begin - corner, end - corner, max(small), options) - smooth[cut]
    )
    rim = 2 * max(1, round(options.rim * max(small) / 256)) + 1
    warm = F.max_pool2d(heat[None, None], rim, 1, rim // 2)[0, 0]
    moving = ((warm > options.warm / 2) & (area > 0)).float()
    priority = heat + 0.01  # what is nearest to a handle lies on top
    if small != size:
        moving = (resized(moving, size) > 0.5).float() * mask
        travel = resized(travel.permute(2, 0, 1), size).permute(1, 2, 0) / scale
        priority = resized(priority, size)
    field = forward_field(travel * moving[..., None], priority * moving, mask)
    return field, moving


def _painted(mask: Tensor) -> tuple[tuple[slice, slice], Tensor]:
    """The box round what is painted, a few pixels more, and its corner (row, col), both even."""
    spans, corner = [], []
    for axis in (0, 1):
        n = mask.shape[axis]
        hit = mask.bool().any(dim=1 - axis).nonzero().flatten().tolist() or [0, n - 1]
        low, high = max(0, hit[0] - 4) // 2 * 2, min(n, hit[-1] + 5)
        low = max(0, min(low, n - 16)) // 2 * 2
        spans.append(slice(low, max(high, min(n, low + 16))))
        corner.append(float(low))
    return (spans[0], spans[1]), torch.tensor(corner, device=mask.device)


def _rigid(
    picture: Tensor,
    mask: Tensor,
    heat: Tensor,
    begin: Tensor,
    end: Tensor,
    longest: int,
    options: Pieces,
) -> Tensor:
    """Rigid displacement [h,w,2] of the warm pieces, found at half the size, and of their rims.

    `longest` is the side of the whole picture of which this is a part.
    """
    size = (heat.shape[0], heat.shape[1])
    half = (max(4, size[0] // 2), max(4, size[1] // 2))
    scale = torch.tensor([half[0] / size[0], half[1] / size[1]], device=heat.device)
    rgb = F.interpolate(picture, half, mode="area")[0]
    warm, painted = (F.interpolate(x[None, None], half, mode="area")[0, 0] for x in (heat, mask))
    piece = (warm > options.warm / 2) & (painted > 0.5)
    found = rigid_travel(
        rgb, piece, (begin + 0.5) * scale - 0.5, (end - begin) * scale,
        options.edge, options.hold * longest / 2, options.rigidity,
    ).permute(2, 0, 1)  # fmt: skip
    share = piece.float()
    known = found * share
    for width in (5, 9):
        wide, part = (F.avg_pool2d(x, width, 1, width // 2) for x in (known[None], share[None]))
        known = torch.where(share > 0, known, wide[0])
        share = torch.where(share > 0, share, part[0])
    return resized(known / share.clamp(min=1e-6), size).permute(1, 2, 0) / scale


def _reduced(size: Size, longest: int) -> Size:
    k = min(1.0, longest / max(size))
    return max(8, round(size[0] * k)), max(8, round(size[1] * k))


def _odd(x: float) -> int:
    return 2 * max(1, round((x - 1) / 2)) + 1
