"""How a piece moves that is held at its handles: as rigidly as it can.

The energy of Sorkine and Alexa (SGP 2007) on the pixels of the piece,

    sum over neighbours of | (x_i + u_i) - (x_j + u_j) - R_i (x_i - x_j) |^2,

is lowered in turns: for a displacement u the best turn R_i of every pixel's surroundings, for the turns
the best u, which is a Laplace equation. A mast then turns instead of being sheared, and what hangs
on one handle alone is carried. Where a piece runs on beyond what moves, in even colour, it is tied to
what stays; across an edge it is free.

Frame: (row, col) in pixels; the centre of the top-left pixel is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from workbench.drag.warping.random_walker import conductance, seeds_of, solve

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rigidity:
    """How stiff pieces are; docs/algorithm.md says what else was measured."""

    tie: float = 0.1  # of a piece to what stays and has its colour, against 1 inside the piece
    turns: int = 20  # at most
    blur: int = 2  # px round a pixel over which its turn is averaged; single pixels would wrinkle
    settled: float = 0.05  # px: a turn that moves nothing farther is the last


@torch.no_grad()
def rigid_travel(
    rgb: Tensor,
    piece: Tensor,
    handles: Tensor,
    ways: Tensor,
    edge: float,
    hold: float,
    options: Rigidity,
) -> Tensor:
    """Displacement of every pixel of a piece [h,w,2]; 0 outside it.

    Args:
        rgb: [3,h,w] in [-1,1].
        piece: [h,w] bool: what moves; it may consist of several parts.
        handles: [P,2]; those outside the piece hold nothing.
        ways: [P,2], target - handle.
        edge: step in colour (0..1) that lets 1/e through of what ties a piece.
        hold: px round a handle, of its colour, that are carried without turning.
        options: see there.
    """
    held = torch.zeros_like(piece)
    u = torch.zeros(2, *piece.shape, device=rgb.device)
    for handle, way in zip(handles, ways, strict=True):
        near = seeds_of(rgb, handle[None], hold) & piece
        held |= near
        u[:, near] = way[:, None].to(u)
    free = piece & ~held
    inside = (piece[1:] & piece[:-1]).float(), (piece[:, 1:] & piece[:, :-1]).float()
    across = (piece[1:] ^ piece[:-1]).float(), (piece[:, 1:] ^ piece[:, :-1]).float()
    down, right = (
        i + options.tie * a * c
        for i, a, c in zip(inside, across, conductance(rgb, edge), strict=True)
    )
    u = solve(u, free, down, right, 600, tolerance=1e-4)
    for _ in range(options.turns):
        wanted = _wanted(u, piece, *inside, options.blur)
        new = solve(u, free, down, right, 60, source=wanted, tolerance=1e-3)
        step = float((new - u).abs().max())
        u = new
        if step < options.settled:
            break
    return (u * piece).permute(1, 2, 0)


def _wanted(u: Tensor, piece: Tensor, down: Tensor, right: Tensor, blur: int) -> Tensor:
    """The right-hand side [2,h,w]: what the best turns of all pixels ask of their differences."""
    # edges after the move, as (along, across): a turn by a has (cos a, sin a) times the length
    v, h = u[:, 1:] - u[:, :-1], u[:, :, 1:] - u[:, :, :-1]
    turn = torch.zeros_like(u)
    for edges, near, far in (
        (down * torch.stack([1 + v[0], v[1]]), turn[:, 1:], turn[:, :-1]),
        (right * torch.stack([1 + h[1], -h[0]]), turn[:, :, 1:], turn[:, :, :-1]),
    ):
        near += edges
        far += edges
    if blur:
        turn = F.avg_pool2d(turn[None], 2 * blur + 1, 1, blur)[0]
    size = turn.norm(dim=0)
    straight = torch.tensor([1.0, 0.0], device=u.device)[:, None, None]
    turn = torch.where(piece & (size > 1e-9), turn / size.clamp(min=1e-9), straight)
    cos, sin = turn
    v = down * torch.stack([_mid(cos, 0) - 1, _mid(sin, 0)])
    h = right * torch.stack([-_mid(sin, 1), _mid(cos, 1) - 1])
    out = torch.zeros_like(u)
    out[:, 1:] += v
    out[:, :-1] -= v
    out[:, :, 1:] += h
    out[:, :, :-1] -= h
    return out


def _mid(x: Tensor, axis: int) -> Tensor:
    """Means of neighbours along an axis."""
    n = x.shape[axis]
    return (x.narrow(axis, 1, n - 1) + x.narrow(axis, 0, n - 1)) / 2
