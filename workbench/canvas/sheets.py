"""Pictures made of pictures: before/after strip, difference heat map, contact sheet, animation."""

from __future__ import annotations

import dataclasses
import io
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from workbench.canvas.overlay import (
    INK,
    PATH,
    Style,
    overlay,
)
from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair
from workbench.imaging.decode import resize

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

# Black, violet, orange, yellow, white: monotone in brightness, so it survives grey printing.
_HEAT = np.array(
    [(0, 0, 0), (72, 12, 110), (187, 55, 84), (249, 142, 9), (252, 230, 120), (255, 255, 245)],
    np.float64,
)


def strip(
    source: U8,
    mask: Mask | None,
    pairs: Sequence[PointPair],
    result: U8,
    *,
    gap: int = 0,
    style: Style | None = None,
) -> U8:
    """Source with mask and arrows | white gap | result, at the source's height.

    `gap` 0: a twentieth of the width, at least 8 px (the reference's 25 px at 512).
    """
    h, w = source.shape[:2]
    if result.shape[:2] != (h, w):
        result = resize(result, (w, h))
    space = np.full((h, gap or max(8, w // 20), 3), 255, np.uint8)
    return np.concatenate([overlay(source, mask, pairs, style=style), space, result], axis=1)


def heatmap(before: U8, after: U8, *, full: float = 160.0) -> U8:
    """Difference map of two pictures of one size: heat over the dimmed, grey `before`.

    `full` is the difference (largest of the channels, 0 to 255) that is shown brightest.

    Raises:
        BadInput: when the sizes differ.
    """
    if before.shape != after.shape:
        raise BadInput(
            f"The pictures are {before.shape[1]}x{before.shape[0]} and "
            f"{after.shape[1]}x{after.shape[0]} px; only equal sizes can be compared.",
            code="picture-sizes",
        )
    levels = np.arange(256)
    stops = np.linspace(0, full, len(_HEAT))
    weight = np.clip(levels / (full * 0.15), 0, 1)
    grey = np.asarray(Image.fromarray(before).convert("L"), np.uint16)
    delta = (np.maximum(before, after) - np.minimum(before, after)).max(axis=2)
    index = (grey << 8) | delta
    out = np.empty_like(before)
    for c in range(3):
        heat = np.interp(levels, stops, _HEAT[:, c])
        table = levels[:, None] * 0.30 * (1 - weight) + heat * weight  # [grey, difference]
        out[..., c] = np.rint(table).astype(np.uint8).ravel()[index]
    return out


def sheet(
    pictures: Sequence[U8],
    labels: Sequence[str],
    *,
    columns: int = 0,
    cell: int = 256,
    title: str = "",
    dark: bool = False,
) -> U8:
    """Contact sheet: each picture in a cell of at most `cell` px with its label under it.

    `columns` 0: as many as make the sheet about square. Labels may have several lines.

    Raises:
        BadInput: without pictures, or when their number is not that of the labels.
    """
    if not pictures or len(pictures) != len(labels):
        raise BadInput(
            f"A sheet of {len(pictures)} pictures with {len(labels)} labels cannot be made; "
            "give as many labels as pictures, at least one.",
            code="label-count",
        )
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    columns = min(columns, len(pictures))
    ground, ink = ((24, 25, 27), (236, 234, 229)) if dark else ((255, 255, 255), (30, 30, 30))
    size = max(11, cell // 18)
    font = ImageFont.load_default(size)
    pad = max(6, cell // 24)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    wrapped = [wrap(measure, str(label), font, cell) for label in labels]
    texts = max(measure.multiline_textbbox((0, 0), t or " ", font=font)[3] for t in wrapped)
    shrunk = [fit_cell(p, cell, cell) for p in pictures]
    tall = max(p.shape[0] for p in shrunk)
    head = size * 2 + pad if title else 0
    rows = math.ceil(len(pictures) / columns)
    row_height = tall + math.ceil(texts) + 2 * pad
    out = Image.new("RGB", (columns * (cell + pad) + pad, rows * row_height + pad + head), ground)
    draw = ImageDraw.Draw(out)
    if title:
        draw.text((pad, pad), printable(title), fill=ink, font=ImageFont.load_default(size * 1.3))
    for n, (picture, text) in enumerate(zip(shrunk, wrapped, strict=True)):
        x = pad + (n % columns) * (cell + pad)
        y = pad + head + (n // columns) * row_height
        left = x + (cell - picture.shape[1]) // 2
        out.paste(Image.fromarray(picture), (left, y + tall - picture.shape[0]))
        draw.multiline_text(
            (x + cell / 2, y + tall + pad * 0.6), text, fill=ink, font=font, anchor="ma",
            align="center",
        )  # fmt: skip
    return np.array(out)


def printable(text: str) -> str:
    """Text in the letters that Pillow's own font has: accents go, signs are written out."""
    spelled = text.translate(_SIGNS)
    folded = unicodedata.normalize("NFKD", spelled)
    bare = "".join(c for c in folded if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c in _HAS else "?" for c in bare)


_SIGNS = str.maketrans({"×": "x", "→": "->", "–": "-", "—": "-", "≥": ">=", "≤": "<=", "ß": "ss"})
_HAS = "·“”‘’"


def fit_cell(picture: U8, width: int, height: int) -> U8:
    """A picture uint8 [H,W,3] as large as fits into `width` x `height` px."""
    h, w = picture.shape[:2]
    k = min(width / w, height / h)
    size = max(1, round(w * k)), max(1, round(h * k))
    return resize(picture, size, "lanczos" if k < 1 else "nearest" if k >= 3 else "bicubic")


def wrap(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
) -> str:
    """Break a label at spaces so that it fits; a word that is too long is cut."""
    lines: list[str] = []
    for line in printable(text).splitlines():
        now = ""
        for word in line.split():
            trial = f"{now} {word}".strip()
            if now and draw.textlength(trial, font=font) > width:
                lines.append(now)
                now = word
            else:
                now = trial
            while len(now) > 1 and draw.textlength(now, font=font) > width:
                now = now[:-2] + "…"
        lines.append(now)
    return "\n".join(lines)


def animation_frames(
    frames: Sequence[U8],
    pairs: Sequence[PointPair],
    trajectory: Sequence[Sequence[Point]] = (),
    *,
    longest: int = 512,
) -> list[U8]:
    """Frames of the drag at display size, with targets and the handles' way so far.

    Args:
        frames: pictures from start to result, uint8, all of one size.
        pairs: arrows in the frames' pixels.
        trajectory: handle positions [tracking][pair] in the frames' pixels; it is spread evenly
            over the frames (there may be more trackings than frames).
        longest: longest side of the output.

    Raises:
        BadInput: without frames, or with frames of different sizes.
    """
    if not frames or any(f.shape != frames[0].shape for f in frames):
        raise BadInput(
            "An animation needs at least one frame, and all frames of one size.", code="frames"
        )
    h, w = frames[0].shape[:2]
    k = min(1.0, longest / max(h, w))
    size = max(1, round(w * k)), max(1, round(h * k))
    style = Style(numbers=False)

    def scaled(p: Point) -> Point:
        return Point((p.x + 0.5) * k - 0.5, (p.y + 0.5) * k - 0.5)

    small_pairs = [
        dataclasses.replace(p, handle=scaled(p.handle), target=scaled(p.target)) for p in pairs
    ]
    way = [[scaled(p) for p in row] for row in trajectory]
    made = []
    for n, frame in enumerate(frames):
        share = (n + 1) / len(frames) if len(frames) > 1 else 1.0
        paths = way[: max(1, round(share * len(way)))]
        if n == 0 and way:
            paths = way[:1]
        picture = resize(frame, size)
        if paths:
            picture = overlay(picture, None, small_pairs, paths=paths, style=style)
        elif small_pairs:
            picture = overlay(picture, None, small_pairs, style=style)
        made.append(picture)
    return made


def animation(
    frames: Sequence[U8],
    pairs: Sequence[PointPair],
    trajectory: Sequence[Sequence[Point]] = (),
    *,
    longest: int = 512,
    milliseconds: int = 90,
    hold: int = 1200,
    kind: str = "GIF",
) -> bytes:
    """Looping picture of the drag (see `animation_frames`); the last frame stays `hold` ms.

    Args:
        frames, pairs, trajectory, longest: as for `animation_frames`.
        milliseconds: of every other frame.
        hold: of the last frame.
        kind: "GIF" plays everywhere, but has 256 colours, whose grain makes a photograph look noisy;
            "WEBP" has all of them.
    """
    pictures = animation_frames(frames, pairs, trajectory, longest=longest)
    shown = [Image.fromarray(p) for p in pictures] if kind == "WEBP" else _few_colours(pictures)
    times = [milliseconds] * (len(shown) - 1) + [hold]
    out = io.BytesIO()
    more: dict[str, Any] = {"quality": 90} if kind == "WEBP" else {"optimize": False}
    shown[0].save(out, kind, save_all=True, append_images=shown[1:], duration=times, loop=0, **more)
    return out.getvalue()


def _few_colours(pictures: Sequence[U8]) -> list[Image.Image]:
    """All of them with one palette of 256 colours: with one each, still areas flicker."""
    few = [*pictures[:: max(1, len(pictures) // 6)], pictures[-1]]
    # the marks are small: without a share of their own their colours would be rounded to grey
    style = Style()
    for colour in (style.handle, style.target, style.arrow, PATH, INK):
        few.append(np.full_like(pictures[0][: max(1, len(pictures[0]) // 8)], colour))
    palette = Image.fromarray(np.concatenate(few, axis=0)).quantize(256, dither=Image.Dither.NONE)
    dither = Image.Dither.FLOYDSTEINBERG
    return [Image.fromarray(p).quantize(palette=palette, dither=dither) for p in pictures]
