"""Own pixels and drawn ones together: no edge, the grain of the surroundings, and a judge of seams."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.editing.crop_plan import PARTLY, POORLY, UNFIT, level_of
from workbench.editing.own_pixels import Candidates
from workbench.imaging.masks import blurred
from workbench.warping.layers import agreement, composed, seams


def ramp(side: int = 96, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    rgb = np.stack([60 + 120 * x, 80 + 90 * y, 100 + 0 * x], axis=2)
    rgb += np.random.default_rng(seed).normal(0, noise, rgb.shape[:2])[..., None]
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def square(side: int = 96, low: int = 30, high: int = 60) -> np.ndarray:
    doubt = np.zeros((side, side), np.float32)
    doubt[low:high, low:high] = 1
    return doubt


def test_own_pixels_are_kept_bit_for_bit_where_there_is_no_doubt() -> None:
    own, drawn = ramp(noise=9), np.full((48, 48, 3), 20, np.uint8)
    out = composed(own, drawn, square())
    far = square(low=25, high=65) == 0
    np.testing.assert_array_equal(out[far], own[far])
    assert np.abs(out[40:50, 40:50].astype(int) - 20).mean() < 12  # the model's


def test_what_was_drawn_gets_the_grain_around_it() -> None:
    own, drawn = ramp(noise=8), ramp()
    out = composed(own, drawn, square()).astype(float).mean(axis=2)

    def grain(part: np.ndarray) -> float:
        return float(np.std(np.diff(part, 2, axis=1)))

    inside, around = grain(out[35:55, 35:55]), grain(out[5:25, 5:85])
    assert 0.6 < inside / around < 1.5
    assert grain(composed(ramp(), ramp(), square()).astype(float).mean(axis=2)[35:55, 35:55]) < 2


def blades(side: int = 256) -> np.ndarray:
    """A texture that is no noise: its pixels hang together."""
    rough = np.random.default_rng(2).normal(0, 60, (side, side)).astype(np.float32)
    return np.clip(np.rint(110 + np.repeat(blurred(rough)[..., None], 3, 2)), 0, 255).astype(
        np.uint8
    )


def test_what_a_model_draws_smoothly_gets_the_moved_pictures_texture() -> None:
    own, y = blades(), np.linspace(60, 150, 128, dtype=np.float32)[:, None, None]
    drawn = np.broadcast_to(np.rint(y), (128, 128, 3)).astype(np.uint8)
    doubt = np.zeros((256, 256), np.float32)
    doubt[80:176, 80:176] = 1
    made = composed(own, drawn, doubt)
    inner = np.s_[96:160, 96:160]
    fine, wanted = (p.astype(np.float32) - blurred(p.astype(np.float32), 4) for p in (made, own))
    fine, wanted = fine[inner].ravel(), wanted[inner].ravel()
    assert np.corrcoef(fine, wanted)[0, 1] > 0.9
    assert fine.std() > 0.8 * wanted.std()
    coarse = made[inner].mean(axis=(1, 2)) - np.linspace(60, 150, 256)[96:160]
    assert np.abs(coarse).mean() < 6  # the model's colours
    np.testing.assert_array_equal(made[:70], own[:70])


def test_where_the_model_agrees_own_pixels_stay() -> None:
    own, again = ramp(), ramp()
    drawn = again.copy()
    drawn[40:80, 40:80] = (250, 20, 20)
    agreed = agreement(drawn, again)
    assert agreed[10, 10] > 0.99
    assert agreed[60, 60] < 0.01
    out = composed(own, drawn, np.zeros((96, 96), np.float32), agreed)
    assert np.abs(out[:20, :20].astype(int) - own[:20, :20]).max() <= 1
    assert out[60, 60, 0] > 200


def test_a_visible_seam_is_told_from_none() -> None:
    doubt, own = square(), ramp(noise=3)
    torn = own.copy()
    torn[30:60, 30:60] = (240, 30, 200)
    good, bad = seams(own, doubt), seams(torn, doubt)
    assert bad.step > good.step + 20
    flat = own.copy()
    flat[30:60, 30:60] = flat[30:60, 30:60].mean(axis=(0, 1)).astype(np.uint8)
    assert seams(flat, doubt).texture > seams(own, doubt).texture + 0.5
    assert seams(own, np.zeros_like(doubt)).step == 0


@pytest.mark.parametrize(
    ("noise", "name", "result", "why"),
    [
        (PARTLY, "draft", "draft", "fits"),
        (PARTLY + 0.01, "draft", "moved", "own-better"),
        (POORLY + 0.01, "draft", "moved", "own-better"),
        (POORLY + 0.01, "refined", "refined", "fits"),  # by a model that was trained on the picture
        (UNFIT + 0.01, "refined", "moved", "model-unfit"),
    ],
)
def test_the_moved_picture_wins_where_the_model_does_not_know_the_picture_well(
    noise: float, name: str, result: str, why: str
) -> None:
    moved, made = ramp(noise=12), ramp()
    both = Candidates(moved, made, square(), name)
    delivered, choice = both.judged({"level": level_of(noise), "noise": noise})
    assert (choice["result"], choice["why"]) == (result, why)
    assert choice["texture_moved"] < choice["texture"] + 0.5
    np.testing.assert_array_equal(delivered, moved if result == "moved" else made)


def test_three_levels_of_knowing() -> None:
    noises = (0.1, PARTLY, PARTLY + 0.001, POORLY, POORLY + 0.001, 2.0)
    assert [level_of(n) for n in noises] == ["well", "well", "partly", "partly", "poorly", "poorly"]
