"""Picture metrics against their definitions."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import metrics
from workbench.core.request import Point, PointPair

RNG = np.random.default_rng(0)


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(coarse, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)


def noisy(rgb: np.ndarray, sigma: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


def test_mae_counts_only_the_region() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0] = (10, 20, 30)
    region = np.zeros((4, 4), bool)
    region[0, :2] = True
    assert metrics.mae(a, b) == pytest.approx(60 / 48)
    assert metrics.mae(a, b, region) == pytest.approx(60 / 6)
    assert metrics.mae(a, b, ~region) == 0
    assert math.isnan(metrics.mae(a, b, np.zeros((4, 4), bool)))
    assert metrics.mae(b, a) == metrics.mae(a, b)  # no wrap-around of unsigned bytes


def test_relative_error_is_one_for_nothing_and_zero_for_the_truth() -> None:
    source, truth = picture(1), picture(2)
    assert metrics.relative_mae(source, truth, source) == 1
    assert metrics.relative_mae(truth, truth, source) == 0
    half = ((source.astype(int) + truth) // 2).astype(np.uint8)
    assert metrics.relative_mae(half, truth, source) == pytest.approx(0.5, abs=0.01)
    assert math.isnan(metrics.relative_mae(source, source, source))


def test_psnr() -> None:
    a = np.full((8, 8, 3), 100, np.uint8)
    assert metrics.psnr(a, a) == metrics.PSNR_OF_EQUAL
    assert metrics.psnr(a, a + 5) == pytest.approx(20 * math.log10(255 / 5))
    assert metrics.psnr(np.zeros_like(a), a * 0 + 255) == pytest.approx(0)
    assert math.isnan(metrics.psnr(a, a, np.zeros((8, 8), bool)))


def test_ssim_by_its_definition_at_a_pixel() -> None:
    a, b = picture(1), noisy(picture(1), 25)
    row, col = 17, 23
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for c in range(3):
        x = a[row - 5 : row + 6, col - 5 : col + 6, c].astype(float)
        y = b[row - 5 : row + 6, col - 5 : col + 6, c].astype(float)
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert metrics.ssim_map(a, b)[row, col] == pytest.approx(np.mean(values), abs=1e-9)


def test_ssim_of_flat_pictures_has_a_closed_form_also_at_the_border() -> None:
    a, b = np.full((20, 30, 3), 90, np.uint8), np.full((20, 30, 3), 140, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 90 * 140 + c1) / (90**2 + 140**2 + c1)
    np.testing.assert_allclose(metrics.ssim_map(a, b), expected, atol=1e-9)


def test_ssim_properties() -> None:
    a = picture(3)
    assert metrics.ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert metrics.ssim(a, picture(4)) == pytest.approx(metrics.ssim(picture(4), a), abs=1e-12)
    values = [metrics.ssim(a, noisy(a, s)) for s in (2, 10, 40, 100)]
    assert values == sorted(values, reverse=True)
    checks = np.where(np.indices((40, 48)).sum(0) % 2, 255, 0).astype(np.uint8)
    board = np.repeat(checks[..., None], 3, axis=2)
    assert -1 <= metrics.ssim(board, 255 - board) < -0.9


@given(st.integers(0, 50), st.integers(0, 50))
def test_ssim_stays_in_its_range(i: int, j: int) -> None:
    values = metrics.ssim_map(picture(i, 16, 16), noisy(picture(j, 16, 16), 30))
    assert values.min() >= -1 - 1e-9 and values.max() <= 1 + 1e-9


def test_ssim_of_a_region_does_not_feel_a_change_far_away() -> None:
    a = picture(5)
    b = a.copy()
    b[:10] = 255 - b[:10]
    region = np.zeros((40, 48), bool)
    region[25:] = True
    assert metrics.ssim(a, b, region) == pytest.approx(1, abs=1e-12)
    assert metrics.ssim(a, b) < 0.9
    got, relative = metrics.relative_dissimilarity(a, b, a)
    assert got == metrics.ssim(a, b) and relative == 1
    assert metrics.relative_dissimilarity(b, b, a) == (pytest.approx(1), pytest.approx(0))
    assert math.isnan(metrics.relative_dissimilarity(a, a, a)[1])


def test_change_outside() -> None:
    source = picture(6)
    result = source.copy()
    mask = np.zeros((40, 48), bool)
    mask[:20] = True
    result[:20] = 255 - result[:20]
    assert metrics.change_outside(result, source, mask) == (0.0, 0.0)
    result[30, 3, 1] ^= 1
    assert metrics.change_outside(result, source, mask) == (1.0, pytest.approx(1 / (20 * 48 * 3)))
    assert metrics.change_outside(result, source, np.ones_like(mask)) == (0.0, 0.0)


def pair(hx: float, hy: float, tx: float, ty: float) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty))


def test_dai_is_zero_for_a_moved_patch_and_as_published_inside() -> None:
    source = RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    moved = np.roll(source, (3, 7), (0, 1))
    drag = pair(15, 20, 22, 23)
    for radius in (1, 5, 10):
        assert metrics.dai(source, moved, [drag], radius) == 0
        a = source[20 - radius : 21 + radius, 15 - radius : 16 + radius] / 255
        b = source[23 - radius : 24 + radius, 22 - radius : 23 + radius] / 255
        published = ((a - b) ** 2).sum() / (2 * radius + 1) ** 2
        assert metrics.dai(source, source, [drag], radius) == pytest.approx(published)


def test_dai_does_not_favour_many_pairs_and_keeps_patches_aligned_at_the_edge() -> None:
    source = RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    drag = pair(15, 20, 22, 23)
    one = metrics.dai(source, source, [drag], 5)
    assert metrics.dai(source, source, [drag] * 4, 5) == pytest.approx(one)
    shifted = np.roll(source, 10, 1)  # places that left the picture on one side do not count
    assert metrics.dai(source, shifted, [pair(2, 1, 12, 1)], 20) == 0
    assert metrics.dai(source, shifted, [pair(2, 1, 13, 1)], 20) > 0.1
    assert math.isnan(metrics.dai(source, source, [], 5))


def test_lpips_says_why_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.delitem(sys.modules, "lpips")
    found, sentence = metrics.lpips()
    assert (found is None) == ("left out" in sentence)
    assert sentence.startswith("LPIPS") and sentence.endswith(".")
