"""Move what handles hold: things move whole, grounds stay, gaps close, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import metrics
from benchmarks.scenes import drag_set
from workbench.core.request import Point, PointPair
from workbench.imaging.masks import (
    bilinear,
    blurred,
    colour_evidence,
    connected,
    cubic,
    filled,
)
from workbench.warping.held import (
    Grid,
    PictureFeatures,
    conductance,
    held_region,
    random_walker,
    solve,
)
from workbench.warping.layers import Plan, moved_picture, plan, render

WALL, BALL = (180, 200, 190), (200, 60, 40)


def pair(hx: float, hy: float, tx: float, ty: float, **more: object) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty), **more)  # type: ignore[arg-type]


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


# --- equations --------------------------------------------------------------------------------------------


def test_the_solver_solves_the_equations() -> None:
    """Against a dense solution, with sources and losses, on an uneven picture."""
    rng = np.random.default_rng(0)
    h, w = 12, 15
    rgb = rng.random((h, w, 3)).astype(np.float32)
    down, right = conductance(rgb, 0.3)
    free = rng.random((h, w)) < 0.8
    start, source, lost = (rng.random((h, w)).astype(np.float32) for _ in range(3))
    found = solve(
        start, free, (down, right), steps=400, source=source, absorbed=lost, tolerance=1e-7
    )
    index = np.arange(h * w).reshape(h, w)
    matrix = np.diag(lost.ravel().astype(float))
    for a, b, c in ((index[1:], index[:-1], down), (index[:, 1:], index[:, :-1], right)):
        for i, j, v in zip(a.ravel(), b.ravel(), c.ravel(), strict=True):
            matrix[i, i] += v
            matrix[j, j] += v
            matrix[i, j] -= v
            matrix[j, i] -= v
    at, known = index[free], index[~free]
    wanted = start.ravel().copy()
    right_side = source.ravel()[at] - matrix[np.ix_(at, known)] @ start.ravel()[known]
    wanted[at] = np.linalg.solve(matrix[np.ix_(at, at)], right_side)
    np.testing.assert_allclose(found.ravel(), wanted, atol=2e-4)


def test_heat_stays_in_its_thing() -> None:
    rgb = disc(wall(), 128, 128, 30)
    grid = Grid.of(rgb, box(40, 40, 216, 216))
    assert grid is not None
    found = grid.full(random_walker(grid, [Point(128, 128)]))
    y, x = np.mgrid[:256, :256][:, grid.box[0], grid.box[1]]
    far = np.hypot(y - 128, x - 128)
    assert found[far < 27].min() > 0.9
    assert found[far > 35].max() < 0.05


# --- what a handle holds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 3])
def test_a_handle_holds_its_thing_at_any_size(scale: int) -> None:
    k = scale
    rgb = disc(wall(256 * k, 256 * k), 100 * k, 120 * k, 24 * k)
    thing = (rgb == BALL).all(axis=2)
    for mask in (None, box(40 * k, 50 * k, 200 * k, 200 * k, 256 * k, 256 * k)):
        found = held_region(rgb, Point(100 * k, 120 * k), mask=mask)
        assert (found & thing).sum() / (found | thing).sum() > 0.85


def test_grow_takes_more_and_less() -> None:
    rgb = disc(wall(), 110, 128, 22)
    rgb[120:136, 110:190] = (150, 90, 80)  # an arm of another colour
    sizes = [
        int(held_region(rgb, Point(110, 128), mask=box(40, 40, 230, 230), grow=g).sum())
        for g in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.5 * sizes[-1]


def test_nothing_is_held_where_nothing_may_change() -> None:
    assert not held_region(
        disc(wall(), 50, 50, 20), Point(50, 50), mask=box(100, 100, 200, 200)
    ).any()


def test_features_tell_two_halves_of_one_thing_from_the_ground() -> None:
    """A thing in two colours; the model sees it as one, colours see two."""
    rgb = wall()
    rgb[60:196, 60:128], rgb[60:196, 128:196] = BALL, (40, 60, 200)
    mask = box(20, 20, 236, 236)
    values = np.zeros((2, 32, 32), np.float32)
    values[0] = 1
    values[:, 8:24, 8:24] = np.array([0, 1])[:, None, None]
    features = PictureFeatures(values, (0, 0, 256, 256))
    thing = np.zeros((256, 256), np.bool_)
    thing[60:196, 60:196] = True

    def overlap(found: np.ndarray) -> float:
        return float((found & thing).sum() / (found | thing).sum())

    alone = held_region(rgb, Point(105, 128), mask=mask)
    helped = held_region(rgb, Point(105, 128), mask=mask, features=features)
    assert overlap(alone) < 0.6
    assert overlap(helped) > 0.75


def test_features_that_resemble_nothing_around_change_nothing() -> None:
    rgb, mask = disc(wall(), 110, 128, 22), box(40, 40, 230, 230)
    values = np.random.default_rng(0).normal(size=(16, 32, 32)).astype(np.float32)
    features = PictureFeatures(values, (0, 0, 256, 256))
    alone = held_region(rgb, Point(110, 128), mask=mask)
    helped = held_region(rgb, Point(110, 128), mask=mask, features=features)
    np.testing.assert_array_equal(alone, helped)


def test_what_a_held_thing_surrounds_is_held() -> None:
    """An eye of another colour goes along with its face."""
    rgb = disc(wall(), 128, 128, 50)
    y, x = np.mgrid[:256, :256]
    rgb[(x - 128) ** 2 + (y - 128) ** 2 <= 18**2] = (30, 60, 220)
    for mask in (None, box(50, 50, 206, 206)):
        assert held_region(rgb, Point(128, 90), mask=mask)[128, 128]


def test_a_colour_far_from_the_handle_is_not_held_for_its_colour() -> None:
    """A second thing of the same colour, which a faint trail joins to the first."""
    rgb = disc(disc(wall(320, 200), 60, 100, 26), 260, 100, 26)
    rgb[97:103, 84:236] = (196, 110, 80)
    found = held_region(rgb, Point(60, 100))
    assert found[100, 60]
    assert not found[85:115, 250:270].any()


# --- how it moves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2])
def test_a_ball_is_carried_whole_and_leaves_the_wall_behind(scale: int) -> None:
    k = scale
    before = disc(wall(256 * k, 256 * k), 90 * k, 120 * k, 16 * k)
    after = disc(wall(256 * k, 256 * k), 165 * k, 140 * k, 16 * k)
    mask = box(50 * k, 80 * k, 210 * k, 190 * k, 256 * k, 256 * k)
    out = moved_picture(before, mask, [pair(90 * k, 120 * k, 165 * k, 140 * k)])
    wrong = np.abs(out.astype(int) - after).max(axis=2) > 40
    assert wrong.sum() < 0.15 * np.pi * (16 * k) ** 2  # its rim, which is soft
    np.testing.assert_array_equal(out[~mask], before[~mask])


def test_moved_pixels_are_the_pictures_own() -> None:
    """A texture that moves by whole pixels is the same texture, bit for bit but for its outline."""
    rng = np.random.default_rng(1)
    before = wall()
    patch = rng.integers(150, 256, (40, 40, 3), dtype=np.uint8)
    patch[..., 1:] //= 3
    before[100:140, 60:100] = patch
    mask = box(30, 70, 220, 170)
    motion = plan(before, mask, [pair(80, 120, 140, 124, move="shift")], Plan())
    assert motion is not None
    out = render(motion, before, mask, fine=True)
    gap = np.abs(out[108:140, 126:154].astype(int) - patch[4:36, 6:34])
    assert np.median(gap) <= 2


def test_an_arm_turns_about_the_place_where_it_leaves_the_area() -> None:
    before = wall()
    before[122:134, 40:160] = BALL
    out = moved_picture(before, box(80, 30, 230, 220), [pair(155, 128, 130, 70, move="turn")])
    red = (out[..., 0].astype(int) - out[..., 1]) > 60
    assert red[70, 130]
    assert not red[128, 130:165].any()  # nothing stays where the arm's end was
    assert red[122:134, 82].sum() > 8  # and it still hangs on where it hung


def fur(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Red with a texture, [h, w, 3]."""
    grain = np.random.default_rng(seed).normal(0, 8, (h, w, 1))
    return np.clip(np.array(BALL) + grain, 0, 255).astype(np.uint8)


