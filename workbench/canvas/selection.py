"""Select the editable area: propose it from the arrows, select by a click, reshape; segment a handle's part.

Around each arrow a capsule, since what moves needs room on its way; and what the handle holds
(`workbench.warping.held`), where it is, on its way and where it will be. The proposal is shown, and the
brush corrects it.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from workbench.canvas.drawing import Drawing, Stroke
from workbench.canvas.rasterize import rasterise
from workbench.core.request import Point, PointPair
from workbench.imaging.coords import Frame
from workbench.imaging.decode import resize
from workbench.imaging.masks import grown
from workbench.warping.held import EDGE, Grid, PictureFeatures, conductance, held, held_region
from workbench.warping.motion import displacement

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_LONGEST = 112  # cells along the picture's longer side on which the proposal is made
_BIGGEST = 0.12  # of the picture: a larger region is background; less and less is taken for held
_OPEN = 0.6  # mean conductance across the outline, above which a region is part of the ground
_SHRINK = (0.4, 0.0, -0.4)  # added to an arrow's own `grow`, in turn


def propose(rgb: U8, pairs: Sequence[PointPair], features: PictureFeatures | None = None) -> Mask:
    """Propose the editable area for these arrows.

    Args:
        rgb: uint8 [H, W, 3].
        pairs: arrows in image pixels; those of length 0 only hold a point and add nothing.
        features: the model's features of the picture, where they are known.

    Returns:
        bool [H, W]; covers every handle and target inside the picture; empty without arrows.
    """
    height, width = rgb.shape[:2]
    moving = [p for p in pairs if p.length > 0]
    if not moving:
        return np.zeros((height, width), np.bool_)
    grid = Grid.of(rgb, None, _LONGEST)
    if grid is None:
        return np.ones((height, width), np.bool_)
    h, w = grid.shape
    frame = Frame.whole(width, height, w, h)
    mask = np.zeros((h, w), np.bool_)
    for pair in moving:
        small = frame.forward_pair(pair)
        mask |= _capsule(small, (w, h))
        mask |= _way(grid, pair, _held(grid, pair, features), pairs)
    soft = _smooth(mask, max(2, round(0.014 * max(h, w))))
    painted: Mask = resize(soft, (width, height), "bicubic") > 127
    return painted | _ends(moving, width, height)


def _held(grid: Grid, pair: PointPair, features: PictureFeatures | None) -> Mask:
    """Mask of what an arrow's handle holds; empty when it is background at every `grow`."""
    for less in _SHRINK:
        grown = dataclasses.replace(pair, grow=min(1.0, max(-1.0, pair.grow + less)))
        region = held(grid, [grown], features, open_ground=True)
        if region.sum() <= _BIGGEST * region.size and _bounded(grid, region):
            return region
    return np.zeros(grid.shape, np.bool_)


def _bounded(grid: Grid, region: Mask) -> bool:
    """True if a region ends at edges of colour, as things do, and not somewhere in an even ground."""
    down, right = conductance(grid.rgb, EDGE)
    v, u = region[1:] ^ region[:-1], region[:, 1:] ^ region[:, :-1]
    crossed = np.concatenate([down[v], right[u]])
    return bool(crossed.size) and float(crossed.mean()) < _OPEN


def _way(grid: Grid, pair: PointPair, region: Mask, pairs: Sequence[PointPair]) -> Mask:
    """A region where it is, on its way, and at its destination."""
    out = region.copy()
    if not region.any():
        return out
    near = [p for p in pairs if p is pair or p.length == 0]
    at = np.argwhere(region)
    bent = displacement(grid, region, near)[:, region].T
    whole = np.subtract(grid.cell(pair.target), grid.cell(pair.handle))
    h, w = region.shape
    for way in (bent, whole):  # on this mask it may yet turn out to move the other way
        for share in np.linspace(0, 1, 2 + int(np.abs(way).max() / 3)):
            y, x = np.rint(at + share * way).astype(np.int64).T
            good = (y >= 0) & (y < h) & (x >= 0) & (x < w)
            out[y[good], x[good]] = True
    return out


def _capsule(pair: PointPair, size: tuple[int, int]) -> Mask:
    """Room around an arrow: 0.6 of its length, within 8 to 22 % of the picture's diagonal."""
    diagonal = float(np.hypot(*size))
    radius = float(np.clip(0.6 * pair.length, 0.08 * diagonal, 0.22 * diagonal))
    stroke = Stroke((pair.handle, pair.target), 2 * radius)
    return rasterise(Drawing(shapes=(stroke,)), *size)


def _ends(pairs: Sequence[PointPair], width: int, height: int) -> Mask:
    """A dot on every handle and target: a protected handle could not move."""
    wide = max(7.0, 0.02 * float(np.hypot(width, height)))
    dots = tuple(Stroke((p,), wide) for pair in pairs for p in (pair.handle, pair.target))
    return rasterise(Drawing(shapes=dots), width, height)


def _smooth(mask: Mask, radius: int) -> U8:
    """Grow by `radius`, close gaps, round corners; still grey, so that its enlargement is smooth."""
    im = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    grown = im.filter(ImageFilter.MaxFilter(4 * radius + 1)).filter(
        ImageFilter.MinFilter(2 * radius + 1)
    )
    return np.array(grown.filter(ImageFilter.GaussianBlur(radius)))


_CELLS = 88  # along the picture's longer side, for weights
_WEIGHTS = 128  # longest side of a weight map
_SOFT = 0.02  # of that side: how far the surroundings of a moved piece come along
_LARGEST = 0.5  # of the picture: what holds together more widely is background, not a thing
_GENTLY = 0.6  # of `grow`: with so much more a thing stays within that


def part_at(rgb: U8, at: Point, grow: float = 0.0) -> Mask:
    """Mask of the connected part at a position, as a handle there would hold it.

    Args:
        rgb: uint8 [H, W, 3].
        at: where it was clicked.
        grow: -1 (the spot itself) to 1 (everything connected to it), as of an arrow's handle.

    Returns:
        bool [H, W]; empty when it would be most of the picture.
    """
    # heat falls off steeply at the edge of a thing, gently on a ground that has none
    for colours in (True, False):  # a thing in its ground's colours has an edge only
        most = held_region(rgb, at, grow=min(1.0, grow + _GENTLY), colours=colours)
        if most.mean() <= _LARGEST:
            return held_region(rgb, at, grow=grow, colours=colours)
    return np.zeros_like(most)


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
    """Weight with which each pixel follows a handle: grey PNG of the whole picture, 255 = fully.

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
