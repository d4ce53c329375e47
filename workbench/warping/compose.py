"""Put the picture's own moved pixels and what the model drew together, and choose between results.

Pictures are uint8, maps float32 in 0..1; "own" is the moved picture, "drawn" the model's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.imaging.decode import resize
from workbench.imaging.resample import blurred, enlarged, grown

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

AGREE = 0.2  # gap between the model's two pictures (of a range of 2) at which own pixels count 1/e
_FEATHER = 2  # working px
_NEAR = 9  # working px: around what the model drew, where colour and grain are compared
_RING = 6


def agreement(drawn: U8, again: U8, tau: float = AGREE) -> F32:
    """How much the model agrees with the moved picture [h, w]: 1 where it draws the same again.

    Args:
        drawn: the model's result uint8 [h, w, 3].
        again: the moved picture through the autoencoder and back, uint8 [h, w, 3].
        tau: see `AGREE`.
    """
    gap = blurred(np.abs(drawn.astype(np.float32) - again).mean(axis=2) / 127.5, _RING - 2)
    return blurred(np.exp(-((gap / tau) ** 2)).astype(np.float32), _RING - 2)


def composed(own: U8, drawn: U8, doubt: F32, agreed: F32 | None = None) -> U8:
    """The moved picture at its own resolution with the model's pixels where it cannot be trusted.

    Args:
        own: uint8 [H, W, 3].
        drawn: uint8 [h, w, 3], the same part at the model's resolution.
        doubt: [H, W].
        agreed: [h, w]; None: the model agrees wherever there is no doubt.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = own.shape[:2]
    k = max(1.0, height / drawn.shape[0])
    share = blurred(doubt, max(1, round(_FEATHER * k)))
    if agreed is not None:
        share = 1 - (1 - share) * np.clip(enlarged(agreed, (height, width)), 0, 1)
    new = resize(drawn, (width, height), "bicubic").astype(np.float32)
    new += _grain(own, new, doubt, k)
    out = own + share[..., None] * (new - own)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _grain(own: U8, new: F32, doubt: F32, k: float) -> F32:
    """Noise [H, W, 1] that what was drawn lacks against the pixels around it; 0 where there is none.

    The strength is Immerkaer's estimate (Computer Vision and Image Understanding 64, 1996), the noise
    is drawn from a fixed seed.
    """
    inside = doubt > 0.5
    if inside.sum() < 64:
        return np.zeros((1, 1, 1), np.float32)
    ring = grown(inside, max(2, round(_RING * k))) & (doubt < 0.05)
    if ring.sum() < 64:
        return np.zeros((1, 1, 1), np.float32)
    wanted, there = _noise(own.mean(axis=2), ring), _noise(new.mean(axis=2), inside)
    missing = float(np.sqrt(max(wanted**2 - there**2, 0.0)))
    if missing < 0.5:
        return np.zeros((1, 1, 1), np.float32)
    drawn = np.random.default_rng(0).normal(0, min(missing, 12.0), doubt.shape)
    return drawn.astype(np.float32)[..., None]


def _noise(grey: npt.NDArray[np.floating], where: Mask) -> float:
    """Standard deviation of the noise of a grey picture, robustly (median) over `where`."""
    wide = np.pad(np.asarray(grey, np.float32), 1, mode="edge")
    rows = wide[:-2] - 2 * wide[1:-1] + wide[2:]
    second = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.median(np.abs(second[where]))) / (0.6745 * 6)


# --- the judge ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seams:
    """How a candidate fits its surroundings: lower is better.

    `step`: mean difference (0..255) across the border of what was drawn beyond the picture's usual
    one; `texture`: |log2| of the detail inside against that around it.
    """

    step: float
    texture: float


def seams(picture: U8, doubt: F32) -> Seams:
    """Judge how what stands at doubtful pixels of a picture fits what surrounds it."""
    inside = doubt > 0.3
    if not inside.any() or inside.all():
        return Seams(0.0, 0.0)
    grey = picture.astype(np.float32)
    outside = grown(inside, 2 * _RING) & ~grown(inside, 1)
    ring = outside if outside.any() else ~inside
    soft = blurred(grey, 1)
    rows = np.abs(np.diff(soft, axis=0)).mean(axis=2)
    cols = np.abs(np.diff(soft, axis=1)).mean(axis=2)
    across = np.concatenate([rows[inside[1:] ^ inside[:-1]], cols[inside[:, 1:] ^ inside[:, :-1]]])
    usual = np.concatenate([rows[ring[1:] & ring[:-1]], cols[ring[:, 1:] & ring[:, :-1]]])
    step = float(across.mean() - (usual.mean() if usual.size else 0.0))
    detail = np.abs(grey - blurred(grey, 2)).mean(axis=2)
    ratio = (float(detail[inside].mean()) + 0.5) / (float(detail[ring].mean()) + 0.5)
    return Seams(step, abs(float(np.log2(ratio))))
