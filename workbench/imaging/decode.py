"""Untrusted bytes to upright 8-bit RGB, and pixels back to clean bytes.

Everything is checked on the file's header before a pixel is decoded. Whatever is wrong with a file
comes out as one `BadInput`; Pillow raises dozens of kinds of error, and none of them gets past
this module. Arrays are C-contiguous uint8, [H, W, 3], sRGB; masks are bool [H, W], painted = True.
"""

from __future__ import annotations

import io
import json
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, PngImagePlugin

from workbench.core import keys
from workbench.core.errors import BadInput
from workbench.imaging import masks, opening
from workbench.imaging.headers import MAX_PIXELS as MAX_PIXELS  # the store's own check
from workbench.imaging.masks import flatten, unflatten
from workbench.imaging.opening import completed, is_cheap, opened, reading

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

EDIT_CHUNK = "workbench-edit"
MAX_EDIT = 256 * 1024
MAX_NAME = 80

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upload after all checks: upright, sRGB, with transparency shown on white."""

    rgb: U8  # [H, W, 3]
    alpha: U8 | None  # [H, W], None when the picture is opaque
    name: str  # a label, never a path
    notices: tuple[str, ...]  # sentences for the user: what was changed on the way in
    edit: dict[str, Any] | None  # our own metadata, when the file was saved by us

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.rgb.shape[0])

    @property
    def id(self) -> str:
        """Name of the picture by its upright RGB pixels."""
        return image_id(self.rgb)


def decode(raw: bytes, name: str = "picture", stop: opening.Stop | None = None) -> Decoded:
    """Turn an uploaded file into upright sRGB pixels.

    16-bit and float pictures are scaled, CMYK and colour profiles converted to sRGB, EXIF
    orientation applied, transparency shown on white (and returned apart), and of an animation or
    a multi-page file the first picture taken; `notices` says what is worth knowing. Another thread
    may give it up by `stop`.

    Raises:
        BadInput: when the bytes are no picture of a known format, cannot be read, or exceed a limit;
            `code` says which.
        Cancelled: when it was given up.
    """
    label = clean_name(name)
    if not is_cheap(raw, label):
        (rgb, alpha), notices, edit = opening.run("decode", raw, label, stop)
        return Decoded(rgb, alpha, label, notices, edit)
    return decode_here(raw, label)


def decode_here(raw: bytes, label: str) -> Decoded:
    """As `decode`, in this process."""
    im, kind = opened(raw, label)
    notices: list[str] = []
    if kind == "JPEG" and not raw.rstrip(b"\0").endswith(b"\xff\xd9"):
        im = completed(raw, im, label, notices)
    with reading(label, kind), im:
        rgb, alpha = _pixels(im, kind, notices)
        edit = _edit_of(im, notices) if kind == "PNG" else None
    return Decoded(rgb, alpha, label, tuple(notices), edit)


def decode_mask(raw: bytes, width: int, height: int, name: str = "mask") -> Mask:
    """Read a mask of the picture's size; True = painted = may change (see `masks.painted`).

    Raises:
        BadInput: as `decode`, and when the size is not width x height, or it is not a mask.
    """
    return read_mask(raw, width, height, name)[0]


def read_mask(
    raw: bytes, width: int, height: int, name: str = "mask", *, fit: bool = False
) -> tuple[Mask, tuple[str, ...]]:
    """As `decode_mask`, with what had to be decided, in sentences for the user.

    `fit` scales a mask of another size to the picture's.
    """
    label = clean_name(name, "mask")
    colours, alpha = (
        stored_here(raw, label) if is_cheap(raw, label) else opening.run("stored", raw, label)[0]
    )
    if colours.shape[:2] != (height, width) and not fit:
        raise BadInput(
            f'The mask "{label}" is {colours.shape[1]}x{colours.shape[0]} px but the picture is '
            f"{width}x{height} px; they must have the same size.",
            code="mask-size",
            field="mask",
        )
    mask, notices = masks.painted(colours, alpha, label)
    if mask.shape != (height, width):
        grey = Image.fromarray(mask.astype(np.uint8) * 255)
        mask = np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR)) > 127
    return mask, tuple(notices)


def stored_here(raw: bytes, label: str) -> tuple[U8, U8 | None]:
    """Upright colours as stored [H,W,3] and alpha [H,W]; greys of any depth stretched to 0..255."""
    im, kind = opened(raw, label)
    with reading(label, kind), im:
        return _stored(im)


def _stored(im: ImageFile.ImageFile) -> tuple[U8, U8 | None]:
    stored = _orientation(im, [])
    im.load()
    alpha: Image.Image | None = None
    if im.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(im).astype(np.float64))
        top = float(values.max()) or 1.0
        grey = Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8))
        base = grey.convert("RGB")
    elif im.has_transparency_data:
        rgba = im.convert("RGBA")
        alpha, base = rgba.getchannel("A"), rgba.convert("RGB")
    else:
        base = im.convert("RGB")
    turn = _UPRIGHT.get(_orientation(im, []) if stored != 1 else 1)
    if turn is not None:
        base, alpha = base.transpose(turn), alpha.transpose(turn) if alpha is not None else None
    return np.array(base), np.array(alpha) if alpha is not None else None


def encode_png(
    rgb: U8, *, alpha: U8 | None = None, edit: Mapping[str, Any] | None = None, fast: bool = False
) -> bytes:
    """Write a PNG that carries pixels and, if given, our edit settings; nothing else.

    Args:
        rgb: [H, W, 3], as on a white ground.
        alpha: [H, W]; the colours behind the white are recovered, and a pixel becomes as opaque
            as it must be to show `rgb` on white, so that decoding gives `rgb` back exactly.
        edit: JSON object for the iTXt chunk "workbench-edit".
        fast: by zlib's run-length strategy: a photograph in a quarter of the time, some percent larger.

    Raises:
        BadInput: when `edit` is not JSON or larger than 256 KiB.
    """
    info = PngImagePlugin.PngInfo()
    if edit is not None:
        info.add_itxt(EDIT_CHUNK, _edit_text(edit), zip=True)
    im = Image.fromarray(unflatten(rgb, alpha) if alpha is not None else rgb)
    out = io.BytesIO()
    zip_as = {"compress_level": 1, "compress_type": zlib.Z_RLE} if fast else {"compress_level": 6}
    im.save(out, "PNG", pnginfo=info, **zip_as)
    return out.getvalue()


def encode_jpeg(rgb: U8, quality: int = 90) -> bytes:
    """Write a JPEG without any metadata; for previews and frames (quality 1 to 95)."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality)
    return out.getvalue()


