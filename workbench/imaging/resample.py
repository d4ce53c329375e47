"""Read arrays between their cells, fill gaps, spread and grow masks, measure distances inside a mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]


def enlarged(a: F32, shape: tuple[int, int]) -> F32:
    """Bilinear values of a grid [h, w] on a larger one of `shape`, cell centre on cell centre."""
    if a.shape == shape:
        return a
    made = Image.fromarray(np.ascontiguousarray(a, np.float32))
    return np.array(made.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def distance_inside(mask: Mask) -> F64:
    """Exact Euclidean distance of True cells to the nearest False cell; there must be one."""
    n, m = mask.shape
    far = float(n + m)
    index = np.arange(n, dtype=np.float64)[:, None]
    last = np.maximum.accumulate(np.where(mask, -far, index), axis=0)
    following = np.minimum.accumulate(np.where(mask, 2 * far, index)[::-1], axis=0)[::-1]
    up = np.minimum(index - last, following - index) ** 2
    cols = np.arange(m, dtype=np.float64)
    across = (cols[:, None] - cols[None, :]) ** 2
    out = np.empty((n, m))
    for row in range(n):
        out[row] = np.min(across + up[row], axis=1)
    return np.sqrt(out)


def sampled(rgb: U8, y: F32, x: F32) -> U8:
    """Bilinear colours at (y, x) [n], clamped to the picture, to 1/64 pixel.

    The three channels travel through the four look-ups and sums in one 64-bit number, 20 bits
    each (8 of colour, 12 of weight): four times as fast as floats per channel.
    """
    h, w = rgb.shape[:2]
    first, last = int(np.clip(y.min(), 0, h - 1)), int(np.clip(y.max(), 0, h - 1))
    first, last = max(0, min(first, h - 2)), min(h, last + 2)
    part = rgb[first:last].astype(np.uint64)
    packed = (
        part[..., 0] | (part[..., 1] << np.uint64(20)) | (part[..., 2] << np.uint64(40))
    ).ravel()
    sy = np.rint((np.clip(y, 0, h - 1) - first) * 64).astype(np.int64)
    sx = np.rint(np.clip(x, 0, w - 1) * 64).astype(np.int64)
    i, j = np.minimum(sy >> 6, last - first - 2), np.minimum(sx >> 6, w - 2)
    v, u = (sy - (i << 6)).astype(np.uint64), (sx - (j << 6)).astype(np.uint64)
    at, all_of = i * w + j, np.uint64(64)
    total = packed[at] * ((all_of - v) * (all_of - u))
    total += packed[at + 1] * ((all_of - v) * u)
    total += packed[at + w] * (v * (all_of - u))
    total += packed[at + w + 1] * (v * u)
    total += np.uint64(2048 * (1 + (1 << 20) + (1 << 40)))
    out = np.empty((len(at), 3), np.uint8)
    for c in range(3):
        out[:, c] = (total >> np.uint64(12 + 20 * c)) & np.uint64(255)
    return out


def cubic(rgb: U8, y: F32, x: F32) -> F32:
    """Colours at (y, x) [n] by Catmull and Rom's cubic kernel, clamped to the picture; [n, 3], 0..255."""
    h, w = rgb.shape[:2]
    y, x = np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)
    i, j = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    down, across = _catmull_rom(y - i), _catmull_rom(x - j)
    flat = rgb.reshape(-1, 3)
    out = np.zeros((len(y), 3), np.float32)
    for di in range(4):
        row = np.clip(i + di - 1, 0, h - 1) * w
        line = np.zeros_like(out)
        for dj in range(4):
            line += across[dj][:, None] * flat[row + np.clip(j + dj - 1, 0, w - 1)]
        out += down[di][:, None] * line
    return np.clip(out, 0, 255)


def _catmull_rom(t: F32) -> tuple[F32, F32, F32, F32]:
    """Weights of the four neighbours of a position t (0..1) between the second and the third."""
    return (
        -0.5 * t + t * t - 0.5 * t**3,
        1 - 2.5 * t * t + 1.5 * t**3,
        0.5 * t + 2 * t * t - 1.5 * t**3,
        -0.5 * t * t + 0.5 * t**3,
    )


