"""Pixel formats: any Pillow mode to sRGB and alpha, and back to straight colours.

Used by `decode.py` only; raises whatever Pillow raises, which that module turns into `BadInput`.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

U8 = npt.NDArray[np.uint8]

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
            notices.append("The colour profile is damaged; colours are taken as sRGB.")
    return base.convert("RGB")


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """An sRGB profile: the round trip through it would only cost a bit of rounding."""
    return "srgb" in (profile.profile.profile_description or "").lower()
