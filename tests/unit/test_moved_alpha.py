"""The alpha channel of an edited picture goes along with what was moved."""

import numpy as np

from workbench.imaging.masks import unflatten
from workbench.storage.archive.page import followed

PEACH = (250, 200, 160)


def sticker(x: int) -> tuple[np.ndarray, np.ndarray]:
    """A light square with a white eye at column `x`, (on white, alpha)."""
    rgb = np.full((48, 64, 3), 255, np.uint8)
    alpha = np.zeros((48, 64), np.uint8)
    rgb[16:32, x : x + 16], alpha[16:32, x : x + 16] = PEACH, 255
    rgb[20:24, x + 4 : x + 8] = 255
    return rgb, alpha


def test_what_is_moved_stays_opaque_and_its_old_place_becomes_transparent() -> None:
    before, alpha = sticker(10)
    after, wanted = sticker(34)
    eye = np.zeros_like(alpha, np.bool_)
    eye[20:24, [*range(14, 18), *range(38, 42)]] = True  # white to white: nothing tells it moved
    got = followed(alpha, before, after)
    np.testing.assert_array_equal(got[~eye], wanted[~eye])
    shown = unflatten(after, got)
    assert (shown[26, 40] == (*PEACH, 255)).all()
    assert shown[18, 12, 3] == 0


def test_white_inside_of_a_thing_stays_opaque() -> None:
    before, alpha = sticker(10)
    after = before.copy()
    after[20:24, 14:18], after[20:24, 17:21] = PEACH, 255  # the eye looks aside
    np.testing.assert_array_equal(followed(alpha, before, after), alpha)


def test_without_a_change_and_under_a_faint_haze_it_is_the_same() -> None:
    before, alpha = sticker(10)
    alpha[40:44] = 90  # a soft shadow
    before[40:44] = 200
    np.testing.assert_array_equal(followed(alpha, before, before), alpha)
    hazy = before.copy()
    hazy[:8] = 245
    np.testing.assert_array_equal(followed(alpha, before, hazy), alpha)