def red(rgb: np.ndarray) -> np.ndarray:
    return np.asarray((rgb[..., 0].astype(int) - rgb[..., 1]) > 60)


def test_what_runs_on_beyond_the_mask_is_stretched_and_not_torn_off() -> None:
    """A neck that the mask cuts: the head goes up, and no gap opens where the mask ends."""
    before = wall()
    before[90:, 110:150] = fur(166, 40)
    mask = box(60, 20, 200, 160)
    out = moved_picture(before, mask, [pair(130, 110, 130, 75)])
    assert red(out[60:256, 122:138]).all()
    assert not red(out[:48]).any()
    sharp = np.abs(np.diff(out[120:158, 115:145].mean(axis=2), axis=1)).mean()
    usual = np.abs(np.diff(before[120:158, 115:145].mean(axis=2), axis=1)).mean()
    assert sharp > 0.62 * usual  # a filled gap would be smooth


def test_a_thing_stays_on_what_has_its_colours_at_the_masks_edge() -> None:
    """A bird behind a rock of another shade, not of the sky's: it does not leave the rock."""
    before = wall()
    before[90:200, 110:150] = fur(110, 40)
    before[200:, 60:200] = (146, 42, 36)
    out = moved_picture(before, box(60, 20, 200, 202), [pair(130, 110, 130, 75)])
    assert red(out[60:200, 122:138]).all()


