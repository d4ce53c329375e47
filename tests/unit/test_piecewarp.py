"""The instant preview: a thing moves as one piece, what lies behind it stays, all else is as before."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import metrics
from benchmarks.scenes import drag_set
from workbench.canvas.piecewarp import _filled, _rigid, sketch
from workbench.canvas.preview import warp
from workbench.core.request import Point, PointPair

WALL, BALL = (180, 200, 190), (200, 60, 40)


def pair(hx: float, hy: float, tx: float, ty: float) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty))


def wall(w: int = 256, h: int = 256) -> np.ndarray:
    return np.full((h, w, 3), WALL, np.uint8)


def disc(rgb: np.ndarray, cx: float, cy: float, r: float) -> np.ndarray:
    out = rgb.copy()
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
    out[(x - cx) ** 2 + (y - cy) ** 2 <= r * r] = BALL
    return out


def box(x0: int, y0: int, x1: int, y1: int, w: int = 256, h: int = 256) -> np.ndarray:
    mask = np.zeros((h, w), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("scale", [1, 2])
def test_a_ball_is_carried_whole_and_leaves_the_wall_behind(scale: int) -> None:
    k = scale
    before = disc(wall(256 * k, 256 * k), 90 * k, 120 * k, 16 * k)
    after = disc(wall(256 * k, 256 * k), 165 * k, 140 * k, 16 * k)
    mask = box(50 * k, 80 * k, 210 * k, 190 * k, 256 * k, 256 * k)
    out = sketch(before, mask, [pair(90 * k, 120 * k, 165 * k, 140 * k)])
    wrong = np.abs(out.astype(int) - after).max(axis=2) > 40
    assert wrong.sum() < 0.12 * np.pi * (16 * k) ** 2  # its rim, which is soft
    np.testing.assert_array_equal(out[~mask], before[~mask])


def test_an_arm_turns_about_the_place_where_it_leaves_the_area() -> None:
    """A bar from the left edge of the area; the end goes up as far as it was long: 45 degrees."""
    before = wall()
    before[122:134, 40:160] = BALL
    mask = box(80, 30, 230, 220)
    out = sketch(before, mask, [pair(155, 128, 155, 60)])
    red = (out[..., 0].astype(int) - out[..., 1]) > 60
    assert red[60, 155]
    assert not red[128, 120:165].any()  # nothing stays where the arm was
    ys, xs = np.nonzero(red & mask)
    bent = np.polyfit(xs[(xs > 105) & (xs < 145)], ys[(xs > 105) & (xs < 145)], 1)
    assert bent[0] == pytest.approx(-1, abs=0.35)  # a straight slope, y down
    assert red[122:134, 82].sum() > 8  # and it still hangs on where it hung
    columns = [red[:, x].sum() for x in range(100, 145, 5)]
    assert min(columns) >= 10
    assert max(columns) <= 30  # 12 px thick, seen at a slant: not drawn out like rubber


def test_what_cannot_be_told_from_its_surroundings_is_warped_smoothly() -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    mask, arrow = box(30, 30, 100, 100, 128, 128), [pair(60, 60, 75, 70)]
    np.testing.assert_array_equal(sketch(noise, mask, arrow), warp(noise, mask, arrow))
    flat = wall(128, 128)
    np.testing.assert_array_equal(sketch(flat, mask, arrow), warp(flat, mask, arrow))


def test_without_a_mask_nothing_says_what_stays_behind() -> None:
    rgb, arrow = disc(wall(), 90, 120, 16), [pair(90, 120, 150, 120)]
    np.testing.assert_array_equal(sketch(rgb, None, arrow), warp(rgb, None, arrow))
    none = np.zeros((256, 256), np.bool_)
    np.testing.assert_array_equal(sketch(rgb, none, arrow), warp(rgb, None, arrow))


def test_two_things_go_their_own_ways() -> None:
    before = disc(disc(wall(), 80, 80, 14), 170, 170, 14)
    after = disc(disc(wall(), 120, 80, 14), 170, 120, 14)
    arrows = [pair(80, 80, 120, 80), pair(170, 170, 170, 120)]
    out = sketch(before, box(40, 40, 220, 220), arrows)
    assert (np.abs(out.astype(int) - after).max(axis=2) > 40).mean() < 0.004


def test_fault_17_impossible_arrows_leave_the_rest_alone() -> None:
    rgb, mask = disc(wall(100, 80), 40, 40, 9), box(20, 20, 60, 60, 100, 80)
    impossible = [
        [pair(40, 40, 40, 40)],
        [pair(80, 70, 90, 75)],
        [pair(-5, 3, 200, 9)],
        [pair(40, 40, 90, 70)],
        [pair(40, 40, 50, 40), pair(40, 40, 30, 40), pair(40, 40, 40, 40)],
        [pair(30, 30, 50, 50), pair(50, 30, 30, 50)],
    ]
    for arrows in impossible:
        out = sketch(rgb, mask, arrows)
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out[~mask], rgb[~mask])
    for tiny in (box(10, 10, 11, 11, 100, 80), box(0, 0, 100, 1, 100, 80)):
        out = sketch(rgb, tiny, [pair(10, 0, 30, 0)])
        np.testing.assert_array_equal(out[~tiny], rgb[~tiny])


def test_it_is_nearer_to_the_truth_than_the_smooth_warp() -> None:
    """Drawn scenes, whose picture after the drag is known: two thirds of the drags at the least."""
    errors = []
    for drag in drag_set(12, 777):
        p = drag.pictures()
        made = [f(p.source, p.mask, drag.pairs) for f in (sketch, warp)]
        errors.append([metrics.relative_mae(m, p.truth, p.source, p.region) for m in made])
    pieces, smooth = np.array(errors).T
    assert pieces.mean() < 0.95 * smooth.mean()
    assert (pieces <= smooth + 0.02).mean() > 0.66


def test_the_rigid_movement_meets_its_points_and_keeps_lengths() -> None:
    begin = np.array([0, 10, 10j], np.complex64)
    turned = (begin * np.exp(0.7j) + (3 - 2j)).astype(np.complex64)
    at = np.array([0, 10, 10j, 4 + 5j, -20 + 3j], np.complex64)
    moved = _rigid(at, begin, turned, np.array([1, 2, 0.5], np.float32))
    np.testing.assert_allclose(moved, at * np.exp(0.7j) + (3 - 2j), atol=1e-3)
    one = _rigid(at, begin[:1], turned[:1], np.ones(1, np.float32))
    np.testing.assert_allclose(one, at + (3 - 2j), atol=1e-4)  # one point: a shift


def test_what_lies_behind_is_filled_from_around_it() -> None:
    y, x = np.mgrid[:40, :53] / 60
    rgb = np.stack([x, y, 0.5 + 0 * x], axis=2).astype(np.float32)
    known = np.ones((40, 53), np.bool_)
    known[12:28, 20:34] = False
    out = _filled(np.where(known[..., None], rgb, 0), known)
    np.testing.assert_array_equal(out[known], rgb[known])
    assert np.abs(out - rgb).max() < 0.12  # a ramp is bridged, not left black


def test_a_sliver_left_at_the_pictures_border_holds_nothing() -> None:
    """Paint that ends a pixel before the border means the border."""
    before = wall()
    before[122:134, 60:256] = BALL
    made = [
        sketch(before, box(100, 20, right, 230), [pair(250, 128, 235, 60)]) for right in (256, 254)
    ]
    reds = [(m[..., 0].astype(int) - m[..., 1]) > 60 for m in made]
    assert reds[1][60, 235]
    assert not reds[1][120:136, 200:250].any()  # the bar's end is not held where it was
    assert (reds[0] != reds[1]).mean() < 0.01
