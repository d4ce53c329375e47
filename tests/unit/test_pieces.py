"""Moving pieces of a picture: whole things move, backgrounds stay, gaps close, nothing else changes."""

from __future__ import annotations

import pytest
import torch
from small_unet import normal

from workbench.drag.warping.pixel_warp import Pieces, move_pieces
from workbench.drag.warping.random_walker import attachment

Tensor = torch.Tensor
SKY, SUN = (-0.2, 0.1, 0.6), (0.9, 0.8, -0.5)


def scene(row: float, col: float, size: tuple[int, int] = (64, 80), radius: float = 8.0) -> Tensor:
    """A plain disc on a plain ground [1,3,h,w]."""
    rows, cols = torch.arange(size[0]).float()[:, None], torch.arange(size[1]).float()[None]
    inside = (rows - row) ** 2 + (cols - col) ** 2 <= radius**2
    pixels = torch.where(inside, torch.tensor(SUN)[:, None, None], torch.tensor(SKY)[:, None, None])
    return pixels[None]


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (64, 80)) -> Tensor:
    mask = torch.zeros(size)
    mask[top:bottom, left:right] = 1
    return mask


def at(row: float, col: float) -> Tensor:
    return torch.tensor([[row, col]])


# the disc of 8 px as one piece
WHOLE = Pieces(rigid=0.2, rim=1)


@pytest.mark.parametrize("way", [(0.0, 14.0), (-6.0, 9.0), (10.0, -12.0)])
def test_a_thing_moves_as_a_whole_and_its_ground_stays(way: tuple[float, float]) -> None:
    start, end = at(32, 40), at(32 + way[0], 40 + way[1])
    found = move_pieces(scene(32, 40), box(8, 8, 56, 72), start, end, WHOLE).picture
    truth = scene(float(end[0, 0]), float(end[0, 1]))
    wrong = ((found - truth).abs().amax(1) > 0.1).float().mean()
    assert wrong < 0.004  # of 5120 pixels fewer than 20, at the rim of the disc


def test_nothing_changes_outside_the_mask() -> None:
    picture, mask = normal(1, 3, 64, 80).tanh(), box(12, 12, 50, 60)
    moved = move_pieces(picture, mask, at(30, 30), at(24, 44), Pieces())
    kept = mask == 0
    assert torch.equal(moved.picture[..., kept], picture[..., kept])
    assert not moved.changed[kept].any()
    assert moved.changed.any()


def test_an_arrow_without_length_changes_nothing() -> None:
    picture = normal(1, 3, 64, 80).tanh()
    moved = move_pieces(picture, box(12, 12, 50, 60), at(30, 30), at(30, 30), Pieces())
    assert torch.equal(moved.picture, picture)
    assert not moved.changed.any()


def test_every_run_is_the_same_and_stays_in_range() -> None:
    picture = normal(1, 3, 64, 80).tanh()
    given = (picture, box(0, 0, 64, 80), torch.cat([at(30, 30), at(31, 34)]))
    ends = torch.cat([at(20, 60), at(60, 20)])
    first, second = (move_pieces(*given, ends, Pieces()) for _ in range(2))
    assert torch.equal(first.picture, second.picture)
    assert first.picture.isfinite().all()
    assert first.picture.abs().max() <= picture.abs().max() + 1e-5


def test_large_pictures_are_judged_at_a_reduced_size() -> None:
    size = (128, 160)
    given = (scene(64, 80, size, 16), box(16, 16, 112, 144, size), at(64, 80), at(64, 104))
    found = move_pieces(*given, Pieces(rigid=0.2, rim=1, longest=80)).picture
    truth = scene(64, 104, size, 16)
    assert ((found - truth).abs().amax(1) > 0.1).float().mean() < 0.02


def test_heat_solves_the_laplace_equation() -> None:
    """Against a dense solution, on an uneven picture."""
    h, w, edge = 16, 16, 0.3
    picture, mask = normal(1, 3, h, w).tanh(), box(2, 2, 14, 14, (h, w))
    found = attachment(picture, mask, at(8, 8), edge, radius=1.0)
    n = h * w
    index = torch.arange(n).reshape(h, w)
    matrix, right = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    pairs = [(index[1:], index[:-1]), (index[:, 1:], index[:, :-1])]
    flat = picture[0].reshape(3, n).double()
    for a, b in pairs:
        for i, j in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
            c = (-(flat[:, i] - flat[:, j]).abs().max() / 2 / edge).exp() + 1e-5
            matrix[i, i] += c
            matrix[j, j] += c
            matrix[i, j] -= c
            matrix[j, i] -= c
    gap = ((torch.cartesian_prod(torch.arange(h), torch.arange(w)) - 8.0) ** 2).sum(1).sqrt()
    for i in range(n):
        if gap[i] <= 1.5 or mask.flatten()[i] == 0:
            matrix[i] = 0
            matrix[i, i] = 1
            right[i] = float(gap[i] <= 1.5)
    expected = torch.linalg.solve(matrix, right).reshape(h, w)
    assert torch.allclose(found.double(), expected, atol=2e-3)


def test_heat_stays_in_its_thing() -> None:
    heat = attachment(scene(32, 40), box(8, 8, 56, 72), at(32, 40), 0.05)
    disc = (scene(32, 40)[0, 0] > 0.5).float()
    assert heat[disc > 0].min() > 0.9
    assert heat[disc == 0].max() < 0.05
    assert heat[:8].max() == 0


def test_a_picture_that_is_painted_all_over_cools_at_its_border() -> None:
    heat = attachment(torch.zeros(1, 3, 24, 24), torch.ones(24, 24), at(12, 12), 0.05)
    assert heat[12, 12] == 1
    assert heat[0].max() == heat[:, -1].max() == 0
    assert (heat[12, 12:23] >= heat[12, 13:24]).all()
