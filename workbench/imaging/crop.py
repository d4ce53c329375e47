"""Edit a part of a big picture at the model's size, and put it back without a seam.

Outside the mask not a bit of the picture changes. Inside, the edit is blended in over a few pixels
from the mask's edge, and where the edit left things as they were, the full-resolution picture's own
detail is kept: an edit that changes nothing gives back the very picture, also inside the mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from workbench.core.errors import BadInput
from workbench.core.request import PointPair
from workbench.imaging.coords import (
    Frame,
    bounds,
    clamp_point,
    shrink_mask,
)
from workbench.imaging.decode import resize, working_size

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

_MARGIN = 0.35  # of the painted box's longer side, on each side: what the model sees around it
_NEARLY_ALL = 0.8  # of the picture's area: then take all of it
_SAME = 6.0  # largest mean difference (of 255) that still counts as "left as it was"
_CHANGED = 18.0  # from here on nothing of the old detail is kept
_BAND = 256  # rows at a time


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of the picture (image pixels) and the size at which it is edited."""

    x0: int
    y0: int
    width: int
    height: int
    working_width: int
    working_height: int

    @property
    def frame(self) -> Frame:
        """Coordinates: image <-> working image."""
        return Frame(
            self.x0, self.y0, self.width, self.height, self.working_width, self.working_height
        )

    @property
    def working(self) -> tuple[int, int]:
        """(width, height) at which it is edited."""
        return self.working_width, self.working_height

    @property
    def reduction(self) -> float:
        """Image pixels per working pixel: above 1 the edit has less detail than the picture."""
        return max(self.width / self.working_width, self.height / self.working_height)

    def is_whole(self, width: int, height: int) -> bool:
        """True if it is the whole picture."""
        return (self.x0, self.y0, self.width, self.height) == (0, 0, width, height)

    def cut_mask(self, mask: Mask) -> Mask:
        """The mask's part at working size (nearest, as the reference resizes masks)."""
        rows, cols = self.slices
        return shrink_mask(mask[rows, cols], (self.working_height, self.working_width))

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the part."""
        return slice(self.y0, self.y0 + self.height), slice(self.x0, self.x0 + self.width)


def whole(width: int, height: int, native: int, *, longest: int = 0) -> Crop:
    """The whole picture, scaled to the working size."""
    return Crop(0, 0, width, height, *working_size(width, height, native, longest=longest))


def plan(
    width: int,
    height: int,
    mask: Mask | None,
    pairs: Sequence[PointPair],
    native: int,
    *,
    longest: int = 0,
) -> Crop:
    """Choose the part of a picture to edit: mask and arrows with a margin, at least native size.

    A square where the picture allows (models are trained on squares), so small that detail is
    kept, never smaller than `native` (its pixels would only be blown up). The whole picture when it
    is no larger than that, when nothing or everything is painted, or when the part would be most
    of it anyway.

    Args:
        width: the picture's width in pixels.
        height: the picture's height in pixels.
        mask: bool [height, width] or None.
        pairs: arrows in image pixels.
        native: the model's own size in pixels (256, 512, ...).
        longest: longest side of the working size; 0 = native.

    Raises:
        BadInput: when the mask is not of the picture's size.
    """
    if mask is not None and mask.shape != (height, width):
        raise BadInput(
            f"The mask is {mask.shape[1]}x{mask.shape[0]} px but the picture is "
            f"{width}x{height} px; they must have the same size.",
            code="mask-size",
        )
    side = longest or native
    if max(width, height) <= side or mask is None or not mask.any() or mask.all():
        return whole(width, height, native, longest=longest)
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x0, x1, y0, y1 = float(xs[0]), float(xs[-1]), float(ys[0]), float(ys[-1])
    ends = [p for pair in pairs for p in (pair.handle, pair.target)]
    if ends:
        left, top, right, bottom = bounds([clamp_point(p, width, height) for p in ends])
        x0, y0, x1, y1 = min(x0, left), min(y0, top), max(x1, right), max(y1, bottom)
    box = max(x1 - x0, y1 - y0) + 1
    square = math.ceil(max(side, box * (1 + 2 * _MARGIN)))
    w, h = min(square, width), min(square, height)
    if w * h >= _NEARLY_ALL * width * height:
        return whole(width, height, native, longest=longest)
    left_edge = _start((x0 + x1 + 1) / 2, w, width)
    top_edge = _start((y0 + y1 + 1) / 2, h, height)
    return Crop(left_edge, top_edge, w, h, *working_size(w, h, native, longest=longest))


def _start(centre: float, size: int, limit: int) -> int:
    """First pixel of a stretch of `size` around `centre`, inside 0 .. limit."""
    return min(max(round(centre - size / 2), 0), limit - size)


def paste(
    full: U8,
    edited: U8,
    crop: Crop,
    mask: Mask | None,
    feather: float = 3.0,
    *,
    unedited: U8 | None = None,
) -> U8:
    """Put an edited part back into the full picture.

    Args:
        full: the untouched picture, uint8 [H, W, 3].
        edited: the edited part at working size (or at the crop's size), uint8.
        crop: where it belongs.
        mask: bool [H, W]; None or empty = everything in the crop may change.
        feather: width of the blend inside the mask's edge, in working pixels (so that on a reduced
            crop the blend is not narrower than the edit's own pixels).
        unedited: the part as the model gives it back without any edit, at working size: what it
            has lost of the picture is then no change. None = it loses nothing.

    Returns:
        uint8 [H, W, 3], bit-identical to `full` wherever `mask` is False or outside the crop.

    Raises:
        BadInput: when a size does not fit.
    """
    height, width = full.shape[:2]
    rows, cols = crop.slices
    part = full[rows, cols]
    if part.shape[:2] != (crop.height, crop.width):
        raise BadInput(
            f"The crop {crop.width}x{crop.height} at ({crop.x0}, {crop.y0}) does not lie in the "
            f"{width}x{height} picture.",
            code="outside-picture",
        )
    if mask is not None and mask.shape != (height, width):
        raise BadInput(
            f"The mask is {mask.shape[1]}x{mask.shape[0]} px but the picture is "
            f"{width}x{height} px; they must have the same size.",
            code="mask-size",
        )
    size = (crop.width, crop.height)
    new = resize(edited, size, "bicubic")
    if (edited.shape[1], edited.shape[0]) != size:
        new = _with_detail(part, edited, new, unedited)
    free = mask is None or not mask.any()
    inside = np.ones(part.shape[:2], np.bool_) if mask is None or free else mask[rows, cols]
    open_sides = (
        crop.y0 == 0, crop.y0 + crop.height == height, crop.x0 == 0, crop.x0 + crop.width == width
    )  # fmt: skip
    weight = blend_weight(inside, feather * max(1.0, crop.reduction), open_sides)
    out = full.copy()
    target = out[rows, cols]
    for top in range(0, crop.height, _BAND):
        band = slice(top, top + _BAND)
        old = part[band].astype(np.float32)
        mixed = old + weight[band, :, None] * (new[band].astype(np.float32) - old)
        target[band] = np.where(inside[band, :, None], np.rint(mixed), old).astype(np.uint8)
    return out


def blend_weight(
    mask: Mask, feather: float, open_sides: tuple[bool, bool, bool, bool] = (True,) * 4
) -> F32:
    """Weight of the edit, float32 [H, W]: 0 outside the mask, rising to 1 within `feather` pixels.

    The blend lies inside the mask only. A side of the array (top, bottom, left, right) that is
    open is the picture's own border, where nothing has to be matched; a closed one counts as
    unpainted. In a mask so thin that the blend would eat it up, the blend is narrower.
    """
    pads = [(int(not open_sides[0]), int(not open_sides[1]))]
    pads += [(int(not open_sides[2]), int(not open_sides[3]))]
    padded = np.pad(mask, pads)
    inner = (
        slice(pads[0][0], padded.shape[0] - pads[0][1]),
        slice(pads[1][0], padded.shape[1] - pads[1][1]),
    )
    if feather <= 0 or padded.all():
        return mask.astype(np.float32)
    depth = _depth(padded, int(np.ceil(feather)) + 1)[inner]
    deepest = float(depth.max()) if depth.size else 0.0
    wide = min(feather, max(deepest - 1, 0.0))
    s = np.clip(depth / (wide + 1), 0.0, 1.0)
    weight: F32 = np.where(mask, s * s * (3 - 2 * s), 0.0).astype(np.float32)
    return weight


def _depth(mask: Mask, most: int) -> F32:
    """Distance of painted pixels to the nearest unpainted one, exact up to `most`, then `most`."""
    height = mask.shape[0]
    index = np.arange(height, dtype=np.float32)[:, None]
    far = np.float32(height + most)
    last = np.maximum.accumulate(np.where(mask, -far, index), axis=0)
    following = np.minimum.accumulate(np.where(mask, 2 * far, index)[::-1], axis=0)[::-1]
    up = np.minimum(np.minimum(index - last, following - index), np.float32(most)) ** 2
    best = up.copy()
    for d in range(1, most + 1):
        step = np.float32(d * d)
        np.minimum(best[:, d:], up[:, :-d] + step, out=best[:, d:])
        np.minimum(best[:, :-d], up[:, d:] + step, out=best[:, :-d])
    depth: F32 = np.minimum(np.sqrt(best), np.float32(most))
    return depth


def _with_detail(part: U8, edited: U8, new: U8, unedited: U8 | None) -> U8:
    """Add what resampling and model took from the picture, where the edit left it as it was."""
    small = (edited.shape[1], edited.shape[0])
    before = resize(np.ascontiguousarray(part), small) if unedited is None else unedited
    delta = np.abs(edited.astype(np.int16) - before).max(axis=2).astype(np.uint8)
    # blurred, and its widest value taken around: detail at the rim of a change is a ghost
    spread = Image.fromarray(delta).filter(ImageFilter.BoxBlur(1)).filter(ImageFilter.MaxFilter(5))
    soft = np.asarray(spread.filter(ImageFilter.BoxBlur(1)), np.float32)
    keep = np.clip((_CHANGED - soft) / (_CHANGED - _SAME), 0.0, 1.0)
    size = (part.shape[1], part.shape[0])
    share = resize(np.rint(keep * 255).astype(np.uint8), size, "bilinear")
    old = resize(before, size, "bicubic")
    out = np.empty_like(new)
    for top in range(0, part.shape[0], _BAND):
        band = slice(top, top + _BAND)
        lost = part[band].astype(np.float32) - old[band]
        sharp = new[band] + lost * (share[band, :, None].astype(np.float32) / 255)
        out[band] = np.clip(np.rint(sharp), 0, 255)
    return out