def test_what_the_picture_cuts_off_stays_at_its_border() -> None:
    before = wall()
    before[120:, 100:160] = fur(136, 60)
    out = moved_picture(before, None, [pair(130, 135, 130, 100)])
    assert red(out[90:, 112:148]).all()
    aside = moved_picture(before, None, [pair(130, 135, 160, 135)])
    assert red(aside[250:, 140:180]).mean() > 0.9  # along the border it may go


def test_a_cut_thing_that_leaves_the_border_shows_its_texture_there_and_no_streaks() -> None:
    before = np.full((160, 160, 3), 200, np.uint8)
    before[90:, 60:100] = np.random.default_rng(0).integers(20, 90, (70, 40, 3))

    def lively(p: np.ndarray) -> float:  # along the way it moved
        return float(np.abs(np.diff(p[136:, 70:90].astype(int), axis=0)).mean())

    out = moved_picture(before, None, [pair(80, 120, 80, 96)])
    assert out[136:, 70:90].mean() < 90  # the thing, not the wall
    assert lively(out) > 0.8 * lively(before)


def test_nothing_holds_a_thing_back_where_it_goes() -> None:
    """One side fades into the ground; that may tie it where it would be torn off, not where it goes."""

    def faded(cx: float) -> np.ndarray:
        y, x = np.mgrid[:256, :256]
        share = np.clip((cx + 34 - x) / 60, 0.1, 1) * ((x - cx) ** 2 + (y - 128) ** 2 <= 30**2)
        return np.rint(wall() + share[..., None] * (np.array(BALL) - wall())).astype(np.uint8)

    before, after = faded(90), faded(130)
    out = moved_picture(before, box(50, 80, 200, 176), [pair(75, 128, 115, 128)])
    left, all_of = (np.abs(p.astype(int) - after).sum() for p in (out, before))
    assert left < 0.05 * all_of


