"""Arrays of pixels: masks and what is painted in one, resampling, distances, colour and alpha.

Programs disagree: white or any colour on black, strokes on a transparent ground, a photograph whose
alpha is the mask (ComfyUI erases what is painted, a cut-out keeps it), values 0/1 or 16/235, and
lossy copies of all of these with faint noise around every edge.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFilter

from workbench.core.errors import BadInput, Notice

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

_FEW = 8  # values: labels, a palette, hard edges; more of them are soft edges or noise
_CLEAR = 0.85  # of the pixels must lie near black or near white, or it is a picture
_PHOTO = 12.0  # standard deviation of colours above which a surface is not of one colour


def painted(rgb: U8, alpha: U8 | None, label: str) -> tuple[Mask, list[Notice]]:
    """The painted part of a mask file, bool [H,W], and what had to be decided.

    Args:
        rgb: colours as stored, uint8 [H,W,3], not composed on anything.
        alpha: uint8 [H,W], None where the file is opaque.
        label: the file's name, for the messages.

    Raises:
        BadInput: code "not-a-mask" for a picture that is not a mask.
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
    """True if colours [n,3] are near black and near white, with a share of both."""
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


def mirrored(at: F32, size: int) -> F32:
    """Coordinates [n] along an axis of `size` pixels, those outside reflected at its border.

    What a thing that the border cuts leaves open shows its texture then; clamped, it shows streaks.
    """
    return np.where(at > size - 1, 2 * (size - 1) - at, np.abs(at))


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


_BINS = 12  # of each channel of a colour histogram
_RARE = 1e-4  # share of a colour that hardly occurs: it tells nothing


def colour_evidence(rgb: F32, here: F32, there: F32) -> F32:
    """How much more likely each colour is among the cells `here` than among those `there`.

    Args:
        rgb: float32 [h, w, 3] in 0..1.
        here: weights >= 0 [h, w] of the cells that show the first distribution.
        there: the same for the second.

    Returns:
        float32 [h, w], (p - q) / (p + q) of the two shares: 1 = only here, -1 = only there.
    """
    place = rgb.reshape(-1, 3) * (_BINS - 1)
    low = np.clip(np.floor(place), 0, _BINS - 2).astype(np.int64)
    high = (place - low).astype(np.float32)
    corners = []
    for corner in np.ndindex(2, 2, 2):
        at = low + np.array(corner)
        share = np.where(np.array(corner), high, 1 - high).prod(axis=1)
        corners.append(((at[:, 0] * _BINS + at[:, 1]) * _BINS + at[:, 2], share))
    shares = []
    for weights in (here.ravel(), there.ravel()):
        counts = [np.bincount(i, s * weights, _BINS**3) for i, s in corners]
        bins = np.sum(counts, axis=0).reshape(_BINS, _BINS, _BINS)
        bins = bins / max(float(weights.sum()), 1e-9)
        for axis in range(3):
            wide = np.pad(bins, [(int(a == axis), int(a == axis)) for a in range(3)])
            before, after = (wide.take(range(k, k + _BINS), axis) for k in (0, 2))
            bins = (before + 2 * bins + after) / 4
        flat = bins.ravel()
        shares.append(np.sum([s * flat[i] for i, s in corners], axis=0) + _RARE)
    p, q = shares
    return np.asarray((p - q) / (p + q), np.float32).reshape(here.shape)


def connected(region: Mask, candidates: Mask) -> Mask:
    """All of `candidates` that is connected to `region`, a part of it, by alternating sweeps."""
    count = -1
    while count != (count := int(region.sum())):
        for axis in (0, 1):
            region = _flood(region, candidates, axis)
    return region


def _flood(region: Mask, candidates: Mask, axis: int) -> Mask:
    """Spread along one axis, both ways, until the next cell that is not a candidate."""
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


