"""Parts of a picture by a click, masks reshaped, weights of what a handle moves."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from workbench.canvas import selection
from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair
from workbench.imaging.decode import encode_png
from workbench.ui.shell import area
from workbench.ui.shell.projection import MASK_COLOURS, contrasting


def disc(cx: float, cy: float, radius: float, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """A disc, bool [H, W]."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return (x - cx) ** 2 + (y - cy) ** 2 < radius**2


def scene() -> np.ndarray:
    """A red disc on blue, uint8 [120, 160, 3]."""
    return np.where(disc(50, 60, 20)[..., None], [210, 50, 40], [60, 110, 190]).astype(np.uint8)


def test_a_click_on_a_thing_selects_it() -> None:
    found = selection.part_at(scene(), Point(50, 60))
    truth = disc(50, 60, 20)
    assert (found & truth).sum() / (found | truth).sum() > 0.85


def test_a_click_on_what_fills_the_picture_selects_nothing() -> None:
    flat = np.full((90, 120, 3), 128, np.uint8)
    assert not selection.part_at(flat, Point(60, 45)).any()


def test_growing_and_shrinking_move_the_edge() -> None:
    mask = disc(80, 60, 20)
    for by in (3, 10, -3, -10):
        changed = selection.grow(mask, by)
        radius = np.sqrt(changed.sum() / np.pi)
        assert radius == pytest.approx(20 + by, abs=1.2)
    assert (selection.grow(mask, 0) == mask).all()


def test_smoothing_takes_off_spikes() -> None:
    mask = disc(80, 60, 20)
    mask[60, 100:140] = True
    assert not selection.smooth(mask, 3)[60, 120]
    assert selection.smooth(mask, 3)[60, 80]


def test_weights_are_whole_at_the_handle_and_nothing_far_away() -> None:
    at = Point(50, 60)
    raw = selection.weights(scene(), PointPair(at, at), None)
    assert raw is not None
    with Image.open(io.BytesIO(raw)) as image:
        assert image.mode == "L"
        assert max(image.size) == 128
        grey = np.asarray(image)
    k = 128 / 160
    assert grey[round(60 * k), round(50 * k)] > 200
    assert grey[round(60 * k), round(120 * k)] == 0
    nothing = np.zeros((120, 160), np.bool_)
    nothing[5:40, 100:140] = True  # the handle may not move
    assert selection.weights(scene(), PointPair(at, at), nothing) is None


def test_a_mask_file_is_scaled_and_must_have_a_light_part() -> None:
    file = np.zeros((60, 80, 3), np.uint8)
    file[10:30, 20:60] = 255
    mask = area.mask_of(encode_png(file), (160, 120), "m.png")
    assert mask.shape == (120, 160)
    assert mask[40, 80]
    assert not mask[100, 80]
    black = encode_png(np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(BadInput) as caught:
        area.mask_of(black, (160, 120), "black.png")
    assert caught.value.code == "empty-mask"


@pytest.mark.parametrize("name", ["Magenta", "Cyan", "Lime", "Orange"])
def test_fault_14_the_mask_takes_a_colour_that_the_picture_does_not_have(name: str) -> None:
    own = MASK_COLOURS[name]
    rgb = np.full((40, 40, 3), [int(own[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    assert contrasting(rgb) != own
