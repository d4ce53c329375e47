"""The feature grid without an upsampled map: equal to upsampling and slicing; tracking finds what moved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.drag.tracking import inside, patches, samples, track

Tensor = torch.Tensor
SHAPES = [((16, 16), (64, 64)), ((12, 18), (50, 75)), ((3, 5), (13, 20)), ((8, 8), (8, 8))]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def upsampled(feature: Tensor, feature_grid: tuple[int, int]) -> Tensor:
    return F.interpolate(feature, feature_grid, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("native", "feature_grid"), SHAPES)
def test_every_feature_grid_point_equals_the_upsampled_map(
    native: tuple[int, int], feature_grid: tuple[int, int]
) -> None:
    feature = noise(1, 6, *native)
    grid = torch.cartesian_prod(
        torch.arange(feature_grid[0]), torch.arange(feature_grid[1])
    ).float()
    found = samples(feature, feature_grid, grid).T.reshape(1, 6, *feature_grid)
    assert torch.allclose(found, upsampled(feature, feature_grid), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(row=st.floats(0, 40), col=st.floats(0, 60), count=st.integers(1, 9), seed=st.integers(0, 9))
def test_fractional_patches_equal_blended_slices(
    row: float, col: float, count: int, seed: int
) -> None:
    """The reference's way: upsample, slice four integer patches, blend them."""
    feature_grid, feature = (50, 75), noise(1, 3, 12, 18, seed=seed)
    full = upsampled(feature, feature_grid)
    first = torch.tensor([[row, col]])
    r, c = int(first[0, 0].floor()), int(first[0, 1].floor())
    a, b = float(first[0, 0] - r), float(first[0, 1] - c)

    def cut(i: int, j: int) -> Tensor:
        return full[:, :, r + i : r + i + count, c + j : c + j + count]

    expected = (1 - a) * ((1 - b) * cut(0, 0) + b * cut(0, 1)) + a * (
        (1 - b) * cut(1, 0) + b * cut(1, 1)
    )
    assert torch.allclose(patches(feature, feature_grid, first, count), expected, atol=2e-5)


def test_gradient_equals_that_of_upsampling() -> None:
    feature_grid, feature = (50, 75), noise(1, 4, 12, 18).requires_grad_()
    first = torch.tensor([[3.25, 40.5], [3.25, 41.5], [44.0, 0.0]])
    weight = noise(3, 4, 5, 5, seed=1)
    (ours,) = torch.autograd.grad(
        (patches(feature, feature_grid, first, 5) * weight).sum(), feature
    )
    full = upsampled(feature, feature_grid)
    total = torch.zeros(())
    for (r, c), w in zip(first.tolist(), weight, strict=True):
        i, j, a, b = int(r), int(c), r % 1, c % 1
        for di, dj, share in (
            (0, 0, (1 - a) * (1 - b)),
            (1, 0, a * (1 - b)),
            (0, 1, (1 - a) * b),
            (1, 1, a * b),
        ):
            if share:
                cut = full[0, :, i + di : i + di + 5, j + dj : j + dj + 5]
                total = total + share * (cut * w).sum()
    (theirs,) = torch.autograd.grad(total, feature)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_linear_ramp_is_sampled_exactly() -> None:
    """Bilinear interpolation is exact on planes (away from the clamped rim)."""
    rows, cols = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    feature = torch.stack([rows, cols, 2 * rows - 3 * cols + 1])[None]
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 55 + 4
    found = samples(feature, (64, 64), points)
    at = (points + 0.5) / 4 - 0.5
    expected = torch.stack([at[:, 0], at[:, 1], 2 * at[:, 0] - 3 * at[:, 1] + 1], dim=1)
    assert torch.allclose(found, expected, atol=1e-4)


def test_positions_off_the_map_are_clamped() -> None:
    feature = noise(1, 2, 8, 8)
    outside = torch.tensor([[-5.0, 10.0], [40.0, 10.0], [10.0, -0.4], [31.7, 31.2]])
    clamped = outside.clamp(0, 31)
    found, expected = samples(feature, (32, 32), outside), samples(feature, (32, 32), clamped)
    assert torch.allclose(found, expected, atol=1e-6)


def test_half_precision_features_are_read_in_float32() -> None:
    feature = noise(1, 4, 8, 8).half()
    found = patches(feature, (32, 32), torch.tensor([[4.0, 4.0]]), 3)
    assert found.dtype == torch.float32
    assert torch.allclose(found[0], upsampled(feature.float(), (32, 32))[0, :, 4:7, 4:7], atol=1e-5)