# Colour spaces of profiles that fit a mode; a profile of another space is damaged or foreign.
_SPACE = {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY", "LAB": "Lab "}
_BAND_ROWS = 512  # arithmetic on whole 64 MP pictures goes in bands, to keep temporaries small


def flatten(im: Image.Image, notices: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Return (RGB on white, L alpha or None when opaque) of a loaded picture of any mode."""
    alpha: Image.Image | None = None
    profile = im.info.get("icc_profile")
    if im.mode[0] in "IF":
        values = np.asarray(im)
        grey, hint = _scaled(values)
        if hint:
            notices.append(hint)
        key = im.info.get("transparency")
        if isinstance(key, int):
            alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        base = Image.fromarray(grey)
    elif im.has_transparency_data:
        rgba = im.convert("RGBA")
        alpha, base = rgba.getchannel("A"), rgba.convert("RGB")
    elif im.mode in ("1", "LA"):
        base = im.convert("L")
    elif im.mode in _SPACE:
        base = im
    else:
        base = im.convert("RGB")
    rgb = _to_srgb(base, profile, notices)
    if alpha is not None and alpha.getextrema() == (255, 255):
        alpha = None
    if alpha is not None and alpha.getextrema() == (0, 0):
        # some programs write 32-bit BMP and TIFF with the alpha channel left empty
        notices.append("The picture is fully transparent; its colours are shown without that.")
        alpha = None
    if alpha is not None:
        rgb = Image.fromarray(_on_white(np.asarray(rgb), np.asarray(alpha)))
        notices.append("Transparent parts are shown on white; the result keeps its alpha.")
    return rgb, alpha


def unflatten(rgb: U8, alpha: U8) -> U8:
    """Undo "on white": straight [H, W, 4] whose composite on white is `rgb` to the last bit.

    Where `rgb` is darker than `alpha` allows (something was moved onto a transparent place), the
    pixel becomes as opaque as needed: a >= 255 - min(r, g, b).
    """
    out = np.empty((*rgb.shape[:2], 4), np.uint8)
    for top in range(0, rgb.shape[0], _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        ink = 255 - rgb[rows].astype(np.uint32)  # what white lacks: a/255 * (255 - colour)
        a = np.maximum(alpha[rows], ink.max(axis=2)).astype(np.uint32)
        safe = np.maximum(a, 1)[..., None]
        out[rows, :, :3] = 255 - np.minimum((ink * 255 + safe // 2) // safe, 255)
        out[rows, :, 3] = a
    return out


def _on_white(rgb: U8, alpha: U8) -> U8:
    out = np.empty_like(rgb)
    for top in range(0, rgb.shape[0], _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        a = alpha[rows, :, None].astype(np.uint32)
        ink = (255 - rgb[rows].astype(np.uint32)) * a
        out[rows] = 255 - (ink + 127) // 255
    return out


def _scaled(values: npt.NDArray[np.generic]) -> tuple[U8, str | None]:
    """Grey values of 16 or 32 bits or floats to 8 bits; Pillow's own conversion clips.

    16-bit files use their whole range (65535 is white). Wider types say nothing about theirs, so
    the smallest usual range that holds all values is taken: 0..1 (floats), 0..255, 0..65535;
    else the values are stretched from their least to their greatest.
    """
    if values.dtype in (np.uint16, np.dtype(">u2")):
        return _linear(values, 0.0, 65535.0), "The 16-bit grey values were scaled to 8 bits."
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    tops = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    top = next((t for t in tops if high <= t), None)
    if low >= 0 and top is not None:
        return _linear(values, 0.0, top), f"Grey values from 0 to {top:g} were scaled to 8 bits."
    hint = f"Grey values from {low:g} to {high:g} were stretched to 8 bits."
    return _linear(values, low, max(high, low + 1e-6)), hint


def _linear(values: npt.NDArray[np.generic], low: float, high: float) -> U8:
    out = np.empty(values.shape, np.uint8)
    for top in range(0, values.shape[0], _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        band = np.nan_to_num(values[rows].astype(np.float64), nan=low, posinf=high, neginf=low)
        share = np.clip((band - low) / (high - low), 0.0, 1.0)
        out[rows] = np.floor(share * 255.0 + 0.5)
    return out


def _to_srgb(base: Image.Image, profile: bytes | None, notices: list[str]) -> Image.Image:
    """Convert L, RGB, CMYK or LAB to sRGB, by the embedded profile where it can be used."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space != _SPACE[base.mode]:
                raise ValueError(f"a {source.profile.xcolor_space} profile on {base.mode}")
            if base.mode == "RGB" and _is_srgb(source):
                return base
            made = ImageCms.profileToProfile(
                base, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if made is not None:
                notices.append("Colours were converted from the embedded profile to sRGB.")
                return made
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notices.append("The colour profile cannot be read; colours are taken as sRGB.")
    return base.convert("RGB")


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """An sRGB profile: the round trip through it would only cost a bit of rounding."""
    return "srgb" in (profile.profile.profile_description or "").lower()
