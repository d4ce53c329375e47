"""The picture with what was drawn on it: darkened protected area, handles, targets, arrows.

Red handle, blue target, white arrow, as users of DragDiffusion know it; numbers as in the table of
pairs. Everything is drawn 3 times too large and shrunk, so it is smooth; sizes follow the picture's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from workbench.core.request import Point, PointPair
from workbench.imaging.coords import Viewport
from workbench.imaging.decode import encode_webp, fast_resize, resize

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]
XY = tuple[float, float]

INK: Colour = (20, 20, 20)  # hairline around everything, so that it is seen on any ground
PATH: Colour = (255, 205, 60)
_LAYER_LIMIT = 24_000_000  # pixels of a drawing layer; larger ones are supersampled less


@dataclass(frozen=True, slots=True)
class Style:
    """Colours and sizes; `unit` 0 means: from the picture's size (1 at 512x512)."""

    handle: Colour = (229, 57, 53)
    target: Colour = (30, 100, 230)
    arrow: Colour = (255, 255, 255)
    off: Colour = (150, 150, 150)
    edge: Colour = (255, 255, 255)  # the mask's outline
    dim: float = 0.75  # brightness of the protected area
    tint: Colour | None = None  # laid over the painted area, if wanted
    numbers: bool = True
    unit: float = 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """One arrow to draw, in picture pixels; `number` 0 draws none, `target` None a lone handle."""

    handle: Point
    target: Point | None
    number: int = 0
    on: bool = True


def overlay(
    rgb: U8,
    mask: Mask | None,
    pairs: Sequence[PointPair],
    *,
    paths: Sequence[Sequence[Point]] = (),
    style: Style | None = None,
) -> U8:
    """The picture with mask and arrows; also the handles' way so far, if given.

    Args:
        rgb: uint8 [H, W, 3].
        mask: bool [H, W]; outside it the picture is darkened. None, empty or full: nothing is.
        pairs: arrows in image pixels, numbered from 1.
        paths: positions of the handles after each tracking, [tracking][pair], image pixels; the
            way is drawn, and the handles at its end.
        style: colours and sizes.
    """
    s = style or Style()
    marks = [Mark(p.handle, p.target, i) for i, p in enumerate(pairs, 1)]
    return draw_marks(shade(rgb, mask, s), marks, s, paths)


def canvas_background(rgb: U8, view: Viewport) -> bytes:
    """WebP for behind the drawing canvas: the view's part of the picture at canvas size."""
    height, width = rgb.shape[:2]
    x0, y0 = max(0, int(view.x0)), max(0, int(view.y0))
    x1 = min(width, max(x0 + 1, round(view.x0 + view.width)))
    y1 = min(height, max(y0 + 1, round(view.y0 + view.height)))
    size = (view.canvas_width, view.canvas_height)
    if view.k < 0.25:  # magnified so far that pixels should be seen
        return encode_webp(resize(np.ascontiguousarray(rgb[y0:y1, x0:x1]), size, "nearest"))
    return encode_webp(fast_resize(rgb, size, (x0, y0, x1, y1)))


def shade(rgb: U8, mask: Mask | None, style: Style) -> U8:
    """Darken what is protected and outline what may change; an empty mask protects nothing."""
    if mask is None or mask.all() or not mask.any():
        return rgb.copy()
    ramp = np.arange(256)
    dark = (ramp * style.dim).astype(np.uint8)
    out = np.where(mask[..., None], rgb, dark[rgb])
    if style.tint is not None:
        for c in range(3):
            tinted = (ramp * 0.7 + style.tint[c] * 0.3).astype(np.uint8)
            out[..., c] = np.where(mask, tinted[rgb[..., c]], out[..., c])
    line = _outline(mask, max(1, round(_unit(rgb, style))))
    out[line] = (out[line] * 0.35 + np.array(style.edge) * 0.65).astype(np.uint8)
    return out


def _outline(mask: Mask, width: int) -> Mask:
    """The innermost `width` pixels of the mask along its edge (not along the picture's)."""
    inner = mask.copy()
    for _ in range(width):
        shrunk = inner.copy()
        shrunk[1:] &= inner[:-1]
        shrunk[:-1] &= inner[1:]
        shrunk[:, 1:] &= inner[:, :-1]
        shrunk[:, :-1] &= inner[:, 1:]
        inner = shrunk
    return mask & ~inner


def _unit(rgb: U8, style: Style) -> float:
    return style.unit or max(0.6, math.hypot(*rgb.shape[:2]) / 724)