def test_inside_marks_the_feature_grid() -> None:
    found = inside(torch.tensor([[-1.0, 0.0], [3.0, 4.0]]), 3, (5, 6))
    assert found[0].tolist() == [[False] * 3, [True] * 3, [True] * 3]
    assert found[1].tolist() == [[True, True, False]] * 2 + [[False] * 3]


# --- tracking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (-3, 3), (1, 0)])
def test_a_shifted_picture_is_tracked(shift: tuple[int, int]) -> None:
    """Native map as large as the feature grid, so that shifts by whole pixels are exact."""
    feature = noise(1, 8, 40, 40)
    points = torch.tensor([[20.0, 20.0], [12.0, 30.0]])
    templates = samples(feature, (40, 40), points)
    moved = torch.roll(feature, shift, dims=(2, 3))
    found = track(moved, (40, 40), points, templates, 3)
    assert torch.equal(found.points, points + torch.tensor(shift).float())
    assert torch.allclose(found.cost, torch.zeros(2), atol=1e-5)


def test_the_blob_is_followed_on_an_upsampled_feature_grid() -> None:
    """A smooth blob moves by 3 native cells = 12 grid pixels; tracked to within one of them."""
    rows, cols = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def blob(r: float, c: float) -> Tensor:
        d = (rows - r) ** 2 + (cols - c) ** 2
        return torch.stack([torch.exp(-d / 8), torch.exp(-d / 40), d.sqrt() / 32])[None]

    start = torch.tensor([[(12 + 0.5) * 4 - 0.5, (14 + 0.5) * 4 - 0.5]]).round()
    templates = samples(blob(12, 14), (128, 128), start)
    found = track(blob(15, 11), (128, 128), start, templates, 16)
    assert (found.points - (start + torch.tensor([[12.0, -12.0]]))).abs().max() <= 1


def test_the_window_is_clipped_at_the_border() -> None:
    feature = noise(1, 4, 16, 16)
    corner = torch.tensor([[0.0, 63.0]])
    templates = samples(feature, (64, 64), torch.tensor([[3.0, 60.0]]))
    found = track(feature, (64, 64), corner, templates, 3)
    assert found.points.tolist() == [[3.0, 60.0]]
    away = track(feature, (64, 64), torch.tensor([[80.0, -9.0]]), templates, 3)
    assert (away.points >= 0).all()
    assert (away.points <= 63).all()


def test_flat_features_stay_but_jump_to_the_corner_in_parity() -> None:
    feature = torch.full((1, 5, 16, 16), 0.3)
    points = torch.tensor([[30.0, 30.0], [0.0, 0.0], [63.0, 20.0]])
    templates = samples(feature, (64, 64), points)
    assert torch.equal(track(feature, (64, 64), points, templates, 12).points, points)
    exact = torch.zeros(1, 5, 16, 16)
    found = track(exact, (64, 64), points, torch.zeros(3, 5), 3, parity=True).points
    assert found.tolist() == [[27.0, 27.0], [0.0, 0.0], [60.0, 17.0]]


def test_tracking_equals_the_reference_on_the_upsampled_map() -> None:
    """Window, L1 distance and row-major minimum, computed the long way."""
    feature_grid = (50, 75)
    before, after = noise(1, 8, 12, 18), noise(1, 8, 12, 18, seed=1)
    points = torch.tensor([[0.0, 0.0], [49.0, 74.0], [25.0, 33.0], [2.0, 70.0]])
    found = track(
        after, feature_grid, points, samples(before, feature_grid, points), 3, parity=True
    )
    full0, full1 = upsampled(before, feature_grid), upsampled(after, feature_grid)
    for p, q in zip(points.long().tolist(), found.points.tolist(), strict=True):
        rows = range(max(0, p[0] - 3), min(feature_grid[0], p[0] + 4))
        cols = range(max(0, p[1] - 3), min(feature_grid[1], p[1] + 4))
        costs = {
            (r, c): float((full0[0, :, p[0], p[1]] - full1[0, :, r, c]).abs().sum())
            for r in rows
            for c in cols
        }
        assert tuple(q) == min(costs, key=lambda k: costs[k])


def test_many_points_in_parts_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    feature, points = noise(1, 8, 16, 16), noise(20, 2).abs() * 20
    templates = samples(noise(1, 8, 16, 16, seed=1), (64, 64), points)
    whole = track(feature, (64, 64), points, templates, 4)
    monkeypatch.setattr("workbench.drag.tracking._AT_ONCE", 8 * 81 * 3)
    parts = track(feature, (64, 64), points, templates, 4)
    assert torch.equal(whole.points, parts.points)
    assert torch.equal(whole.cost, parts.cost)
    assert track(feature, (64, 64), points[:0], templates[:0], 4).points.shape == (0, 2)
