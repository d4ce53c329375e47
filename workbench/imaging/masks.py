"""What is painted in a mask file, decided from its pixels and not from its container.

Programs disagree: white or any colour on black, strokes on a transparent ground, a photograph whose
alpha is the mask (ComfyUI erases what is painted, a cut-out keeps it), values 0/1 or 16/235, and
lossy copies of all of these with faint noise around every edge.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from workbench.core.errors import BadInput, Notice

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_FEW = 8  # values: labels, a palette, hard edges; more of them are soft edges or noise
_CLEAR = 0.85  # of the pixels must lie near black or near white, or it is a picture
_PHOTO = 12.0  # standard deviation of colours from which on a surface is no single colour


def painted(rgb: U8, alpha: U8 | None, label: str) -> tuple[Mask, list[Notice]]:
    """The painted part of a mask file, bool [H,W], and what had to be decided.

    Args:
        rgb: colours as stored, uint8 [H,W,3], not composed on anything.
        alpha: uint8 [H,W], None where the file is opaque.
        label: the file's name, for the messages.

    Raises:
        BadInput: code "not-a-mask" for a picture that is no mask.
    """
    value = rgb.max(axis=2)
    if alpha is None or alpha.min() == alpha.max():
        if alpha is not None and not alpha.any() and not _two_sided(rgb.reshape(-1, 3)):
            return np.zeros(value.shape, bool), []  # nothing is drawn on a transparent ground
        return _by_value(value, label), []
    solid = alpha >= 128
    inside, outside = rgb[solid], rgb[~solid]
    if len(inside) and len(outside) and inside.std(axis=0).max() > _PHOTO:
        if _two_sided(inside):  # black and white, with some transparency besides
            return _by_value(np.where(solid, value, 0), label), []
        if (
            outside.std(axis=0).max() > _PHOTO
        ):  # a photograph with a hole, or with its ground hidden
            hole = solid.mean() > 0.5
            text = f"{label}: the {'transparent' if hole else 'opaque'} part is taken as painted."
            return (~solid if hole else solid), [Notice(text, code="mask-alpha")]
    # strokes or a cut-out on a transparent ground; a faint brush counts by its own strength
    return alpha > alpha.max() // 2, []


def _two_sided(colours: U8) -> bool:
    """Whether colours [n,3] are near black and near white, with a share of both."""
    dark = float((colours.max(axis=1) < 40).mean())
    light = float((colours.min(axis=1) > 215).mean())
    return dark + light > 0.95 and min(dark, light) > 0.001


def _by_value(value: U8, label: str) -> Mask:
    """Split grey values into background and painted by their histogram."""
    counts = np.bincount(value.ravel(), minlength=256)
    present = np.nonzero(counts)[0]
    low, high = int(present[0]), int(present[-1])
    if low == high:
        return np.full(value.shape, low >= 128)
    if len(present) <= _FEW:
        return value > low
    if high < 48:  # noise on black
        return np.zeros(value.shape, bool)
    if low > 208:  # noise on white
        return np.ones(value.shape, bool)
    at = _otsu(counts)
    split = value > at
    means = value[~split].mean(), value[split].mean()
    reach = (means[1] - means[0]) / 4
    near = np.minimum(np.abs(value - means[0]), np.abs(value - means[1])) <= reach
    if near.mean() < _CLEAR:
        raise BadInput(
            f'"{label}" looks like a picture, not a mask: paint white (edit) on black (keep), or '
            "strokes on a transparent ground.",
            code="not-a-mask",
            field="mask",
        )
    smooth = Image.fromarray(split.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(3))
    return np.asarray(smooth) > 127  # specks are noise, too


def _otsu(counts: npt.NDArray[np.int64]) -> int:
    """The value that separates two classes best (Otsu 1979): greatest variance between them."""
    levels = np.arange(256)
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    first = np.cumsum(counts * levels) / np.maximum(below, 1)
    second = np.cumsum((counts * levels)[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:].astype(float) * (first[:-1] - second[1:]) ** 2
    best = np.nonzero(between == between.max())[0]
    return int(best[len(best) // 2])  # the middle of an empty stretch between the classes
