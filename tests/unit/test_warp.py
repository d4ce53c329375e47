"""Moving a latent: the field is exact at the handles, nothing folds, noise stays noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_unet import normal

from workbench.drag.warping.warp import (
    Field,
    arrow_mask,
    backward_field,
    depth,
    displacement,
    fill,
    forward_field,
    influence,
    pick,
    to_cells,
)

Tensor = torch.Tensor


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (24, 30)) -> Tensor:
    mask = torch.zeros(size)
    mask[top:bottom, left:right] = 1
    return mask


def points(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows).reshape(-1, 2)


def cells(h: int, w: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(h), torch.arange(w)).float().reshape(h, w, 2)


def moved_by(row: float, col: float, mask: Tensor) -> Field:
    """Every painted cell travels the same way."""
    travel = torch.tensor([row, col]).expand(*mask.shape, 2) * mask[..., None]
    return forward_field(travel, mask, mask)


def test_positions_keep_their_place_in_the_picture() -> None:
    """Image x = 2 lattice + 0.5 = 8 cell + 3.5 (pixel centres)."""
    found = to_cells(points((1.5, 5.5), (0.0, 61.5)), (64, 128), (16, 32))
    assert found.tolist() == [[0.0, 1.0], [-0.375, 15.0]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.98))
def test_depth_is_the_exact_distance(seed: int, share: float) -> None:
    mask = (torch.rand(9, 13, generator=torch.Generator().manual_seed(seed)) < share).float()
    kept = cells(9, 13)[mask == 0]
    if len(kept):
        gap = (cells(9, 13)[:, :, None] - kept).norm(dim=-1).amin(-1)
        assert torch.allclose(depth(mask), gap, atol=1e-5)


def test_depth_without_an_edge_is_that_to_the_border() -> None:
    found = depth(torch.ones(5, 7))
    assert found[2, 3] == 3
    assert found[0, 3] == found[2, 0] == 1


def test_influence_falls_from_the_handle_to_the_edge() -> None:
    mask = box(4, 4, 20, 26)
    found = influence(points((12.0, 15.0)), depth(mask))[0]
    assert found[12, 15] == 1
    assert not found[mask == 0].any()
    row = found[12, 15:27]
    assert (row[1:] <= row[:-1]).all()
    assert row[-1] == 0


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 8.0])
def test_each_handle_travels_its_own_arrow_exactly(sharpness: float) -> None:
    """Crossing arrows, too: winner takes all."""
    handles = points((10.0, 10.0), (10.0, 18.0), (16.4, 14.3))
    targets = points((10.0, 17.0), (10.0, 11.0), (18.0, 14.0))
    travel, priority = displacement(handles, targets, box(2, 2, 22, 28), sharpness=sharpness)
    for handle, target in zip(handles, targets, strict=True):
        r, c = handle.round().long().tolist()
        assert torch.allclose(travel[r, c], target - handle, atol=2e-2)
        assert priority[r, c] == pytest.approx(1.0, abs=1e-2)


def test_nothing_travels_outside_the_mask() -> None:
    mask = box(6, 6, 18, 20)
    travel, priority = displacement(points((12.0, 12.0)), points((12.0, 15.0)), mask)
    assert not travel[mask == 0].any()
    assert not priority[mask == 0].any()
    assert travel[12, 12, 1] == 3


@pytest.mark.parametrize("way", [(0.0, 3.0), (-2.0, 1.0), (0.5, 0.0), (1.25, -2.75)])
def test_a_common_shift_reads_from_exactly_that_far(way: tuple[float, float]) -> None:
    mask = box(4, 4, 20, 26)
    field = moved_by(*way, mask)
    inner = box(8, 8, 16, 22).bool()
    assert not field.hole[inner].any()
    expected = cells(24, 30) - torch.tensor(way)
    assert torch.allclose(field.source[inner], expected[inner], atol=1e-5)
    assert torch.equal(field.source[mask == 0], cells(24, 30)[mask == 0])


def test_what_moves_away_leaves_holes() -> None:
    mask = box(4, 4, 20, 26)
    field = moved_by(0.0, 3.0, mask)
    assert torch.equal(field.hole, box(4, 4, 20, 7).bool())


def test_what_is_closer_to_a_handle_lies_on_top() -> None:
    mask = box(0, 0, 1, 10, (1, 10))
    travel = torch.zeros(1, 10, 2)
    travel[0, 2, 1] = 4.0  # cell 2 lands on cell 6, which stays
    for priority, source in ((0.9, 2.0), (0.1, 6.0)):
        rank = torch.full((1, 10), 0.5)
        rank[0, 2] = priority
        field = forward_field(travel, rank, mask)
        assert field.source[0, 6].tolist() == [0.0, source]
        assert field.hole[0].nonzero().flatten().tolist() == [2]


def test_no_arrow_moves_nothing() -> None:
    mask, latent = box(4, 4, 20, 26), normal(1, 4, 24, 30)
    at = points((12.0, 12.0))
    travel, priority = displacement(at, at, mask)
    for field in (forward_field(travel, priority, mask), backward_field(at, at, mask)):
        assert not field.moved.any()
        assert torch.equal(pick(latent, field), latent)
        assert torch.equal(fill(latent, field), latent)


def test_whole_cell_shifts_are_copies() -> None:
    latent = normal(1, 4, 24, 30)
    field = moved_by(2.0, -3.0, box(4, 4, 20, 26))
    for noise in (False, True):
        found = pick(latent, field, noise=noise)
        assert torch.allclose(found[..., 8:16, 8:22], latent[..., 6:14, 11:25], atol=1e-5)
        assert torch.equal(found[..., :4, :], latent[..., :4, :])


def test_noise_keeps_its_variance_between_cells() -> None:
    """Halfway between cells a bilinear mean has a quarter of the variance."""
    noise = normal(1, 64, 24, 30)
    field = moved_by(1.5, 2.5, box(0, 0, 24, 30))
    inner = (slice(None), slice(None), slice(4, 22), slice(4, 28))
    assert pick(noise, field)[inner].var().item() == pytest.approx(0.25, rel=0.05)
    assert pick(noise, field, noise=True)[inner].var().item() == pytest.approx(1.0, rel=0.05)


def test_holes_are_filled_from_around_by_distance() -> None:
    latent = torch.arange(7.0).reshape(1, 1, 1, 7)
    hole = torch.tensor([[False, False, True, True, True, False, False]])
    field = Field(cells(1, 7), hole, hole)
    found = fill(latent, field)[0, 0, 0]
    assert found[2].item() == pytest.approx((1 * 1 + 5 / 3) / (1 + 1 / 3))
    assert found[3].item() == pytest.approx(3.0)
    assert found[[0, 1, 5, 6]].tolist() == [0, 1, 5, 6]


def test_holes_at_the_border_and_nothing_but_holes() -> None:
    latent = normal(1, 3, 6, 6)
    hole = torch.zeros(6, 6, dtype=torch.bool)
    hole[0, :3] = True
    found = fill(torch.full_like(latent, 2.0), Field(cells(6, 6), hole, hole))
    assert torch.allclose(found, torch.full_like(latent, 2.0))
    all_holes = Field(cells(6, 6), ~hole | hole, ~hole | hole)
    assert torch.equal(fill(latent, all_holes), latent)


def test_stretching_leaves_no_holes_and_hits_the_target() -> None:
    mask = box(4, 4, 20, 26)
    handle, target = points((12.0, 10.0)), points((14.0, 14.0))
    field = backward_field(handle, target, mask)
    assert not field.hole.any()
    assert torch.allclose(field.source[14, 14], handle[0], atol=1e-4)
    assert torch.equal(field.source[mask == 0], cells(24, 30)[mask == 0])


def test_the_reach_of_an_arrow_without_a_mask() -> None:
    handle, target = points((12.0, 5.0)), points((12.0, 15.0))
    found = arrow_mask(handle, target, (24, 30))
    assert found[12, 5:16].all()
    assert found[12, 0] == 1
    assert found[12, 24] == 1
    assert not found[12, 25:].any()
    assert not found[:2].any()


def test_arrows_that_leave_the_picture_stay_in_it() -> None:
    mask = torch.ones(12, 12)
    handle, target = points((1.0, 1.0)), points((-4.0, 30.0))
    for field in (
        forward_field(*displacement(handle, target, mask), mask),
        backward_field(handle, target, mask),
    ):
        assert (field.source >= 0).all()
        assert (field.source <= 11).all()
        assert pick(normal(1, 4, 12, 12), field, noise=True).isfinite().all()
