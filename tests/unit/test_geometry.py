"""Coordinate frames: round trips, agreement with resampling, and the reference's rounding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refusal
from safetensors.numpy import load_file

from workbench.core.request import Point, PointPair
from workbench.imaging import coords, decode
from workbench.imaging.coords import Frame, Viewport

side = st.integers(16, 4000)
share = st.floats(0.0, 1.0)


@given(side, side, st.integers(1, 2000), st.integers(1, 2000), share, share)
def test_frame_round_trip(w: int, h: int, ow: int, oh: int, fx: float, fy: float) -> None:
    frame = Frame(3, 5, w, h, ow, oh)
    p = Point(3 + fx * (w - 1), 5 + fy * (h - 1))
    q = frame.back(frame.forward(p))
    assert p.distance(q) < 1e-6
    assert frame.contains(p)
    pair = PointPair(p, Point(3, 5))
    there = frame.forward_pair(pair)
    again = replace(there, handle=frame.back(there.handle), target=frame.back(there.target))
    assert again.handle.distance(p) < 1e-6
    assert again.target.distance(pair.target) < 1e-6


def test_frame_agrees_with_the_resampler() -> None:
    """A ramp that holds its own x, resized, holds at each new pixel the x the frame gives."""
    ramp = np.tile(np.arange(200, dtype=np.float32), (60, 1))
    small = np.asarray(Image.fromarray(ramp).resize((75, 20), Image.Resampling.BILINEAR))
    frame = Frame.whole(200, 60, 75, 20)
    for col in range(5, 70):
        assert small[10, col] == pytest.approx(frame.back(Point(col, 10)).x, abs=0.05)


@given(
    st.floats(0, 1000), st.floats(0, 1000), st.floats(1, 4000), st.floats(1, 4000),
    st.integers(10, 1500), st.integers(10, 1500), st.floats(-50, 5000), st.floats(-50, 5000),
)  # fmt: skip
def test_viewport_round_trip(x0, y0, w, h, cw, ch, x, y) -> None:  # type: ignore[no-untyped-def]
    view = Viewport(x0, y0, w, h, cw, ch)
    at = view.to_image(*view.to_canvas(x, y))
    assert at == pytest.approx((x, y), abs=1e-5)


def test_viewport_at_one_to_one_is_the_identity() -> None:
    view = Viewport.fit(640, 480, 640)
    assert view.to_image(320, 240) == (320, 240)
    assert view.canvas_height == 480


def test_viewport_shrunken_is_plain_multiplication() -> None:
    view = Viewport.fit(2000, 1500, 688)
    k = 2000 / 688
    x, y = view.to_image(100, 50)
    assert x == pytest.approx(100 * k)
    assert y == pytest.approx(50 * 1500 / 516)


def test_viewport_magnified_points_at_the_middle_of_a_pixel() -> None:
    """At eightfold zoom image pixel 3 covers canvas pixels 24 to 31; their middle is pixel 3."""
    view = Viewport(0, 0, 80, 60, 640, 480)
    at = [view.to_image(c, 0)[0] for c in range(24, 32)]
    assert np.mean(at) == pytest.approx(3.0)
    assert min(at) > 2.5
    assert max(at) < 3.5


@given(st.floats(1, 30), st.floats(0, 999), st.floats(0, 699))
def test_zoomed_view_stays_inside_and_keeps_points(f: float, x: float, y: float) -> None:
    whole = Viewport.fit(1000, 700, 500)
    view = whole.zoomed(f, Point(x, y), 1000, 700)
    assert view.x0 >= 0
    assert view.x0 + view.width <= 1000
    assert view.y0 >= 0
    assert view.y0 + view.height <= 700
    assert view.to_image(*view.to_canvas(x, y)) == pytest.approx((x, y), abs=1e-6)


def test_empty_views_are_refused() -> None:
    with refusal("empty"):
        Viewport(0, 0, 0, 10, 10, 10)
    with refusal("empty"):
        Viewport(0, 0, float("nan"), 10, 10, 10)
    with refusal("empty"):
        Frame(0, 0, 10, 10, 0, 10)


@pytest.mark.parametrize("case", ["masked", "nomask", "odd", "gooddrag_masked", "gooddrag_nomask"])
def test_feature_grid_and_masks_equal_the_reference(reference_dir: Path, case: str) -> None:
    folder = reference_dir / case
    meta = json.loads((folder / "case.json").read_text())
    picture = decode.decode((folder / "image.png").read_bytes())
    mask = decode.decode_mask((folder / "mask.png").read_bytes(), picture.width, picture.height)
    tensors = load_file(folder / "tensors.safetensors")
    sup, latent = coords.mask_levels(mask)
    np.testing.assert_array_equal(sup, tensors["mask_sup"][0, 0] > 0)
    np.testing.assert_array_equal(latent, tensors["mask_latent"][0, 0] > 0)
    drag = np.load(folder / "drag.npz")
    if "points_xy" in meta:
        points = [Point(*p) for p in meta["points_xy"]]
        at = coords.to_feature_grid(points, (picture.width, picture.height), sup.shape)
        np.testing.assert_array_equal(at[0::2], drag["handle_init"])
        np.testing.assert_array_equal(at[1::2], drag["target"])


def test_parity_rounds_half_to_even_and_exact_does_not_round() -> None:
    points = [Point(5, 3), Point(7, 1)]
    parity = coords.to_feature_grid(points, (100, 100), (50, 50))
    assert parity.tolist() == [[2, 2], [0, 4]]  # 1.5 -> 2, 2.5 -> 2, 0.5 -> 0, 3.5 -> 4
    exact = coords.to_feature_grid(points, (100, 100), (50, 50), parity=False)
    assert exact.tolist() == [[1.25, 2.25], [0.25, 3.25]]


def test_fault_15_point_on_the_last_row_and_column_stays_on_the_feature_grid() -> None:
    for w, h in ((512, 384), (511, 333), (200, 800), (17, 16)):
        feature_grid = coords.feature_grid_size(w, h)
        for parity in (True, False):
            at = coords.to_feature_grid([Point(w - 1, h - 1)], (w, h), feature_grid, parity=parity)
            assert 0 <= at[0, 0] <= feature_grid[0] - 1
            assert 0 <= at[0, 1] <= feature_grid[1] - 1
    loose = coords.to_feature_grid([Point(511, 511)], (512, 512), (256, 256), clamp=False)
    assert loose.tolist() == [[256, 256]]  # the reference's IndexError


@given(side, side, share, share, st.booleans())
def test_feature_grid_round_trip_within_half_a_step(
    w: int, h: int, fx: float, fy: float, parity: bool
) -> None:
    p = Point(fx * (w - 1), fy * (h - 1))
    feature_grid = coords.feature_grid_size(w, h)
    at = coords.to_feature_grid([p], (w, h), feature_grid, parity=parity)
    (q,) = coords.from_feature_grid(at, (w, h), feature_grid, parity=parity)
    # half a step from rounding, and up to a step where the clamp at the last row acted
    step = max(w / feature_grid[1], h / feature_grid[0])
    assert abs(q.x - p.x) <= step + 1e-9
    assert abs(q.y - p.y) <= step + 1e-9
    assert 0 <= q.x <= w - 1
    assert 0 <= q.y <= h - 1


@settings(max_examples=40)
@given(st.integers(1, 900), st.integers(1, 900))
def test_shrink_mask_equals_torch_nearest(n_in: int, n_out: int) -> None:
    import torch

    line = torch.arange(n_in, dtype=torch.float32)[None, None]
    theirs = torch.nn.functional.interpolate(line, size=n_out, mode="nearest")[0, 0].numpy()
    ours = coords._nearest(n_in, n_out)
    np.testing.assert_array_equal(ours, theirs)


def test_fault_19_display_scaled_pairs_come_back_within_half_a_pixel() -> None:
    """A click at any whole canvas pixel, at any size and zoom, is the pixel under the mouse."""
    for w, h in ((511, 333), (200, 800), (2000, 1500)):
        for cw in (344, 688, 1024):
            view = Viewport.fit(w, h, cw)
            for x, y in ((0, 0), (w - 1, h - 1), (w / 3, h / 2)):
                cx, cy = view.to_canvas(x, y)
                at = view.to_image(round(cx * 2) / 2, round(cy * 2) / 2)  # device scale 2
                assert abs(at[0] - x) <= 0.25 * view.scale[0] + 1e-9
                assert abs(at[1] - y) <= 0.25 * view.scale[1] + 1e-9
                exact = view.to_image(round(cx, 4), round(cy, 4))  # JSON keeps 4 digits
                assert exact == pytest.approx((x, y), abs=1e-3)


def test_clamp_and_bounds() -> None:
    assert coords.clamp_point(Point(-3, 99), 10, 20) == Point(0, 19)
    assert coords.bounds([Point(1, 5), Point(4, 2)]) == (1, 2, 4, 5)