def draw_marks(
    rgb: U8, marks: Sequence[Mark], style: Style, paths: Sequence[Sequence[Point]] = ()
) -> U8:
    """Draw arrows (and the handles' way) onto a picture; returns a new one."""
    if not marks and not paths:
        return rgb
    height, width = rgb.shape[:2]
    unit = _unit(rgb, style)
    points = [p for m in marks for p in (m.handle, m.target) if p is not None]
    points += [p for row in paths for p in row]
    pad = 30 * unit
    x0 = int(max(0, min(p.x for p in points) - pad))
    y0 = int(max(0, min(p.y for p in points) - pad))
    x1 = int(min(width, max(p.x for p in points) + pad))
    y1 = int(min(height, max(p.y for p in points) + pad))
    if x1 <= x0 or y1 <= y0:
        return rgb
    area = (x1 - x0) * (y1 - y0)
    zoom = next((z for z in (3, 2) if area * z * z <= _LAYER_LIMIT), 1)
    base = Image.fromarray(rgb[y0:y1, x0:x1])
    layer = base.resize((base.width * zoom, base.height * zoom), Image.Resampling.NEAREST)
    pen = _Pen(ImageDraw.Draw(layer), x0, y0, zoom, unit)
    for mark in marks:
        pen.shaft(mark, style)
    for k in range(len(paths[0]) if paths else 0):
        pen.way([row[k] for row in paths if k < len(row)])
    for mark in marks:
        pen.ends(mark, style)
    if paths:
        for p in paths[-1]:
            pen.dot(p, style.handle, 4.2)
    if style.numbers:
        for mark in marks:
            pen.number(mark)
    out = rgb.copy()
    out[y0:y1, x0:x1] = np.asarray(layer.resize(base.size, Image.Resampling.BOX))
    return out


class _Pen:
    """Draws in picture pixels on an enlarged layer that shows the part from (x0, y0) on."""

    def __init__(self, draw: ImageDraw.ImageDraw, x0: int, y0: int, zoom: int, unit: float) -> None:
        self.draw, self.x0, self.y0, self.zoom, self.unit = draw, x0, y0, zoom, unit

    def _xy(self, p: Point) -> XY:
        return (p.x - self.x0 + 0.5) * self.zoom, (p.y - self.y0 + 0.5) * self.zoom

    def _disc(self, at: XY, radius: float, colour: Colour) -> None:
        # Pillow's box is inclusive and its float coordinates are cut: whole numbers stay centred
        x0, y0, x1, y1 = (round(v + d) for d in (-radius, radius) for v in at)
        self.draw.ellipse((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=colour)

    def _line(self, a: XY, b: XY, width: float, colour: Colour) -> None:
        self.draw.line([a, b], fill=colour, width=max(1, round(width)))
        for end in (a, b):
            self._disc(end, width / 2, colour)

    def dot(self, p: Point, colour: Colour, radius: float) -> None:
        """A disc with a white ring and a dark hairline, visible on any ground."""
        size = self.unit * self.zoom
        at = self._xy(p)
        self._disc(at, (radius + 2.0) * size, INK)
        self._disc(at, (radius + 1.3) * size, (255, 255, 255))
        self._disc(at, radius * size, colour)

    def ends(self, mark: Mark, style: Style) -> None:
        """Target and handle, the handle on top."""
        if mark.target is not None:
            self.dot(mark.target, style.target if mark.on else style.off, 4.6)
        self.dot(mark.handle, style.handle if mark.on else style.off, 4.6)

    def shaft(self, mark: Mark, style: Style) -> None:
        """The arrow's line and head."""
        if mark.target is not None:
            colour = style.arrow if mark.on else style.off
            self._shaft(self._xy(mark.handle), self._xy(mark.target), colour)

    def _shaft(self, a: XY, b: XY, colour: Colour) -> None:
        size = self.unit * self.zoom
        length = math.dist(a, b)
        if length < 1e-6:
            return
        ux, uy = (b[0] - a[0]) / length, (b[1] - a[1]) / length
        gap = min(6.6 * size, length * 0.35)  # the tip stops at the target's ring
        head = min(13 * size, length * 0.6)
        tip = (b[0] - ux * gap, b[1] - uy * gap)
        neck = (tip[0] - ux * head, tip[1] - uy * head)
        for grow, ink in ((1.1 * size, INK), (0.0, colour)):
            self._line(a, neck, 3.0 * size + 2 * grow, ink)
            half = head * 0.46 + grow * 1.6
            far = (tip[0] + ux * grow * 1.8, tip[1] + uy * grow * 1.8)
            back = (neck[0] - ux * grow, neck[1] - uy * grow)
            wings = [(back[0] - uy * half * s, back[1] + ux * half * s) for s in (1, -1)]
            self.draw.polygon([far, *wings], fill=ink)

    def way(self, points: Sequence[Point]) -> None:
        """The way of one handle."""
        size = self.unit * self.zoom
        xy = [self._xy(p) for p in points]
        for width, ink in ((4.4, INK), (2.2, PATH)):
            for a, b in pairwise(xy):
                self._line(a, b, width * size, ink)

    def number(self, mark: Mark) -> None:
        """The arrow's number beside its handle, on the side away from the target."""
        if mark.number <= 0:
            return
        size = self.unit * self.zoom
        x, y = self._xy(mark.handle)
        width, height = self.draw.im.size
        if not (0 <= x <= width and 0 <= y <= height):
            return  # the handle is out of view
        ux, uy = -0.7, -0.7
        if mark.target is not None:
            bx, by = self._xy(mark.target)
            length = math.hypot(bx - x, by - y)
            if length > 1e-6:
                ux, uy = (x - bx) / length, (y - by) / length
        r = 8.0 * size
        cx = min(max(x + ux * 16 * size, r), width - r)
        cy = min(max(y + uy * 16 * size, r), height - r)
        self._disc((cx, cy), r, (25, 25, 25))
        self.draw.text(
            (cx, cy), str(mark.number), fill=(255, 255, 255), anchor="mm",
            font=ImageFont.load_default(11.5 * size),
        )  # fmt: skip
