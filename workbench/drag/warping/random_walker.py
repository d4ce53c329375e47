"""What hangs together in a picture: heat that flows from the handles through even colour.

The discrete Laplace equation on the pixels, with conductances that fall with the step in colour, and
the conjugate gradients that solve it; `numerics.rigid` moves pieces with the same solver.

Frame: (row, col) in pixels; the centre of the top-left pixel is (0, 0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Size = tuple[int, int]


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
        seeds = seeds_of(rgb, (handles + 0.5) / factor - 0.5, radius / factor)
        start = seeds.float()
        if heat is not None:
            start = torch.where(free & ~seeds, resized(heat, (free.shape[0], free.shape[1])), start)
        heat = solve(start, free & ~seeds, *conductance(rgb, edge), steps)
    assert heat is not None
    return heat.clamp(0, 1) * mask


def seeds_of(rgb: Tensor, handles: Tensor, radius: float) -> Tensor:
    """Pixels [h,w] of a handle's colour within `radius` px of it, and those right under it."""
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


def conductance(rgb: Tensor, edge: float) -> tuple[Tensor, Tensor]:
    """Between vertical and between horizontal neighbours; never quite 0."""
    down = (rgb[:, 1:] - rgb[:, :-1]).abs().amax(0) / 2
    right = (rgb[:, :, 1:] - rgb[:, :, :-1]).abs().amax(0) / 2
    return (-down / edge).exp() + 1e-5, (-right / edge).exp() + 1e-5


def solve(
    u: Tensor,
    free: Tensor,
    down: Tensor,
    right: Tensor,
    steps: int,
    *,
    source: Tensor | None = None,
    tolerance: float = 1e-5,
) -> Tensor:
    """Sum over neighbours j of c_ij (u_i - u_j) = source_i at the pixels that are `free`.

    Conjugate gradients with the diagonal as preconditioner.

    Args:
        u: start [...,h,w]; the values at the other pixels are the conditions.
        free: [h,w], bool or 0 and 1.
        down, right: conductances between vertical [h-1,w] and horizontal [h,w-1] neighbours.
        steps: at most so many.
        source: [...,h,w]; 0 when None.
        tolerance: ends when the preconditioned residual is below it everywhere.
    """  # fmt: skip
    total = torch.zeros_like(u)
    total[..., 1:, :] += down
    total[..., :-1, :] += down
    total[..., 1:] += right
    total[..., :-1] += right

    def flow(x: Tensor) -> Tensor:
        out = total * x
        out[..., 1:, :] -= down * x[..., :-1, :]
        out[..., :-1, :] -= down * x[..., 1:, :]
        out[..., 1:] -= right * x[..., :-1]
        out[..., :-1] -= right * x[..., 1:]
        return out

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    inverse = free / total.clamp(min=1e-12)
    r = -flow(u) * free if source is None else (source - flow(u)) * free
    z = r * inverse
    p, rz = z, dot(r, z)
    for step in range(steps):
        if step % 16 == 0 and float(z.abs().max()) < tolerance:
            break
        ap = flow(p) * free
        length = rz / dot(p, ap).clamp(min=1e-30)
        u = u + length * p
        r = r - length * ap
        z = r * inverse
        new = dot(r, z)
        p, rz = z + new / rz.clamp(min=1e-30) * p, new
    return u


def resized(x: Tensor, size: Size) -> Tensor:
    """Bilinear, of [h,w] or [C,h,w]."""
    wide = x[None] if x.dim() == 3 else x[None, None]
    out = F.interpolate(wide, size, mode="bilinear", align_corners=False)
    return out[0] if x.dim() == 3 else out[0, 0]