@pytest.mark.parametrize("soft", [1, 2])
def test_a_free_thing_keeps_its_shape_near_the_masks_edge(soft: int) -> None:
    """Also where its outline is spread over two cells, each of them a smaller step."""
    before, after = disc(wall(), 120, 150, 24), disc(wall(), 120, 105, 24)
    for rgb in (before, after):
        rgb[:] = np.rint(blurred(blurred(rgb.astype(np.float32), soft), soft))
    out = moved_picture(before, box(70, 60, 170, 178), [pair(120, 150, 120, 105)])
    left, all_of = (np.abs(p.astype(int) - after).sum() for p in (out, before))
    assert left < 0.03 * all_of


def test_two_things_go_their_own_ways() -> None:
    before = disc(disc(wall(), 80, 80, 14), 170, 170, 14)
    after = disc(disc(wall(), 120, 80, 14), 170, 120, 14)
    arrows = [pair(80, 80, 120, 80), pair(170, 170, 170, 120)]
    out = moved_picture(before, box(40, 40, 220, 220), arrows)
    assert (np.abs(out.astype(int) - after).max(axis=2) > 40).mean() < 0.006


def bar() -> tuple[np.ndarray, np.ndarray]:
    before = wall()
    before[120:136, 90:170] = BALL
    return before, box(30, 30, 230, 230)


def test_a_shift_keeps_the_shape_and_a_turn_the_pivot() -> None:
    before, mask = bar()
    shifted = red(moved_picture(before, mask, [pair(160, 128, 160, 88, move="shift")]))
    assert shifted[88, 95:165].all()
    assert not shifted[128].any()
    turned = red(
        moved_picture(
            before, mask, [pair(160, 128, 100, 68, move="turn"), pair(100, 128, 100, 128)]
        )
    )
    assert turned[70:130, 100].all()  # now upright, about its pin
    assert not turned[128, 125:].any()


def test_a_stretch_grows_from_its_pin() -> None:
    before, mask = bar()
    arrows = [pair(165, 128, 205, 128, move="stretch"), pair(95, 128, 95, 128)]
    out = red(moved_picture(before, mask, arrows))
    assert out[128, 92:203].all()
    assert out[:, 95].sum() == pytest.approx(16, abs=2)


def test_a_pin_holds_its_place() -> None:
    before, mask = bar()
    free = red(moved_picture(before, mask, [pair(160, 128, 160, 100)]))
    held = red(moved_picture(before, mask, [pair(160, 128, 160, 100), pair(96, 128, 96, 128)]))
    assert not free[134, 92:100].any()  # carried along
    assert held[128, 92:100].all()


def test_impossible_arrows_leave_the_rest_alone() -> None:
    rgb, mask = disc(wall(100, 80), 40, 40, 9), box(20, 20, 60, 60, 100, 80)
    impossible = [
        [pair(40, 40, 40, 40)],
        [pair(80, 70, 90, 75)],
        [pair(-5, 3, 200, 9)],
        [pair(40, 40, 90, 70)],
        [pair(40, 40, 50, 40), pair(40, 40, 30, 40), pair(40, 40, 40, 40)],
        [pair(30, 30, 50, 50), pair(50, 30, 30, 50)],
        [pair(40, 40, 50, 40, move="turn")],
        [pair(40, 40, 41, 40, move="stretch", grow=1.0)],
    ]
    for arrows in impossible:
        out = moved_picture(rgb, mask, arrows)
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out[~mask], rgb[~mask])
    for tiny in (box(10, 10, 11, 11, 100, 80), box(0, 0, 100, 1, 100, 80)):
        out = moved_picture(rgb, tiny, [pair(10, 0, 30, 0)])
        np.testing.assert_array_equal(out[~tiny], rgb[~tiny])
    assert plan(rgb, mask, impossible[0]) is None


