"""Pieces that move as rigidly as they can: shifts and turns are exact, ties hold, nothing else moves."""

from __future__ import annotations

import math

import torch

from workbench.drag.warping.arap import Rigidity, rigid_travel
from workbench.drag.warping.random_walker import conductance, solve

Tensor = torch.Tensor
SIZE = (48, 64)


def bar(top: int, left: int, bottom: int, right: int) -> Tensor:
    piece = torch.zeros(SIZE, dtype=torch.bool)
    piece[top:bottom, left:right] = True
    return piece


def painted(piece: Tensor) -> Tensor:
    """The piece in one colour on a ground of another [3,h,w]."""
    return (piece.float() * 2 - 1).expand(3, *SIZE)


def cells() -> Tensor:
    rows, cols = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return torch.stack([rows, cols], dim=-1).float()


def turned(about: Tensor, degrees: float) -> Tensor:
    """Displacement [h,w,2] of a turn of the whole plane."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    arm = cells() - about
    return (
        torch.stack([c * arm[..., 0] - s * arm[..., 1], s * arm[..., 0] + c * arm[..., 1]], -1)
        - arm
    )


def test_a_piece_with_one_handle_is_carried() -> None:
    piece = bar(18, 10, 30, 50)
    way = torch.tensor([[-7.0, 5.0]])
    found = rigid_travel(
        painted(piece), piece, torch.tensor([[24.0, 44.0]]), way, 0.05, 3.0, Rigidity()
    )
    assert (found[piece] - way).abs().max() < 0.1
    assert (found[~piece] == 0).all()


def test_two_handles_turn_a_piece_without_bending_it() -> None:
    piece = bar(18, 10, 30, 50)
    truth = turned(torch.tensor([24.0, 30.0]), 25)
    handles = torch.tensor([[24.0, 14.0], [24.0, 46.0]])
    ways = torch.stack([truth[24, 14], truth[24, 46]])
    stiff = rigid_travel(painted(piece), piece, handles, ways, 0.05, 0.6, Rigidity())
    bent = rigid_travel(painted(piece), piece, handles, ways, 0.05, 0.6, Rigidity(turns=0))
    wrong = (stiff - truth)[piece].norm(dim=-1).mean()  # not 0: at a handle some pixels do not turn
    assert wrong < 0.15 * truth[piece].norm(dim=-1).mean()
    assert wrong < 0.5 * (bent - truth)[piece].norm(dim=-1).mean()


def test_a_piece_that_runs_on_beyond_what_moves_turns_about_that_end() -> None:
    arm = bar(20, 0, 28, 50)
    piece = arm.clone()
    piece[:, :10] = False  # of the same colour, and not moving: the shoulder
    truth = turned(torch.tensor([24.0, 10.0]), -30)
    handle = torch.tensor([[24.0, 46.0]])
    found = rigid_travel(
        painted(arm), piece, handle, truth[24, 46][None], 0.05, 0.6, Rigidity(tie=1.0)
    )
    assert found[24, 11].norm() < 1.5
    middle = found[24, 15:45]
    assert (middle - truth[24, 15:45]).norm(dim=-1).mean() < 0.1 * truth[24, 46].norm()
    # the same end beyond an edge does not hold it
    free = rigid_travel(
        painted(piece), piece, handle, truth[24, 46][None], 0.05, 0.6, Rigidity(tie=1.0)
    )
    assert free[24, 11].norm() > 0.9 * truth[24, 46].norm()


def test_a_part_without_a_handle_stays() -> None:
    piece = bar(18, 10, 30, 30) | bar(18, 40, 30, 60)
    found = rigid_travel(
        painted(piece),
        piece,
        torch.tensor([[24.0, 20.0]]),
        torch.tensor([[0.0, 6.0]]),
        0.05,
        4.5,
        Rigidity(),
    )
    assert found[18:30, 40:60].abs().max() < 1e-3
    assert (found[18:30, 10:30, 1] - 6).abs().max() < 0.1


def test_solve_meets_its_equation_and_its_conditions() -> None:
    g = torch.Generator().manual_seed(0)
    rgb = torch.rand(3, 20, 24, generator=g)
    down, right = conductance(rgb, 0.3)
    free = torch.rand(20, 24, generator=g) > 0.2
    start, source = torch.randn(2, 20, 24, generator=g), torch.randn(2, 20, 24, generator=g)
    u = solve(start, free, down, right, 2000, source=source, tolerance=1e-7)
    assert torch.equal(u[:, ~free], start[:, ~free])
    left = torch.zeros_like(u)
    for d, c, low, high in (
        (u[:, 1:] - u[:, :-1], down, left[:, :-1], left[:, 1:]),
        (u[:, :, 1:] - u[:, :, :-1], right, left[:, :, :-1], left[:, :, 1:]),
    ):
        high += c * d
        low -= c * d
    assert (left - source)[:, free].abs().max() < 1e-3
