"""The pixel warp: exact at the handles, nothing outside the mask, no folds, several arrows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.canvas.preview import quick_warp, warp, warp_field
from workbench.core.request import Point, PointPair
from workbench.imaging.resample import distance_inside, sampled


def pair(hx: float, hy: float, tx: float, ty: float) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty))


def ramp(w: int, h: int) -> np.ndarray:
    """A picture whose colour says where it came from: red = x, green = y (to 1 px at 256)."""
    y, x = np.mgrid[:h, :w]
    return np.stack([x * 255 / (w - 1), y * 255 / (h - 1), 0 * x], axis=2).round().astype(np.uint8)


def ellipse(w: int, h: int, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1


def displacement(w: int, h: int, mask: np.ndarray | None, *pairs: PointPair) -> np.ndarray:
    """dx, dy on the whole picture, [h, w, 2]."""
    out = np.zeros((h, w, 2))
    found = warp_field(w, h, mask, pairs)
    if found is not None:
        y0, x0, dy, dx = found
        out[y0 : y0 + dx.shape[0], x0 : x0 + dx.shape[1]] = np.stack([dx, dy], axis=2)
    return out


def test_colours_arrive_at_the_target() -> None:
    rgb, mask = ramp(256, 256), ellipse(256, 256, 128, 128, 90, 70)
    out = warp(rgb, mask, [pair(110, 120, 150, 140)])
    assert np.abs(out[140, 150].astype(int) - rgb[120, 110]).max() <= 1
    np.testing.assert_array_equal(out[~mask], rgb[~mask])
    assert (out != rgb).any()


inner = st.tuples(st.floats(-0.55, 0.55), st.floats(-0.55, 0.55))


@settings(max_examples=60)
@given(inner, inner, st.sampled_from([(256, 256), (333, 211), (120, 400)]))
def test_one_arrow_is_exact_at_its_target_whatever_its_length(
    a: tuple[float, float], b: tuple[float, float], size: tuple[int, int]
) -> None:
    w, h = size
    mask = ellipse(w, h, w / 2, h / 2, 0.45 * w, 0.45 * h)
    hx, hy = round(w / 2 + a[0] * 0.45 * w), round(h / 2 + a[1] * 0.45 * h)
    tx, ty = round(w / 2 + b[0] * 0.45 * w), round(h / 2 + b[1] * 0.45 * h)
    field = displacement(w, h, mask, pair(hx, hy, tx, ty))
    assert field[ty, tx] == pytest.approx((tx - hx, ty - hy), abs=0.1)


def test_the_field_is_small_at_the_masks_edge_and_never_folds() -> None:
    w = h = 256
    mask = ellipse(w, h, 128, 128, 100, 80)
    for arrow in (pair(90, 128, 160, 128), pair(60, 100, 190, 160), pair(128, 70, 128, 180)):
        d = displacement(w, h, mask, arrow)
        edge = mask & ~(
            np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
        )
        assert np.hypot(*d[edge].T).max() < 6
        y, x = np.mgrid[:h, :w]
        source = np.stack([x, y], axis=2) - d
        gx, gy = np.gradient(source, axis=1), np.gradient(source, axis=0)
        area = gx[..., 0] * gy[..., 1] - gx[..., 1] * gy[..., 0]
        inside = ellipse(w, h, 128, 128, 96, 76)
        assert area[inside].min() > 0  # the map from result to source is one-to-one


def test_several_arrows_and_an_anchor() -> None:
    w = h = 256
    mask = np.ones((h, w), bool)
    arrows = [pair(80, 80, 100, 60), pair(180, 170, 150, 190), pair(128, 128, 128, 128)]
    d = displacement(w, h, mask, *arrows)
    for p in arrows:
        want = (p.target.x - p.handle.x, p.target.y - p.handle.y)
        assert d[int(p.target.y), int(p.target.x)] == pytest.approx(want, abs=0.1)


def test_no_mask_means_the_whole_picture_and_its_border_stays() -> None:
    d = displacement(200, 150, None, pair(100, 75, 140, 75))
    empty = np.zeros((150, 200), bool)
    np.testing.assert_array_equal(d, displacement(200, 150, empty, pair(100, 75, 140, 75)))
    assert d[75, 140] == pytest.approx((40, 0), abs=0.1)
    assert np.abs(d[0]).max() < 3
    assert np.abs(d[:, -1]).max() < 3


def test_a_notch_between_handle_and_target_is_bridged() -> None:
    """The straight way crosses a protected stripe: the handle arrives, the stripe stays."""
    rgb = ramp(256, 256)
    mask = ellipse(256, 256, 128, 128, 100, 80)
    mask[:, 120:136] = False
    out = warp(rgb, mask, [pair(90, 128, 165, 128)])
    assert np.abs(out[128, 165].astype(int) - rgb[128, 90]).max() <= 1
    np.testing.assert_array_equal(out[~mask], rgb[~mask])


def test_fault_17_nothing_to_move_and_impossible_arrows() -> None:
    rgb, mask = ramp(100, 80), np.zeros((80, 100), bool)
    mask[20:60, 20:60] = True
    for arrows in ([], [pair(30, 30, 30, 30)], [pair(80, 70, 90, 75)], [pair(-5, 3, 200, 9)]):
        np.testing.assert_array_equal(warp(rgb, mask, arrows), rgb)
    torn = [pair(40, 40, 50, 40), pair(40, 40, 30, 40), pair(40, 40, 40, 40)]
    out = warp(rgb, mask, torn)
    np.testing.assert_array_equal(out[~mask], rgb[~mask])
    out = warp(rgb, mask, [pair(40, 40, 90, 70)])  # the target is not painted
    np.testing.assert_array_equal(out[~mask], rgb[~mask])
    crossing = [pair(30, 30, 50, 50), pair(50, 30, 30, 50)]
    out = warp(rgb, mask, crossing)
    assert out.shape == rgb.shape


def test_small_thin_and_border_masks() -> None:
    rgb = ramp(64, 48)
    one = np.zeros((48, 64), bool)
    one[10, 10] = True
    np.testing.assert_array_equal(warp(rgb, one, [pair(10, 10, 20, 10)])[~one], rgb[~one])
    row = np.zeros((48, 64), bool)
    row[0, :] = True
    np.testing.assert_array_equal(warp(rgb, row, [pair(5, 0, 50, 0)])[~row], rgb[~row])
    corner = np.ones((48, 64), bool)
    assert warp(rgb, corner, [pair(63, 47, 0, 0)]).shape == rgb.shape
    assert warp(rgb, corner, [pair(63, 47, 60, 40)]).shape == rgb.shape


def test_the_input_is_not_touched() -> None:
    rgb = ramp(64, 64)
    before = rgb.copy()
    warp(rgb, np.ones((64, 64), bool), [pair(20, 20, 40, 40)])
    np.testing.assert_array_equal(rgb, before)


def test_quick_warp_is_the_warp_of_the_reduced_picture() -> None:
    rgb, mask = ramp(1024, 768), ellipse(1024, 768, 500, 380, 300, 250)
    out = quick_warp(rgb, mask, [pair(420, 380, 580, 420)], longest=256)
    assert out.shape == (192, 256, 3)
    assert np.abs(out[105, 145].astype(int) - rgb[380, 420]).max() <= 3
    assert np.abs(out[5, 5].astype(int) - rgb[22, 22]).max() <= 2
    dot = np.zeros((768, 1024), bool)
    dot[1, 1] = True
    still = quick_warp(rgb, dot, [pair(420, 380, 580, 420)], longest=256)
    assert np.abs(still[105, 145].astype(int) - rgb[420, 580]).max() <= 3
    assert quick_warp(rgb[:50, :60], None, [], longest=256).shape == (50, 60, 3)


def test_sampling_is_bilinear() -> None:
    rng = np.random.default_rng(2)
    rgb = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    y, x = rng.uniform(-2, 22, 500).astype(np.float32), rng.uniform(-2, 32, 500).astype(np.float32)
    yy, xx = np.rint(np.clip(y, 0, 19) * 64) / 64, np.rint(np.clip(x, 0, 29) * 64) / 64
    i, j = np.minimum(yy.astype(int), 18), np.minimum(xx.astype(int), 28)
    v, u = (yy - i)[:, None], (xx - j)[:, None]
    top = rgb[i, j] * (1 - u) + rgb[i, j + 1] * u
    low = rgb[i + 1, j] * (1 - u) + rgb[i + 1, j + 1] * u
    wanted = top * (1 - v) + low * v
    assert np.abs(sampled(rgb, y, x) - wanted).max() <= 0.5001


def test_distance_transform_is_exact() -> None:
    rng = np.random.default_rng(5)
    mask = rng.random((23, 31)) < 0.8
    mask[0] = mask[-1] = mask[:, 0] = mask[:, -1] = False
    ys, xs = np.nonzero(~mask)
    y, x = np.mgrid[:23, :31]
    slow = np.sqrt(((y[..., None] - ys) ** 2 + (x[..., None] - xs) ** 2).min(axis=2))
    np.testing.assert_allclose(distance_inside(mask), slow)
