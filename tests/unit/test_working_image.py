"""A transparent picture that comes back: no haze on what was blank, everything else as it was made."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from workbench.core.request import (
    EditRequest,
    ImageAsset,
    ModelRef,
    Point,
    PointPair,
)
from workbench.editing.working_image import WorkingImage
from workbench.imaging.crop import whole
from workbench.imaging.decode import image_id
from workbench.imaging.masks import unflatten


def piece(alpha: str | None) -> WorkingImage:
    """White with a red square, all of it open to change."""
    rgb = np.full((64, 64, 3), 255, np.uint8)
    rgb[20:40, 20:40] = (200, 30, 30)
    asset = ImageAsset(id=image_id(rgb), width=64, height=64, name="sticker")
    request = EditRequest(
        image=dataclasses.replace(asset, alpha=alpha), mask=None, prompt="a red square",
        pairs=(PointPair(Point(30, 30), Point(34, 30)),), model=ModelRef(name="storybook"),
    )  # fmt: skip
    return WorkingImage(
        request=request, source=rgb, mask=None, crop=whole(64, 64, 64), rgb=rgb,
        working_mask=None, id=asset.id,
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [None, "wb1:0123456789abcdef0123456789abcdef"])
def test_what_was_blank_stays_transparent(alpha: str | None) -> None:
    made = piece(alpha)
    edited = np.full((64, 64, 3), 246, np.uint8)  # white as an autoencoder gives it back
    edited[20:40, 24:44] = (198, 33, 28)  # the square has moved
    back = made.put_back(edited)
    shown = unflatten(back, np.where(made.source.min(axis=2) < 255, 255, 0).astype(np.uint8))
    blank = np.ones((64, 64), np.bool_)
    blank[20:40, 20:44] = False
    assert (back[blank] == (255 if alpha else 246)).all()
    assert (shown[blank][:, 3] == (0 if alpha else 9)).all()
    assert (back[20:40, 24:44] == (198, 33, 28)).all()
    assert (shown[20:40, 40:44, 3] == 227).all()  # as opaque as its darkest channel needs
    assert (made.source[0] == 255).all(), "the picture that was given has changed"