def test_every_run_is_the_same() -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    arrows = [pair(60, 40, 75, 70), pair(61, 44, 20, 20)]
    first, second = (moved_picture(noise, None, arrows) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_move_knows_what_it_uncovered() -> None:
    before = disc(wall(), 90, 120, 16)
    motion = plan(before, box(50, 80, 210, 190), [pair(90, 120, 165, 140)])
    assert motion is not None
    maps = motion.trust().maps
    y, x = np.mgrid[:256, :256][:, motion.grid.box[0], motion.grid.box[1]]
    old, new = np.hypot(x - 90, y - 120), np.hypot(x - 165, y - 140)
    uncovered = motion.grid.full(maps["uncovered"])
    assert uncovered[old < 14].min() > 0.9
    assert uncovered[new < 40].max() < 0.1
    assert max(motion.grid.full(m)[new < 13].max() for m in maps.values()) < 0.1  # own pixels


def test_it_is_near_to_the_truth_of_drawn_scenes() -> None:
    errors = []
    for drag in drag_set(12, 777):
        p = drag.pictures()
        made = moved_picture(p.source, p.mask, drag.pairs)
        errors.append(metrics.relative_mae(made, p.truth, p.source, p.region))
    assert np.mean(errors) < 0.62


# --- reading between cells --------------------------------------------------------------------------------


def grass(h: int = 256, w: int = 256) -> np.ndarray:
    """A ground with blades of a few pixels, green."""
    grain = np.random.default_rng(2).normal(0, 60, (h, w)).astype(np.float32)
    grain = blurred(grain)[..., None] * np.array([0.6, 1.0, 0.5])
    return np.clip(np.array([70, 120, 60]) + grain, 0, 255).astype(np.uint8)


def test_what_is_uncovered_has_the_texture_of_its_surroundings() -> None:
    before = disc(grass(), 100, 128, 26)
    mask = box(50, 70, 230, 186)
    out = moved_picture(before, mask, [pair(100, 128, 175, 128)])
    gap = np.s_[112:144, 84:116]

    def strength(rgb: np.ndarray) -> float:
        grey = rgb.astype(np.float32).mean(axis=2)
        return float(np.abs(grey - blurred(grey, 2)).mean())

    wanted = strength(grass()[gap])
    assert 0.7 * wanted < strength(out[gap]) < 1.3 * wanted
    assert not red(out[gap]).any()  # of the ground's texture, not of the thing's
    assert np.abs(out[gap].mean(axis=(0, 1)) - grass().mean(axis=(0, 1))).max() < 12


def test_what_stands_out_is_no_texture_for_an_even_ground() -> None:
    """Spots near a gap, but not around it, are not copied into it."""
    before = disc(wall(), 128, 128, 22)
    y, x = np.mgrid[:256, :256]
    for cx, cy in ((60, 100), (60, 160), (128, 50), (100, 60), (128, 215)):
        before[(x - cx) ** 2 + (y - cy) ** 2 <= 25] = 20
    out = moved_picture(before, box(40, 30, 240, 226), [pair(128, 128, 190, 128)])
    assert out[110:146, 110:146].min() > 120


def test_gaps_are_filled_from_around_them() -> None:
    y, x = np.mgrid[:40, :53] / 60
    rgb = np.stack([x, y, 0.5 + 0 * x], axis=2).astype(np.float32)
    known = np.ones((40, 53), np.bool_)
    known[12:28, 20:34] = False
    out = filled(np.where(known[..., None], rgb, 0), known)
    np.testing.assert_array_equal(out[known], rgb[known])
    assert np.abs(out - rgb).max() < 0.12  # a ramp is bridged, not left black


def test_a_cubic_read_keeps_pixels_and_follows_curves() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    y, x = (v.ravel().astype(np.float32) for v in np.mgrid[:20, :24])
    np.testing.assert_allclose(cubic(rgb, y, x), rgb.reshape(-1, 3), atol=1e-3)
    wave = (128 + 100 * np.sin(np.arange(40) / 3)).round().astype(np.uint8)
    line = np.repeat(np.repeat(wave[None, :, None], 4, 0), 3, 2)
    at = np.linspace(5, 34, 100).astype(np.float32)
    found = cubic(line, np.full_like(at, 1.5), at)[:, 0]
    assert np.abs(found - (128 + 100 * np.sin(at / 3))).max() < 2
    linear = bilinear(line[..., 0].astype(np.float32), np.full_like(at, 1.5), at)
    assert (
        np.abs(found - (128 + 100 * np.sin(at / 3))).mean()
        < np.abs(linear - (128 + 100 * np.sin(at / 3))).mean()
    )


def test_a_blur_is_the_mean_of_a_square() -> None:
    a = np.zeros((9, 9), np.float32)
    a[4, 4] = 9
    assert blurred(a)[3:6, 3:6].ravel().tolist() == pytest.approx([1] * 9, abs=1e-6)
    np.testing.assert_allclose(blurred(np.ones((5, 6), np.float32), 3), 1, rtol=1e-6)


def test_connected_region_of_a_maze() -> None:
    rows = [
        "#########",
        "#s    # #",
        "##### # #",
        "#     # #",
        "# ##### #",
        "#     # #",
        "##### # #",
        "#########",
    ]
    free = np.array([[c != "#" for c in r] for r in rows])
    start = np.zeros_like(free)
    start[1, 1] = True
    wanted = free.copy()
    wanted[1:7, 7] = False
    np.testing.assert_array_equal(connected(start, free), wanted)


def test_colours_tell_a_thing_from_its_ground() -> None:
    rgb = np.zeros((4, 6, 3), np.float32)
    rgb[:, :3] = (0.8, 0.2, 0.1)
    rgb[:, 3:5] = (0.2, 0.3, 0.9)
    rgb[:, 5] = (0.5, 0.9, 0.4)
    here, there = np.zeros((4, 6), np.float32), np.zeros((4, 6), np.float32)
    here[:2, :3] = 1
    there[0, 3:5] = 1
    told = colour_evidence(rgb, here, there)
    assert told[3, :3].min() > 0.9
    assert told[3, 3:5].max() < -0.9
    np.testing.assert_allclose(told[:, 5], 0)  # seen in neither


def test_a_busy_ground_is_left_behind() -> None:
    """Stripes around a thing are as closed in by edges as the thing is; their colours lie outside, too."""
    rgb = wall()
    rgb[:, ::12] = rgb[:, 1::12] = rgb[:, 2::12] = (90, 120, 60)
    rgb = disc(rgb, 128, 128, 26)
    thing = (rgb == BALL).all(axis=2)
    found = held_region(rgb, Point(128, 128), mask=box(70, 70, 186, 186))
    assert (found & thing).sum() / (found | thing).sum() > 0.8


@pytest.mark.parametrize("scale", [0.7, 1.5])
def test_arrows_apart_make_a_free_thing_larger_or_smaller(scale: float) -> None:
    before = disc(wall(), 128, 128, 30)
    arrows = [pair(128 + d, 128, 128 + scale * d, 128) for d in (-20, 20)]
    out = moved_picture(before, box(60, 60, 196, 196), arrows)
    size = (out == BALL).all(axis=2).sum() / (before == BALL).all(axis=2).sum()
    assert size == pytest.approx(scale**2, rel=0.12)


def test_a_thing_that_grows_by_half_keeps_its_own_pixels() -> None:
    before = disc(wall(), 128, 128, 30)
    arrows = [pair(128 + d, 128, 128 + 1.6 * d, 128) for d in (-20, 20)]
    motion = plan(before, box(60, 60, 196, 196), arrows)
    assert motion is not None
    inside = np.hypot(*(np.mgrid[: motion.grid.shape[0], : motion.grid.shape[1]] - 44)) < 20
    assert motion.trust().doubt()[inside].max() < 0.1


def test_one_arrow_and_a_pin_turn_a_thing() -> None:
    before, mask = bar()
    turned = red(moved_picture(before, mask, [pair(160, 128, 100, 68), pair(100, 128, 100, 128)]))
    assert turned[75:125, 100].all()
    assert not turned[128, 125:].any()
