"""Pictures on their way to the page: small enough to be sent, encoded, as film. No Streamlit.

What shows a drag is made by `workbench.canvas.overlay` and `workbench.canvas.sheets`; here it is only brought
to the size at which it is looked at.
"""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair
from workbench.imaging.coords import Frame, bounds
from workbench.ui.shell.forms import say

log = logging.getLogger(__name__)

U8 = NDArray[np.uint8]
CLOSE_FROM = 640  # px: below it the whole picture is near enough
SHOWN = 1024  # longest side of a picture on a page, px


def frame(width: int, height: int, longest: int = SHOWN) -> Frame:
    """From a picture's own pixels to those at which it is shown (never enlarged)."""
    factor = min(1.0, longest / max(width, height))
    return Frame.whole(width, height, max(1, round(width * factor)), max(1, round(height * factor)))


def close_up(
    size: tuple[int, int],
    mask: NDArray[np.bool_] | None,
    pairs: Sequence[PointPair],
    longest: int = SHOWN,
) -> Frame | None:
    """The part of a big picture in which something happens, or None where the whole is as good.

    Args:
        size: the picture's width and height.
        mask: what may change, bool [H,W]; None or empty for everything.
        pairs: the arrows, image px; without a mask there is no part.
        longest: px at which the part is shown at most.

    Returns:
        A frame round mask and arrows with as much room on each side as a third of them; None for a
        picture that is shown whole anyway, or of which the part would be more than a third.
    """
    width, height = size
    part = part_of(mask, pairs)
    if part is None or max(size) <= CLOSE_FROM:
        return None
    x0, y0, x1, y1 = part
    room = max(32.0, (x1 - x0) / 3, (y1 - y0) / 3)
    left, top = max(0, int(x0 - room)), max(0, int(y0 - room))
    right, low = min(width, int(x1 + room) + 1), min(height, int(y1 + room) + 1)
    if right <= left or low <= top or (right - left) * (low - top) > width * height / 3:
        return None
    k = min(1.0, longest / max(right - left, low - top))
    out = max(1, round((right - left) * k)), max(1, round((low - top) * k))
    return Frame(left, top, right - left, low - top, *out)


def part_of(
    mask: NDArray[np.bool_] | None, pairs: Sequence[PointPair]
) -> tuple[float, float, float, float] | None:
    """The bounds x0, y0, x1, y1 of mask and arrows, image px; None where everything may change."""
    if mask is None or not mask.any():
        return None
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    ends = [Point(float(x), float(y)) for x, y in ((xs[0], ys[0]), (xs[-1], ys[-1]))]
    ends += [p for pair in pairs for p in (pair.handle, pair.target)]
    return bounds(ends)


def soft_mask(mask: NDArray[np.bool_], width: int, height: int) -> NDArray[np.float32]:
    """A mask bool [H,W] at another size as weights [h,w] in 0..1, its edge two pixels wide."""
    grey = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    small = grey.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.BoxBlur(1))
    return np.asarray(small, np.float32) / np.float32(255)


def composite(outside: U8, inside: U8, weight: NDArray[np.float32]) -> U8:
    """`inside` where the weight [h,w] is 1 and `outside` where it is 0; all of one size."""
    mixed = outside + weight[..., None] * (inside.astype(np.float32) - outside)
    return np.rint(mixed).astype(np.uint8)


def steadied(first: U8, way: Sequence[U8], last: U8, *, moved: bool) -> list[U8]:
    """Pictures on the way without the noise that a model's early guess of a picture has.

    The guesses differ from what they stand for by an error that changes slowly. At the end it is known
    from the result; at the beginning from the original, unless (`moved`) the drag began on a picture that
    was moved already. All are uint8 [H,W,3] of one size.
    """
    guesses = [f.astype(np.float32) for f in way]
    if not guesses:
        return []
    end = last - guesses[-1]
    begin = end if moved else first - guesses[0]
    shares = np.linspace(0, 1, len(guesses)) if len(guesses) > 1 else np.ones(1)
    mended = (g + (1 - s) * begin + s * end for g, s in zip(guesses, shares, strict=True))
    return [np.rint(f).clip(0, 255).astype(np.uint8) for f in mended]


def seen(rgb: U8, through: Frame) -> U8:
    """The part of a picture uint8 [H,W,3] that a frame shows."""
    part = rgb[through.y0 : through.y0 + through.height, through.x0 : through.x0 + through.width]
    return fit(np.ascontiguousarray(part), through.out_width, through.out_height)


def shown(rgb: U8, longest: int = SHOWN) -> U8:
    """A picture uint8 [H,W,3] at most `longest` px long."""
    to = frame(rgb.shape[1], rgb.shape[0], longest)
    return fit(rgb, to.out_width, to.out_height)


def fit(rgb: U8, width: int, height: int) -> U8:
    """A picture uint8 [H,W,3] at another size (as it is when it has that size)."""
    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = rgb.shape[0] > height
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(rgb).resize((width, height), how))


def fit_mask(mask: NDArray[np.bool_], width: int, height: int) -> NDArray[np.bool_]:
    """A mask bool [H,W] at another size; a pixel is painted when half of what it covers is."""
    if mask.shape == (height, width):
        return mask
    grey = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX)) > 127


def fit_pairs(pairs: Sequence[PointPair], to: Frame) -> tuple[PointPair, ...]:
    """Arrows in the shown picture's pixels."""
    return tuple(to.forward_pair(p) for p in pairs)


def fit_rows(rows: Sequence[Sequence[Point]], to: Frame) -> list[list[Point]]:
    """Positions [time][pair] in the shown picture's pixels."""
    return [[to.forward(p) for p in row] for row in rows]


def encode(rgb: U8, kind: str = "WEBP", quality: int = 90) -> bytes:
    """A picture uint8 [H,W,3] for the page: WEBP, JPEG or PNG bytes."""
    out = io.BytesIO()
    if kind == "PNG":
        Image.fromarray(rgb).save(out, "PNG", compress_level=1)
    elif kind == "WEBP":
        Image.fromarray(rgb).save(out, "WEBP", quality=quality, method=0)
    else:
        Image.fromarray(rgb).save(out, kind, quality=quality)
    return out.getvalue()


def decode(raw: bytes) -> U8:
    """Pixels uint8 [H,W,3] of a JPEG, PNG or WebP that the workbench itself wrote.

    Raises:
        BadInput: when it is none.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG", "WEBP")) as image:
            return np.array(image.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as exc:
        raise BadInput(say("results.a_stored_picture_could_not")) from exc


@cache
def video_encoder() -> str | None:
    """Path of an ffmpeg on this machine, or None: then there is no MP4."""
    return shutil.which("ffmpeg")


def mp4(frames: Sequence[U8], per_second: int = 12) -> bytes | None:
    """The frames (uint8 [H,W,3], one size) as an H.264 MP4, or None without an encoder."""
    ffmpeg = video_encoder()
    if ffmpeg is None:
        return None
    height, width = (side // 2 * 2 for side in frames[0].shape[:2])  # H.264 wants even sides
    raw = b"".join(np.ascontiguousarray(f[:height, :width]).tobytes() for f in frames)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "drag.mp4"
        command = [ffmpeg, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s",
                   f"{width}x{height}", "-r", str(per_second), "-i", "-", "-pix_fmt", "yuv420p",
                   "-movflags", "+faststart", str(out)]  # fmt: skip
        try:
            subprocess.run(command, input=raw, check=True, capture_output=True, timeout=60)  # noqa: S603
            return out.read_bytes()
        except (OSError, subprocess.SubprocessError) as exc:
            log.warning("no MP4: %s", exc)
            return None