def encode_webp(rgb: U8, quality: int = 85) -> bytes:
    """Write a lossy WebP without metadata; for the canvas background (quality 1 to 100)."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "WEBP", quality=quality, method=2)
    return out.getvalue()


def encode_mask_png(mask: Mask) -> bytes:
    """Write a mask as greyscale PNG: 255 = painted = may change, 0 = kept."""
    out = io.BytesIO()
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def resize(
    rgb: U8,
    size: tuple[int, int],
    how: Literal["lanczos", "bilinear", "bicubic", "box", "nearest"] = "lanczos",
) -> U8:
    """Resample [H, W, 3] or [H, W] uint8 to `size` = (width, height); antialiased downwards.

    "bilinear" is what the reference uses (docs/algorithm.md 1.1).
    """
    if (rgb.shape[1], rgb.shape[0]) == size:
        return rgb.copy()
    return np.array(Image.fromarray(rgb).resize(size, _FILTERS[how]))


def fast_resize(rgb: U8, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> U8:
    """Resample for showing only: [H, W, 3] or [H, W] uint8, or its part `box` (x0, y0, x1, y1).

    Reduced by whole steps first, then bilinearly: a 24 MP picture in 50 ms instead of 300.
    """
    im = Image.fromarray(rgb)
    if box is None and im.size == size:
        return rgb.copy()
    return np.array(im.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))


def working_size(
    width: int, height: int, native: int = 512, multiple: int = 8, longest: int = 0
) -> tuple[int, int]:
    """Size at which a picture is edited: longest side `longest` (or `native`), aspect kept.

    Both sides are multiples of `multiple` and at least 64. Small pictures are enlarged: a model
    knows nothing of pictures smaller than those it was trained on. Only a picture so elongated
    that its short side would fall below 64 px gets a longest side above the wanted one (its area
    stays below that of the square): squeezing it instead would bend every arrow.
    """
    wanted = max(64, longest or native)
    scale = max(wanted / max(width, height), 64 / min(width, height))
    least = -(-64 // multiple) * multiple

    def side(n: int) -> int:
        return max(least, int(n * scale / multiple + 0.5) * multiple)

    w, h = side(width), side(height)
    top = wanted // multiple * multiple
    if scale == wanted / max(width, height) and top >= least:
        w, h = min(w, top), min(h, top)
    return w, h


def image_id(rgb: U8) -> str:
    """Name of a picture: hash of size and upright RGB pixels (`keys.pixels_key`)."""
    return keys.pixels_key("RGB", rgb.shape[1], rgb.shape[0], np.ascontiguousarray(rgb).tobytes())


def mask_id(mask: Mask) -> str:
    """Name of a mask: hash of size and pixels (0/255)."""
    raw = np.where(mask, 255, 0).astype(np.uint8).tobytes()
    return keys.pixels_key("L", mask.shape[1], mask.shape[0], raw)


def clean_name(name: object, default: str = "picture") -> str:
    """Make a label of a file name: no folders, no control or direction marks, 80 characters."""
    text = str(name).replace("\\", "/").rsplit("/", 1)[-1]
    text = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in text)
    return " ".join(text.split())[:MAX_NAME].strip() or default


def _pixels(im: ImageFile.ImageFile, kind: str, notices: list[str]) -> tuple[U8, U8 | None]:
    """Decode: first frame, upright, sRGB, flattened on white."""
    stored = _orientation(im, [])  # Pillow sets a TIFF upright by itself, when it loads it
    im.load()
    turn = _UPRIGHT.get(_orientation(im, notices))
    rgb, alpha = flatten(im, notices)
    if turn is not None:
        rgb = rgb.transpose(turn)
        alpha = alpha.transpose(turn) if alpha is not None else None
    if stored in _UPRIGHT:
        notices.append("The file is stored turned or mirrored (EXIF); it was set upright.")
    if _has_more(im, kind):
        what = "pages" if kind == "TIFF" else "frames"
        notices.append(f"The file has several {what}; the first one is used.")
    return np.array(rgb), np.array(alpha) if alpha is not None else None


def _orientation(im: Image.Image, notices: list[str]) -> int:
    """EXIF orientation 1 to 8; damaged EXIF does not make a picture unreadable."""
    try:
        value = im.getexif().get(0x0112, 1)
    except Exception:  # the EXIF parser meets arbitrary bytes: see _reading
        notices.append("The picture's EXIF data cannot be read; it is shown as it is stored.")
        return 1
    return value if isinstance(value, int) else 1


def _has_more(im: ImageFile.ImageFile, kind: str) -> bool:
    """True if a second frame or page exists; looks no further than that one."""
    if kind in ("PNG", "WebP", "AVIF"):
        return int(getattr(im, "n_frames", 1)) > 1
    if kind not in ("GIF", "TIFF"):
        return False
    try:
        im.seek(1)
    except Exception:  # EOFError: there is none; anything else: what follows is damaged, unused
        return False
    return True


def _edit_of(im: ImageFile.ImageFile, notices: list[str]) -> dict[str, Any] | None:
    """Our own metadata chunk, if there is one that is a JSON object of sane size."""
    text = im.info.get(EDIT_CHUNK)
    if text is None:
        return None
    try:
        if not isinstance(text, str) or len(text) > MAX_EDIT:
            raise ValueError("too long")
        data = json.loads(text, parse_constant=_no_constant)
        if not isinstance(data, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError):
        notices.append("The edit settings inside the picture cannot be read and were ignored.")
        return None
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _edit_text(edit: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(edit), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as exc:
        raise BadInput(
            f"The edit settings cannot be written as JSON: {exc}.", code="metadata"
        ) from exc
    if len(text) > MAX_EDIT:
        raise BadInput(
            f"The edit settings have {len(text)} characters; a picture carries at most {MAX_EDIT}.",
            code="metadata",
        )
    return text


def _decoded(raw: bytes, label: str) -> opening.Found:
    found = decode_here(raw, label)
    return (found.rgb, found.alpha), found.notices, found.edit


if __name__ == "__main__":  # in the sandbox's helper
    opening.serve(
        {"decode": _decoded, "stored": lambda raw, label: (stored_here(raw, label), (), None)}
    )
