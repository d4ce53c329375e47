"""The scenes: deterministic, well placed handles, drags that land, features that move with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.scenes import (
    KINDS,
    MAIN_COLORS,
    SIZE,
    Scene,
    changed_mask,
    drag_targets,
    render,
    sample,
    sample_batch,
)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_scene_and_picture(kind: str) -> None:
    a, b = sample(kind, 7), sample(kind, 7)
    assert a == b
    assert a != sample(kind, 8)
    assert torch.equal(render([a]), render([b]))


def test_a_scene_does_not_depend_on_its_batch() -> None:
    scenes = sample_batch(12, 40)
    together = render(scenes)
    for i, scene in enumerate(scenes):
        torch.testing.assert_close(render([scene])[0], together[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_handles_are_apart_and_inside(kind: str) -> None:
    for seed in range(200):
        handles = list(sample(kind, seed).handles.values())
        assert len(handles) >= 3
        for i, h in enumerate(handles):
            assert 14 <= h.x <= SIZE - 15
            assert 14 <= h.y <= SIZE - 15
            assert all(np.hypot(h.x - o.x, h.y - o.y) >= 12 for o in handles[:i])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_drags_land_and_keep_their_length(kind: str, pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    for seed in range(20):
        scene = sample(kind, 500 + seed)
        moves = drag_targets(scene, rng, min_px=8, max_px=64, pairs=pairs)
        after = scene.drag(moves).handles
        for name, (x, y) in moves.items():
            start = scene.handles[name]
            assert 8 <= np.hypot(x - start.x, y - start.y) <= 64
            assert np.hypot(after[name].x - x, after[name].y - y) < 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_long_drags_exist(kind: str) -> None:
    rng = np.random.default_rng(1)
    found = 0
    for seed in range(30):
        try:
            drag_targets(sample(kind, seed), rng, min_px=45, max_px=64)
            found += 1
        except ValueError:
            continue
    assert found >= 3


def test_out_of_reach_goes_as_near_as_it_can() -> None:
    scene = sample("robot", 3)
    far = scene.drag("head", (250.0, 20.0))
    assert far.handles["head"].x > scene.handles["head"].x
    assert far.params["head"] == pytest.approx(14.0)


def found_at(picture: torch.Tensor, patch: torch.Tensor) -> tuple[float, float]:
    """Where a patch [3, k, k] matches a picture best by squared difference: its centre (x, y)."""
    k = patch.shape[-1]
    windows = F.unfold(picture[None], k)[0]
    best = int(((windows - patch.reshape(-1, 1)) ** 2).sum(0).argmin())
    width = picture.shape[-1] - k + 1
    return best % width + k // 2, best // width + k // 2


@pytest.mark.parametrize(
    ("kind", "handle"),
    [
        ("landscape", "sun"), ("landscape", "peak"), ("robot", "antenna"), ("animal", "head"),
        ("sailboat", "sun"), ("flower", "bloom"),
    ],
)  # fmt: skip
def test_the_picture_moves_with_its_handle(kind: str, handle: str) -> None:
    rng = np.random.default_rng(5)
    good = 0
    for seed in range(6):
        scene = sample(kind, 900 + seed)
        while True:
            moves = drag_targets(scene, rng, min_px=8, max_px=24)
            if handle in moves:
                break
        before, after = render([scene, scene.drag(moves)])
        h = scene.handles[handle]
        x, y = round(h.x), round(h.y)
        r = 9
        patch = before[:, y - r : y + r + 1, x - r : x + r + 1]
        fx, fy = found_at(after, patch)
        tx, ty = moves[handle]
        good += np.hypot(fx - tx, fy - ty) < 3
    assert good >= 5


def test_analytic_edges_agree_with_supersampling() -> None:
    scenes = sample_batch(6, 77)
    fine, plain = render(scenes, supersample=3), render(scenes)
    assert float((fine - plain).abs().mean()) < 0.006
    # no stair steps: where the fine render is between two tones, so is the plain one
    assert float((fine - plain).abs().quantile(0.999) if plain.numel() < 16e6 else 0.0) < 0.35


def test_captions_name_kind_and_colour() -> None:
    words = {"animal": "cat"}
    for scene in sample_batch(60, 11):
        assert words.get(scene.kind, scene.kind) in scene.caption
        assert scene.main_color in scene.caption
        assert scene.main_color in MAIN_COLORS
        assert len(scene.caption) < 120


def test_mask_covers_all_change_and_little_else() -> None:
    scene = sample("landscape", 21)
    x, y = scene.handles["sun"].x, scene.handles["sun"].y
    after = scene.drag("sun", (x + (20 if x < 128 else -20), y))
    mask = changed_mask(scene, after)
    a, b = render([scene, after])
    differs = ((a - b).abs().amax(0) > 2 / 255).numpy()
    assert not (differs & ~mask).any()
    assert mask.mean() < 0.5
    assert not changed_mask(scene, scene).any()


def test_unknown_names() -> None:
    with pytest.raises(KeyError):
        sample("dragon", 1)
    with pytest.raises(KeyError):
        sample("face", 1).drag("wing", (10, 10))
    with pytest.raises(ValueError, match="handles"):
        drag_targets(sample("face", 1), np.random.default_rng(0), pairs=9)
    assert isinstance(sample("face", 1), Scene)
