"""Moving a picture's pieces along arrows in pixels: what hangs together moves, what lies behind stays.

A latent cell covers 8x8 pixels, so a warped latent cannot follow an outline, and shifts by fractions
of a cell are not what the autoencoder would give. Here the picture itself is moved and encoded anew.

Which pixels belong to what is dragged is asked of the picture (`attachment`): heat flows from the
handles to everything unpainted, easily through even colour and hardly across edges. What stays warm
moves; a background, which is open to the unpainted part on all sides, stays cold, however close to a
handle it lies. How far a piece moves at each place is the smooth displacement of `numerics.warp`.

Frame: (row, col) in pixels of the working picture; the centre of the top-left pixel is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from workbench.numerics.warp import Field, displacement, fill, forward_field, pick

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
    area = (_resize(mask, small) > 0.5).float() if small != size else mask
    begin, end = (handles + 0.5) * scale - 0.5, (targets + 0.5) * scale - 0.5
    heat = attachment(seen, area, begin, options.edge)
    rim = 2 * max(1, round(options.rim * max(small) / 256)) + 1
    warm = F.max_pool2d(heat[None, None], rim, 1, rim // 2)[0, 0]
    moving = ((warm > options.warm / 2) & (area > 0)).float()
    travel, priority = displacement(
        begin, end, area, sharpness=options.sharpness, rigid=options.rigid * max(small)
    )
    if small != size:
        moving = (_resize(moving, size) > 0.5).float() * mask
        travel = _resize(travel.permute(2, 0, 1), size).permute(1, 2, 0) / scale
        priority = _resize(priority, size)
    field = forward_field(travel * moving[..., None], priority * moving, mask)
    return field, moving


def attachment(
    picture: Tensor, mask: Tensor, handles: Tensor, edge: float, *, radius: float = 6.0
) -> Tensor:
    """Heat [h,w] that flows from the handles, at 1, to what is unpainted, at 0.

    The discrete Laplace equation on the pixels with conductances exp(-step / edge), step being the
    largest difference of a colour channel between neighbours (0..1): the random walker of Grady
    (IEEE TPAMI 28, 2006) with the arrows as seeds. Solved by conjugate gradients, at half the size first.

    Args:
        picture: [1,3,h,w] in [-1,1].
        mask: [h,w], 1 = may change; without an unpainted pixel, the border stands for it.
        handles: [P,2]; each heats the pixels of its own colour within `radius`.
        edge: see above.
        radius: px.
    """
    if not bool((mask == 0).any()):
        mask = F.pad(torch.ones_like(mask[1:-1, 1:-1]), (1, 1, 1, 1))
    heat: Tensor | None = None
    for factor, steps in ((2, 400), (1, 200)):
        rgb = F.avg_pool2d(picture, factor)[0] if factor > 1 else picture[0]
        free = F.max_pool2d(mask[None, None], factor)[0, 0] > 0
        seeds = _seeds(rgb, (handles + 0.5) / factor - 0.5, radius / factor)
        start = seeds.float()
        if heat is not None:
            start = torch.where(free & ~seeds, _resize(heat, (free.shape[0], free.shape[1])), start)
        heat = _solve(start, free & ~seeds, *_conductance(rgb, edge), steps)
    assert heat is not None
    return heat.clamp(0, 1) * mask


def _seeds(rgb: Tensor, handles: Tensor, radius: float) -> Tensor:
    h, w = rgb.shape[1:]
    rows = torch.arange(h, device=rgb.device, dtype=torch.float32)[:, None]
    cols = torch.arange(w, device=rgb.device, dtype=torch.float32)[None]
    out = torch.zeros(h, w, dtype=torch.bool, device=rgb.device)
    for row, col in handles.tolist():
        gap = ((rows - row) ** 2 + (cols - col) ** 2).sqrt()
        own = rgb[:, min(max(round(row), 0), h - 1), min(max(round(col), 0), w - 1)]
        alike = (rgb - own[:, None, None]).abs().amax(0) < 0.3
        out |= ((gap <= radius) & alike) | (gap <= 1.5)
    return out


def _conductance(rgb: Tensor, edge: float) -> tuple[Tensor, Tensor]:
    """Between vertical and between horizontal neighbours; never quite 0."""
    down = (rgb[:, 1:] - rgb[:, :-1]).abs().amax(0) / 2
    right = (rgb[:, :, 1:] - rgb[:, :, :-1]).abs().amax(0) / 2
    return (-down / edge).exp() + 1e-5, (-right / edge).exp() + 1e-5


def _solve(u: Tensor, free: Tensor, down: Tensor, right: Tensor, steps: int) -> Tensor:
    """Conjugate gradients with the diagonal as preconditioner, for the pixels that are `free`."""
    total = torch.zeros_like(u)
    total[1:] += down
    total[:-1] += down
    total[:, 1:] += right
    total[:, :-1] += right

    def residual(x: Tensor) -> Tensor:
        out = total * x
        out[1:] -= down * x[:-1]
        out[:-1] -= down * x[1:]
        out[:, 1:] -= right * x[:, :-1]
        out[:, :-1] -= right * x[:, 1:]
        return out

    inverse = free / total
    r = -residual(u) * free
    z = r * inverse
    p, rz = z, (r * z).sum()
    for step in range(steps):
        if step % 16 == 0 and float(z.abs().max()) < 1e-5:
            break
        ap = residual(p) * free
        length = rz / (p * ap).sum().clamp(min=1e-30)
        u = u + length * p
        r = r - length * ap
        z = r * inverse
        new = (r * z).sum()
        p, rz = z + new / rz.clamp(min=1e-30) * p, new
    return u


def _reduced(size: Size, longest: int) -> Size:
    k = min(1.0, longest / max(size))
    return max(8, round(size[0] * k)), max(8, round(size[1] * k))


def _resize(x: Tensor, size: Size) -> Tensor:
    """Bilinear, of [h,w] or [C,h,w]."""
    wide = x[None] if x.dim() == 3 else x[None, None]
    out = F.interpolate(wide, size, mode="bilinear", align_corners=False)
    return out[0] if x.dim() == 3 else out[0, 0]


def _odd(x: float) -> int:
    return 2 * max(1, round((x - 1) / 2)) + 1
