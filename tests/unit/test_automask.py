"""The proposed mask: covers the arrows and the thing they pull, not the background."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.canvas.selection import propose
from workbench.core.request import Point, PointPair


def pair(hx: float, hy: float, tx: float, ty: float) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty))


def disc(w: int, h: int, cx: float, cy: float, r: float) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return (x - cx) ** 2 + (y - cy) ** 2 <= r * r


def ball() -> tuple[np.ndarray, np.ndarray]:
    """A shaded red ball of radius 50 on a noisy, greenish ground."""
    y, x = np.mgrid[:384, :512]
    rng = np.random.default_rng(1)
    rgb = np.empty((384, 512, 3))
    rgb[:] = (90, 150, 110)
    rgb += rng.normal(0, 6, rgb.shape)
    where = disc(512, 384, 200, 200, 50)
    shade = 1 - 0.35 * np.hypot(x - 185, y - 185) / 60
    rgb[where] = (np.array([210, 50, 40]) * shade[..., None])[where]
    return rgb.clip(0, 255).astype(np.uint8), where


def test_the_thing_is_covered_where_it_stands_and_where_it_will_stand() -> None:
    rgb, where = ball()
    mask = propose(rgb, [pair(200, 200, 260, 200)])
    assert mask[where].all()
    assert mask[disc(512, 384, 260, 200, 48)].mean() > 0.98
    assert mask.mean() < 0.3
    assert not mask[:, 420:].any()


def test_there_is_room_for_a_thing_that_moves_whole_after_all() -> None:
    """One end fades into the ground, so that it might be tied there; the other may not be cut off."""
    rgb = np.full((384, 512, 3), 20, np.uint8)
    thing = disc(512, 384, 200, 200, 60)
    fade = np.clip((290 - np.arange(512)) / 120, 0.06, 1)
    rgb[thing] = (np.array([30, 90, 220]) * fade[None, :, None] + 0 * rgb)[thing].astype(np.uint8)
    mask = propose(rgb, [pair(170, 200, 230, 170)])
    assert mask[disc(512, 384, 260, 170, 56)].mean() > 0.97


def test_background_is_not_taken_for_a_thing() -> None:
    rgb, _ = ball()
    mask = propose(rgb, [pair(400, 100, 430, 100)])
    assert mask[100, 400]
    assert mask.mean() < 0.1


def test_an_arrow_may_hold_as_much_or_as_little_as_there_is() -> None:
    rgb, _ = ball()
    for grow in (-1.0, 1.0):
        arrow = PointPair(Point(200, 200), Point(260, 200), grow=grow)
        assert propose(rgb, [arrow])[200, 200:260].all()


def test_no_arrows_no_mask() -> None:
    rgb, _ = ball()
    assert not propose(rgb, []).any()
    assert not propose(rgb, [pair(9, 9, 9, 9)]).any()


def test_the_proposal_does_not_depend_on_the_pictures_scale() -> None:
    rgb, _ = ball()
    big = np.kron(rgb, np.ones((3, 3, 1), np.uint8))
    small_mask = propose(rgb, [pair(200, 200, 260, 200)])
    big_mask = propose(big, [pair(601, 601, 781, 601)])
    a, b = np.kron(small_mask, np.ones((3, 3), bool)), big_mask
    assert (a & b).sum() / (a | b).sum() > 0.9


@settings(max_examples=40)
@given(
    st.integers(16, 300), st.integers(16, 300), st.integers(0, 2**31), st.integers(1, 4),
)  # fmt: skip
def test_every_end_inside_the_picture_is_painted(w: int, h: int, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    arrows = [
        pair(*(float(v) for v in rng.uniform(0, 1, 4) * (w - 1, h - 1, w - 1, h - 1)))
        for _ in range(n)
    ]
    mask = propose(rgb, arrows)
    assert mask.shape == (h, w)
    for a in arrows:
        for p in (a.handle, a.target):
            assert mask[round(p.y), round(p.x)]


def test_arrows_outside_and_on_the_border() -> None:
    rgb, _ = ball()
    for a in (pair(0, 0, 511, 383), pair(-40, 50, 30, 50), pair(511, 383, 600, 500)):
        assert propose(rgb, [a]).shape == (384, 512)


def body_with_arm() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A thick disc with an arm of three coloured parts between dark outlines; picture, body, arm."""
    rgb = np.full((256, 256, 3), (120, 190, 160), np.uint8)
    body = disc(256, 256, 80, 150, 48)
    rgb[body] = (150, 60, 60)
    arm = np.zeros((256, 256), np.bool_)
    arm[143:157, 120:216] = True
    arm &= ~body
    rgb[arm] = (40, 30, 40)
    for x, colour in ((128, (150, 60, 60)), (158, (150, 60, 60)), (188, (240, 200, 60))):
        rgb[146:154, x : x + 26] = colour
    return rgb, body, arm


def test_a_limb_is_painted_up_to_the_body_and_where_it_swings() -> None:
    rgb, body, arm = body_with_arm()
    mask = propose(rgb, [pair(208, 150, 190, 90)])
    assert mask[arm].mean() > 0.9
    assert mask[body].mean() < 0.35
    swept = [mask[round(150 - 60 * s), round(208 - 18 * s)] for s in np.linspace(0, 1, 30)]
    assert all(swept)
    assert mask[130, 165]  # half-way along the arm it needs room for half of the way
