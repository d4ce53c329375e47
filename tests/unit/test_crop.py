"""Cropping and putting back: nothing outside the mask changes, no seam, detail kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from refusals import refusal

from workbench.core.config import DragConfig, GenerationConfig
from workbench.core.request import EditRequest, ImageAsset, Point, PointPair
from workbench.editing.crop_plan import crop_of
from workbench.imaging.crop import (
    Crop,
    blend_weight,
    paste,
    plan,
    whole,
)
from workbench.imaging.decode import resize


def request(width: int, height: int, *pairs: PointPair) -> EditRequest:
    return EditRequest(image=ImageAsset(id="x", width=width, height=height), pairs=pairs)


def cut(crop: Crop, rgb: np.ndarray) -> np.ndarray:
    """The crop at its working size."""
    rows, cols = crop.slices
    return resize(np.ascontiguousarray(rgb[rows, cols]), crop.working)


def pair(hx: float, hy: float, tx: float, ty: float) -> PointPair:
    return PointPair(Point(hx, hy), Point(tx, ty))


def texture(w: int, h: int, seed: int = 0) -> np.ndarray:
    """Noise with coarse and fine structure, like a photograph's."""
    rng = np.random.default_rng(seed)
    fine = Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
    coarse = Image.fromarray(rng.integers(0, 256, (h // 16 + 1, w // 16 + 1, 3), dtype=np.uint8))
    big = coarse.resize((w, h), Image.Resampling.BICUBIC)
    return np.array(Image.blend(big, fine.filter(ImageFilter.GaussianBlur(0.7)), 0.3))


def disc(w: int, h: int, cx: float, cy: float, r: float) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return (x - cx) ** 2 + (y - cy) ** 2 <= r * r


def test_small_or_wholly_free_pictures_are_taken_whole() -> None:
    mask = disc(500, 400, 200, 200, 30)
    assert plan(500, 400, mask, [], 512) == whole(500, 400, 512)
    assert plan(4000, 3000, None, [], 512) == Crop(0, 0, 4000, 3000, 512, 384)
    assert plan(400, 300, np.zeros((300, 400), bool), [], 256).is_whole(400, 300)
    assert plan(400, 300, np.ones((300, 400), bool), [], 256).is_whole(400, 300)
    assert plan(1000, 800, disc(1000, 800, 500, 400, 390), [], 512).is_whole(1000, 800)


def test_a_small_mask_in_a_big_picture_is_edited_at_full_detail() -> None:
    crop = plan(4000, 3000, disc(4000, 3000, 1000, 900, 80), [pair(1000, 900, 1050, 900)], 512)
    assert (crop.width, crop.height) == (512, 512) == crop.working
    assert crop.reduction == 1
    assert abs(crop.x0 + 256 - 1000) < 30
    bigger = plan(4000, 3000, disc(4000, 3000, 1000, 900, 500), [], 512)
    assert 1500 < bigger.width == bigger.height < 1800
    assert bigger.working == (512, 512)
    asked = plan(4000, 3000, disc(4000, 3000, 1000, 900, 80), [], 512, longest=1024)
    assert asked.width == 1024 == asked.working_width


@settings(max_examples=60)
@given(
    st.integers(300, 1500), st.integers(300, 1500), st.floats(0, 1), st.floats(0, 1),
    st.floats(3, 300), st.sampled_from([128, 256, 512]), st.booleans(),
)  # fmt: skip
def test_the_crop_holds_mask_and_arrows_and_lies_in_the_picture(  # type: ignore[no-untyped-def]
    w, h, fx, fy, r, native, gridded
) -> None:
    mask = disc(w, h, fx * (w - 1), fy * (h - 1), r)
    arrow = pair(fx * (w - 1), fy * (h - 1), w / 2, h / 2)
    asked = request(w, h, arrow)
    crop = crop_of(asked, mask, native) if gridded else plan(w, h, mask, [arrow], native)
    assert crop.x0 >= 0
    assert crop.y0 >= 0
    assert crop.x0 + crop.width <= w
    assert crop.y0 + crop.height <= h
    rows, cols = crop.slices
    assert mask[rows, cols].sum() == mask.sum()
    for p in (arrow.handle, arrow.target):
        assert crop.frame.contains(p)
        q = crop.frame.forward(p)
        assert -0.5 <= q.x <= crop.working_width - 0.5
        assert crop.frame.back(q).distance(p) < 1e-6
    assert crop.working_width % 8 == 0
    assert max(crop.working) <= max(native, 8 * 64)


def test_small_changes_of_the_mask_keep_the_crop_of_a_request() -> None:
    asked = request(1600, 1200)
    crops = [crop_of(asked, disc(1600, 1200, 860 + d, 610 - d, 90), 512) for d in range(-30, 31, 6)]
    assert len(set(crops)) <= 4  # each edge of the box moves by at most one step
    assert max(c.reduction for c in crops) <= 1.5
    edge = crop_of(request(1601, 1301), disc(1601, 1301, 1600, 1300, 90), 512)
    assert (edge.x0 + edge.width, edge.y0 + edge.height) == (1601, 1301)


def test_a_request_may_ask_for_the_whole_picture() -> None:
    mask = disc(1600, 1200, 860, 610, 90)
    asked = dataclasses.replace(request(1600, 1200), crop=False)
    assert crop_of(asked, mask, 512) == whole(1600, 1200, 512)
    made = dataclasses.replace(request(64, 48), generation=GenerationConfig())
    assert crop_of(made, None, 512) == Crop(0, 0, 64, 48, 64, 48)
    parity = dataclasses.replace(request(1600, 1200), drag=DragConfig(parity=True))
    assert crop_of(parity, mask, 512) == Crop(0, 0, 1600, 1200, 512, 384)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0, 20), st.sampled_from([64, 128, 300]))
def test_outside_the_mask_not_a_bit_changes(seed: int, feather: float, native: int) -> None:
    rng = np.random.default_rng(seed)
    full = texture(310, 230, seed)
    mask = disc(310, 230, *rng.uniform(0, 230, 2), rng.uniform(2, 80))
    crop = plan(310, 230, mask, [], native)
    edited = rng.integers(0, 256, (crop.working_height, crop.working_width, 3), dtype=np.uint8)
    before = full.copy()
    out = paste(full, edited, crop, mask, feather)
    np.testing.assert_array_equal(out[~mask], full[~mask])
    np.testing.assert_array_equal(full, before)
    deep = mask & (blend_weight(mask, feather * max(1, crop.reduction)) == 1)
    if crop.reduction == 1 and crop.working == (crop.width, crop.height):
        rows, cols = crop.slices
        np.testing.assert_array_equal(out[rows, cols][deep[rows, cols]], edited[deep[rows, cols]])


@pytest.mark.parametrize("native", [64, 128, 200, 512])
def test_an_edit_that_changes_nothing_gives_the_very_picture(native: int) -> None:
    """Also inside the mask, and although the crop was reduced (or enlarged) for the edit."""
    full = texture(480, 360)
    for mask in (disc(480, 360, 240, 180, 90), None, np.ones((360, 480), bool)):
        crop = plan(480, 360, mask, [], native)
        np.testing.assert_array_equal(paste(full, cut(crop, full), crop, mask), full)


def test_what_was_edited_is_the_edit_and_the_rest_keeps_its_detail() -> None:
    full = texture(800, 600)
    mask = disc(800, 600, 400, 300, 200)
    crop = plan(800, 600, mask, [], 256)
    assert crop.reduction > 2
    edited = cut(crop, full)
    a = crop.frame.forward(Point(400, 300))
    y, x = round(a.y), round(a.x)
    edited[y - 20 : y + 20, x - 20 : x + 20] = (255, 0, 255)
    out = paste(full, edited, crop, mask)
    assert np.abs(out[300, 400].astype(int) - (255, 0, 255)).max() <= 2
    far = mask & ~disc(800, 600, 400, 300, 120)
    np.testing.assert_array_equal(out[far], full[far])


def test_what_the_model_alone_gets_wrong_is_no_change() -> None:
    """Colours that the autoencoder shifts do not show as a patch around the edit."""
    full = texture(800, 600)
    mask = disc(800, 600, 400, 300, 200)
    crop = plan(800, 600, mask, [], 256)
    wrong = np.array([14, -20, 25])
    unedited = np.clip(cut(crop, full).astype(int) * 0.8 + 25 + wrong, 0, 255).astype(np.uint8)
    edited = unedited.copy()
    a = crop.frame.forward(Point(400, 300))
    y, x = round(a.y), round(a.x)
    edited[y - 20 : y + 20, x - 20 : x + 20] = (255, 0, 255)
    far = mask & ~disc(800, 600, 400, 300, 120)
    out = paste(full, edited, crop, mask, unedited=unedited)
    assert np.abs(out[300, 400].astype(int) - (255, 0, 255)).max() <= 2
    assert np.abs(out[far].astype(int) - full[far]).max() <= 1
    patch = paste(full, edited, crop, mask)
    assert np.abs(patch[far].astype(int) - full[far]).mean() > 10


def test_the_blend_lies_inside_the_mask_and_has_no_step() -> None:
    mask = disc(200, 200, 100, 100, 60)
    weight = blend_weight(mask, 8)
    assert weight[~mask].max() == 0
    assert weight[100, 100] == 1
    line = weight[100, 100:165]
    assert (np.diff(line) <= 0).all()
    assert np.abs(np.diff(line)).max() < 0.2
    assert (weight[mask] > 0).all()
    np.testing.assert_array_equal(blend_weight(mask, 0), mask)


def test_the_pictures_own_border_needs_no_blend_but_a_crops_does() -> None:
    mask = np.zeros((50, 60), bool)
    mask[:, 30:] = True
    weight = blend_weight(mask, 5)
    assert weight[0, 59] == 1
    assert weight[25, 30] < 0.2
    closed = blend_weight(mask, 5, (False, True, True, False))
    assert closed[0, 45] < 0.2
    assert closed[25, 59] < 0.2
    assert closed[49, 45] == 1
    assert (blend_weight(np.ones((9, 9), bool), 3) == 1).all()


def test_thin_masks_are_not_eaten_by_the_blend() -> None:
    mask = np.zeros((50, 60), bool)
    mask[20:24] = True
    weight = blend_weight(mask, 30)
    assert weight[21, 30] == 1
    mask[20:24] = False
    mask[20] = True
    assert blend_weight(mask, 30)[20, 30] == 1


def test_blend_distance_is_euclidean() -> None:
    mask = disc(80, 70, 35, 36, 25) & ~disc(80, 70, 40, 30, 5)
    ys, xs = np.nonzero(~mask)
    y, x = np.mgrid[:70, :80]
    slow = np.sqrt(((y[..., None] - ys) ** 2 + (x[..., None] - xs) ** 2).min(axis=2))
    s = np.clip(slow / 7, 0, 1)
    np.testing.assert_allclose(blend_weight(mask, 6), s * s * (3 - 2 * s), atol=1e-6)


def test_sizes_that_do_not_fit_are_refused() -> None:
    full = texture(100, 80)
    with refusal("mask-size"):
        plan(100, 80, np.zeros((10, 10), bool), [], 64)
    with refusal("outside-picture"):
        paste(full, full, Crop(60, 0, 64, 64, 64, 64), None)
    with refusal("mask-size"):
        paste(full, full, whole(100, 80, 64), np.ones((5, 5), bool))


def test_cut_mask_is_nearest() -> None:
    mask = disc(400, 300, 200, 150, 60)
    crop = plan(400, 300, mask, [], 128)
    small = crop.cut_mask(mask)
    assert small.shape == (crop.working_height, crop.working_width)
    assert small.mean() == pytest.approx(mask[crop.slices].mean(), abs=0.02)
