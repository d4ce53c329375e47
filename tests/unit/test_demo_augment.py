"""Pictures that are no scenes: shapes, ranges, determinism, variety."""

import pytest
import torch

from training import augment


@pytest.mark.parametrize("kind", ["gradients", "textures", "gratings", "synthetic"])
def test_made_pictures_are_in_range_and_differ(kind):
    make = getattr(augment, kind)
    pictures = make(6, 32, torch.Generator().manual_seed(1))
    assert pictures.shape == (6, 3, 32, 32)
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) <= 1
    assert torch.equal(pictures, make(6, 32, torch.Generator().manual_seed(1)))
    flat = pictures.flatten(1)
    assert float(torch.cdist(flat, flat).add(torch.eye(6) * 99).min()) > 0.1


def test_warped_pictures_are_in_range_and_changed():
    generator = torch.Generator().manual_seed(2)
    pictures = torch.rand(4, 3, 32, 32, generator=generator)
    out = augment.warped(pictures, generator)
    assert out.shape == pictures.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert float((out - pictures).abs().mean()) > 0.05


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 2), (4, 3), (10, 8), (32, 26)])
def test_a_fifth_of_a_batch_is_replaced(count, kept):
    generator = torch.Generator().manual_seed(3)
    pictures = torch.rand(count, 3, 32, 32, generator=generator)
    out = augment.mix_in(pictures, generator)
    assert out.shape == pictures.shape
    same = [torch.equal(a, b) for a, b in zip(out, pictures, strict=True)]
    assert same == [True] * kept + [False] * (count - kept)