def bilinear(a: F32, y: npt.NDArray[np.floating], x: npt.NDArray[np.floating]) -> F32:
    """Values of `a` [h, w] at (y, x), clamped to its border."""
    h, w = a.shape
    y, x = np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)
    i = np.minimum(y.astype(np.int64), max(0, h - 2))
    j = np.minimum(x.astype(np.int64), max(0, w - 2))
    v, u = y - i, x - j
    down, right = min(1, h - 1) * w, min(1, w - 1)
    flat, at = np.ravel(a), i * w + j
    top = flat[at] * (1 - u) + flat[at + right] * u
    low = flat[at + down] * (1 - u) + flat[at + down + right] * u
    return np.asarray(top * (1 - v) + low * v, np.float32)


def filled(values: F32, known: Mask) -> F32:
    """Values [h, w, C] with the unknown cells filled in: means of ever larger neighbourhoods.

    Pull-push (Gortler et al., SIGGRAPH 1996); known cells are returned as they are.
    """
    h, w = known.shape
    if known.all() or not known.any() or min(h, w) < 2:
        return values
    c = values.shape[2]
    even = np.pad(values * known[..., None], ((0, h % 2), (0, w % 2), (0, 0)))
    share = np.pad(known.astype(np.float32), ((0, h % 2), (0, w % 2)))
    total = even.reshape(even.shape[0] // 2, 2, -1, 2, c).sum(axis=(1, 3))
    weight = share.reshape(share.shape[0] // 2, 2, -1, 2).sum(axis=(1, 3))
    coarse = total / np.maximum(weight, 1e-6)[..., None]
    coarse = filled(coarse.astype(np.float32), weight > 0)
    rows, cols = np.mgrid[:h, :w].astype(np.float32)
    y, x = (rows + 0.5) / 2 - 0.5, (cols + 0.5) / 2 - 0.5
    wide = np.stack([bilinear(v, y, x) for v in np.moveaxis(coarse, 2, 0)], axis=2)
    return np.where(known[..., None], values, wide).astype(np.float32)


def blurred(a: F32, radius: int = 1) -> F32:
    """Mean over a square of 2 radius + 1 cells, [h, w] or [h, w, C], the border repeated."""
    for axis in (0, 1):
        pad = [(0, 0)] * a.ndim
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(a, pad, mode="edge"), axis=axis, dtype=np.float64)
        n, width = a.shape[axis], 2 * radius + 1
        low = sums.take(range(n), axis)
        a = ((sums.take(range(width, width + n), axis) - low) / width).astype(np.float32)
    return a


def connected(region: Mask, candidates: Mask) -> Mask:
    """All of `candidates` that is connected to `region`, a part of it, by alternating sweeps."""
    count = -1
    while count != (count := int(region.sum())):
        for axis in (0, 1):
            region = _flood(region, candidates, axis)
    return region


def _flood(region: Mask, candidates: Mask, axis: int) -> Mask:
    """Spread along one axis, both ways, until the next cell that is no candidate."""
    blocks = np.cumsum(~candidates, axis=axis, dtype=np.int32)
    lines = np.arange(region.shape[1 - axis], dtype=np.int32)
    label = blocks + (lines[None, :] if axis == 0 else lines[:, None]) * (region.shape[axis] + 1)
    hit = np.zeros(int(label.max()) + 1, np.bool_)
    hit[label[region]] = True
    reached: Mask = hit[label] & candidates
    return reached


def grown(cells: Mask, by: int) -> Mask:
    """Dilated by a 3 x 3 square, `by` times."""
    out = cells.copy()
    for _ in range(by):
        wide = out.copy()
        wide[1:] |= out[:-1]
        wide[:-1] |= out[1:]
        tall = wide.copy()
        tall[:, 1:] |= wide[:, :-1]
        tall[:, :-1] |= wide[:, 1:]
        out = tall
    return out
