"""Reading arrays between their cells, and distances inside a mask: what all pixel warps need."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]


def stretched(a: F32, box: tuple[float, float, float, float], width: int, height: int) -> F32:
    """Bilinear values of `a` between node positions `box` (x0, y0, x1, y1), on width x height."""
    x = np.linspace(box[0], box[2], width, dtype=np.float32)
    y = np.linspace(box[1], box[3], height, dtype=np.float32)
    j = np.minimum(x.astype(np.int64), a.shape[1] - 2)
    i = np.minimum(y.astype(np.int64), a.shape[0] - 2)
    u, v = x - j, (y - i)[:, None]
    across = a[:, j] * (1 - u) + a[:, j + 1] * u
    out: F32 = across[i] * (1 - v) + across[i + 1] * v
    return out


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


def swept(cells: Mask, walls: Mask) -> Mask:
    """Spread along the rows, [h, w], until the next of the `walls` [h, w - 1] between two cells."""
    h, w = cells.shape
    runs = np.zeros((h, w), np.int64)
    np.cumsum(walls, axis=1, out=runs[:, 1:])
    runs += w * np.arange(h)[:, None]
    hit = np.zeros(w * h, np.bool_)
    hit[runs[cells]] = True
    spread: Mask = hit[runs]
    return spread


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


def rounded(cells: Mask, radius: float) -> Mask:
    """Dilated by an octagon of that radius: of every five steps two by a square, three by a cross."""
    out = cells
    for step in range(round(radius)):
        if step % 5 in (1, 3):
            out = grown(out, 1)
            continue
        cross = out.copy()
        cross[1:] |= out[:-1]
        cross[:-1] |= out[1:]
        cross[:, 1:] |= out[:, :-1]
        cross[:, :-1] |= out[:, 1:]
        out = cross
    return out
