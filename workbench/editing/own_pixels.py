"""The moved picture of a request at full resolution and at the model's, and putting it together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.request import PointPair
from workbench.editing.working_image import Workpiece
from workbench.imaging import decode
from workbench.imaging.coords import Frame
from workbench.warping.held import PictureFeatures
from workbench.warping.layers import Motion, Plan, plan, render

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class MovedPicture:
    """A request's picture moved along its arrows.

    `full` uint8 [H, W, 3] is the edited part at the picture's own resolution, `working` [h, w, 3] the
    same as the model sees it; `full_doubt` [H, W] and `doubt` [h, w], 0..1, say how little each pixel
    can be trusted.
    """

    motion: Motion
    full: U8
    working: U8
    full_doubt: F32
    doubt: F32


def moved_of(piece: Workpiece, features: PictureFeatures | None = None) -> MovedPicture | None:
    """Move what the arrows hold on the part that is edited; None when nothing moves."""
    rows, cols = piece.crop.slices
    source = np.ascontiguousarray(piece.source[rows, cols])
    mask = piece.mask[rows, cols] if piece.mask is not None else None
    pairs = [_within(p, piece) for p in piece.request.pairs]
    motion = plan(source, mask, pairs, Plan(features=features))
    if motion is None:
        return None
    full = render(motion, source, mask, fine=True)
    doubt: F32 = np.zeros(source.shape[:2], np.float32)
    doubt[motion.grid.box] = motion.grid.full(motion.trust().doubt())
    small = decode.resize(np.rint(doubt * 255).astype(np.uint8), piece.size, "box")
    working = decode.resize(full, piece.size, "lanczos")
    return MovedPicture(motion, full, working, doubt, np.asarray(small / 255, np.float32))


def _within(pair: PointPair, piece: Workpiece) -> PointPair:
    """An arrow in pixels of the edited part."""
    crop = piece.crop
    frame = Frame(crop.x0, crop.y0, crop.width, crop.height, crop.width, crop.height)
    return frame.forward_pair(pair)
