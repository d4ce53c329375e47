"""Error against the true picture, and change outside the mask. numpy only.

Pictures are uint8 [H, W, 3]; a region is bool [H, W], None = the whole picture. Errors "relative to
doing nothing" are 1 for the untouched source and 0 for the truth, so that drags of any size and scenes
of any contrast can be averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.request import PointPair

U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
F64 = NDArray[np.float64]

PSNR_OF_EQUAL = 100.0  # dB; stands for infinity, so that means stay finite and JSON stays JSON
DAI_RADII = (1, 5, 10, 20)

_SIGMA, _RADIUS = 1.5, 5  # of SSIM's 11x11 Gaussian window
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def mae(a: U8, b: U8, region: Mask | None = None) -> float:
    """Mean absolute difference over pixels and channels, 0..255; NaN for an empty region."""
    return _mean(np.abs(a.astype(np.float64) - b), region)


def relative_mae(result: U8, truth: U8, source: U8, region: Mask | None = None) -> float:
    """Mean absolute error to the truth, relative to that of the source; NaN where these are equal."""
    nothing = mae(source, truth, region)
    return mae(result, truth, region) / nothing if nothing > 0 else math.nan


def psnr(a: U8, b: U8, region: Mask | None = None) -> float:
    """10 log10(255^2 / mean squared error) in dB, at most `PSNR_OF_EQUAL`."""
    error = _mean((a.astype(np.float64) - b) ** 2, region)
    if math.isnan(error):
        return math.nan
    if error == 0:
        return PSNR_OF_EQUAL
    return min(PSNR_OF_EQUAL, 10 * math.log10(255**2 / error))


def ssim_map(a: U8, b: U8) -> F64:
    """Structural similarity at every pixel, mean of the three channels; float64 [H, W] in [-1, 1].

    Wang et al., IEEE Trans. Image Processing 13 (2004), equation 13: 11x11 Gaussian window with
    sigma 1.5, K1 = 0.01, K2 = 0.03, range 255, population moments. At the border the window is cut
    and its weights are scaled up to sum 1 (the paper leaves a rim of 5 px out, which would leave out
    drags that end there).
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    norm = _blur(np.ones((*x.shape[:2], 1)))
    mx, my = _blur(x) / norm, _blur(y) / norm
    vx = _blur(x * x) / norm - mx * mx
    vy = _blur(y * y) / norm - my * my
    cov = _blur(x * y) / norm - mx * my
    top = (2 * mx * my + _C1) * (2 * cov + _C2)
    values: F64 = (top / ((mx * mx + my * my + _C1) * (vx + vy + _C2))).mean(axis=2)
    return values


def ssim(a: U8, b: U8, region: Mask | None = None) -> float:
    """Mean of `ssim_map` over a region: 1 for equal pictures; NaN for an empty region."""
    return _mean(ssim_map(a, b), region)


def relative_dissimilarity(
    result: U8, truth: U8, source: U8, region: Mask | None = None
) -> tuple[float, float]:
    """(SSIM to the truth, (1 - SSIM) relative to that of the source: 1 = nothing done, 0 = truth)."""
    got, nothing = ssim(result, truth, region), ssim(source, truth, region)
    return got, (1 - got) / (1 - nothing) if nothing < 1 else math.nan


def change_outside(result: U8, source: U8, mask: Mask) -> tuple[float, float]:
    """(largest, mean) absolute difference outside the mask, 0..255; zeros when all is painted."""
    difference = np.abs(result.astype(np.int16) - source)[~mask]
    if not difference.size:
        return 0.0, 0.0
    return float(difference.max()), float(difference.mean())


def _mean(values: F64, region: Mask | None) -> float:
    chosen = values if region is None else values[region]
    return float(chosen.mean()) if chosen.size else math.nan


def _blur(x: F64) -> F64:
    """Gaussian sums over 11x11 with zeros outside the picture; float64 [H, W, C]."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (_RADIUS, _RADIUS)
        wide = np.pad(x, pad)
        size = x.shape[axis]
        x = sum(w * wide.take(range(i, i + size), axis) for i, w in enumerate(weights))
    return x


# --- dragging accuracy index ------------------------------------------------------------------------------


def dai(source: U8, result: U8, pairs: Sequence[PointPair], radius: int) -> float:
    """GoodDrag's dragging accuracy index (arXiv 2404.07206, eq. 10), corrected; 0 is perfect.

    Per pair: the squared difference, in [0, 1] per channel and summed over the channels, between
    the source's patch at the handle and the result's patch at the target, averaged over the
    (2 radius + 1)^2 places of the patch; then the mean of the pairs.

    What is corrected against the authors' program (evaluation/compute_DAI.py, commit 3015cff):
    it divides by the number of pairs twice, so that pictures with several pairs look better; it
    cuts the two patches at the picture's edge without keeping them aligned, and fails where their
    shapes differ or a start is negative. Here only places that lie inside the picture on both
    sides count, and the average is over these. With one pair away from the edge the numbers are equal.

    Returns NaN without pairs, or when no place of any pair is inside.
    """
    a, b = source.astype(np.float64) / 255, result.astype(np.float64) / 255
    height, width = a.shape[:2]
    steps = np.arange(-radius, radius + 1)
    found = []
    for pair in pairs:
        axes = []
        for here, there, size in (
            (pair.handle.y, pair.target.y, height),
            (pair.handle.x, pair.target.x, width),
        ):
            i, j = round(here) + steps, round(there) + steps
            good = (i >= 0) & (i < size) & (j >= 0) & (j < size)
            axes.append((i[good], j[good]))
        (rows_a, rows_b), (cols_a, cols_b) = axes
        if not len(rows_a) or not len(cols_a):
            continue
        gap = a[np.ix_(rows_a, cols_a)] - b[np.ix_(rows_b, cols_b)]
        found.append(float((gap**2).sum(axis=2).mean()))
    return float(np.mean(found)) if found else math.nan


# --- learned perceptual distance, where it is installed ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lpips:
    """LPIPS with AlexNet (Zhang et al., arXiv 1801.03924); make it with `lpips`."""

    network: object

    def __call__(self, a: U8, b: U8) -> float:
        """Distance of two pictures at 224x224, as the published evaluations take it; 0 = equal."""
        import torch
        import torch.nn.functional as F

        tensors = [
            F.interpolate(
                torch.from_numpy(np.ascontiguousarray(p)).permute(2, 0, 1)[None].float() / 127.5 - 1,
                (224, 224), mode="bilinear", align_corners=False,
            )
            for p in (a, b)
        ]  # fmt: skip
        with torch.no_grad():
            return float(self.network(*tensors))  # type: ignore[operator]


def lpips() -> tuple[Lpips | None, str]:
    """LPIPS if package and weights are on this disk, else None; and a sentence about it.

    Nothing is downloaded: the package fetches AlexNet's weights when asked for them, which a
    benchmark must not do on its own.
    """
    import importlib.util
    from pathlib import Path

    missing = [name for name in ("lpips", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        return None, f"LPIPS is left out: the package {missing[0]!r} is not installed."
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob("alexnet-*.pth")):
        return None, "LPIPS is left out: AlexNet's weights are not on this disk."
    package = importlib.import_module("lpips")
    return Lpips(package.LPIPS(net="alex", verbose=False).eval()), "LPIPS: AlexNet, at 224x224."
