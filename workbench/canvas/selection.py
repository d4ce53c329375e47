"""Select parts of a picture by a click, reshape a mask, and weigh what a handle moves.

Masks are bool [H, W] over the whole picture; positions are image pixels.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from workbench.core.request import Point, PointPair
from workbench.imaging.resample import grown
from workbench.warping.grid import Grid
from workbench.warping.held import held, held_region
from workbench.warping.motion import displacement

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_CELLS = 88  # along the picture's longer side, for weights
_WEIGHTS = 128  # longest side of a weight map
_SOFT = 0.02  # of that side: how far the surroundings of a moved piece come along
_LARGEST = 0.5  # of the picture: what holds together more widely is background, not a thing


def part_at(rgb: U8, at: Point) -> Mask:
    """What hangs together at a position, as a handle there would hold it.

    Args:
        rgb: uint8 [H, W, 3].
        at: where it was clicked.

    Returns:
        bool [H, W]; empty when it would be most of the picture.
    """
    found = held_region(rgb, at)
    return found if found.mean() <= _LARGEST else np.zeros_like(found)


def grow(mask: Mask, by: int) -> Mask:
    """Move the mask's edge outwards by `by` px, inwards when negative; corners stay round."""
    if by < 0:
        inner: Mask = ~grow(~mask, -by)
        return inner
    out = mask
    for step in range(by):
        if step % 5 in (1, 3):  # squares and crosses in this order make an octagon
            out = grown(out, 1)
            continue
        cross = out.copy()
        cross[1:] |= out[:-1]
        cross[:-1] |= out[1:]
        cross[:, 1:] |= out[:, :-1]
        cross[:, :-1] |= out[:, 1:]
        out = cross
    return out


def smooth(mask: Mask, radius: float) -> Mask:
    """Round the mask's edge: corners and gaps smaller than `radius` px go."""
    grey = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    rounded_off: Mask = np.asarray(grey.filter(ImageFilter.GaussianBlur(radius))) > 127
    return rounded_off


def weights(rgb: U8, pair: PointPair, mask: Mask | None) -> bytes | None:
    """How far each place follows a handle: grey PNG of the whole picture, 255 = all the way.

    Found by moving the handle a little to the right and down (`warping.motion`), so a limb that hangs on
    something follows less towards its root.

    Args:
        rgb: uint8 [H, W, 3].
        pair: the arrow; its target does not matter.
        mask: bool [H, W], nothing outside follows; None or empty: everything may.

    Returns:
        PNG bytes, at most 128 px long; None where nothing is held.
    """
    height, width = rgb.shape[:2]
    grid = Grid.of(rgb, mask, _CELLS)
    if grid is None or not grid.inside(pair.handle):
        return None
    piece = held(grid, [pair], open_ground=mask is None or not mask.any())
    if not piece.any():
        return None
    step = 0.1 * max(grid.height, grid.width)
    total = np.zeros(grid.shape, np.float32)
    for axis, (dx, dy) in enumerate(((0.0, step), (step, 0.0))):
        there = Point(pair.handle.x + dx, pair.handle.y + dy)
        probe = dataclasses.replace(pair, handle=pair.handle, target=there)
        way = np.subtract(grid.cell(there), grid.cell(pair.handle))
        total += displacement(grid, piece, [probe])[axis] / np.float32(way[axis]) / 2
    full = np.zeros((height, width), np.float32)
    full[grid.box] = grid.full(np.clip(total, 0, 1))
    k = min(1.0, _WEIGHTS / max(width, height))
    size = max(2, round(width * k)), max(2, round(height * k))
    hard = Image.fromarray((255 * np.clip(full, 0, 1)).astype(np.uint8)).resize(
        size, Image.Resampling.BOX
    )
    radius = max(1.0, _SOFT * max(size))
    wide = hard.filter(ImageFilter.MaxFilter(2 * round(radius / 2) + 1))
    both = np.maximum(
        np.asarray(hard), np.asarray(wide.filter(ImageFilter.GaussianBlur(radius / 2)))
    )
    out = io.BytesIO()
    Image.fromarray(np.where(both < 6, 0, both).astype(np.uint8)).save(out, "PNG", compress_level=6)
    return out.getvalue()
