"""The instant preview of a drag: what hangs together moves as one piece, what lies behind it stays.

A smooth warp of everything that is painted (`preview.warp`) bends a long thin thing such as an arm
like rubber, and drags the background along. Here the thing under each handle is cut out, laid over
what lies behind it, and turned about the place where it runs out of the painted area.

Which pixels belong to the thing is asked of the painted area's outline, most of which lies on what is
behind. The thing moves by moving least squares with rigid transformations (Schaefer, McPhail, Warren,
SIGGRAPH 2006), written with complex numbers. Where no thing can be told from its surroundings (the
mouth of a face that fills the area, the texture of a photograph), the smooth warp is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.canvas.automask import connected
from workbench.canvas.preview import warp
from workbench.core.request import PointPair
from workbench.imaging.decode import fast_resize
from workbench.imaging.resample import (
    grown,
    sampled,
    stretched,
    swept,
)

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
C64 = npt.NDArray[np.complex64]

_CELLS = 96  # cells along the longer side of the painted box: piece and movement are found on these
_ALIKE = 0.12  # colours (0..1, largest channel) closer than this are one colour of the outline
_SHARE = 0.15  # of the outline: a colour that holds as much of it is background
_CLEAR = 3.0  # cells: a second surface closer than this to a handle is what is dragged
_STEP = 0.045  # from cell to cell within one surface
_LARGEST = 0.6  # of the painted area: what is larger is no piece in front of something
_OPEN = 0.35  # of the painted area's outline: likewise for what runs out of it so widely
_ANCHORS = 16
_HOLD = 0.5  # weight of all anchors of a piece together, per arrow
_SLIVER = 4  # cells: so little unpainted at the picture's border holds nothing
_RIM = 1  # cells taken along: the anti-aliased outline


def sketch(rgb: U8, mask: Mask | None, pairs: Sequence[PointPair]) -> U8:
    """What a drag is meant to do, for the eye: some 20 ms for a picture of 512 x 512 px.

    Args:
        rgb: uint8 [H, W, 3].
        mask: bool [H, W], True = may change; None or empty = the whole picture may, and nothing
            says what stays behind: the smooth warp.
        pairs: arrows in image pixels; a pair of length 0 holds its point still.

    Returns:
        uint8 [H, W, 3], bit-identical outside the mask.
    """
    if mask is None or not mask.any() or not any(p.length > 0 for p in pairs):
        return warp(rgb, mask, pairs)
    cut = _Cut.of(rgb, mask)
    pieces = cut.pieces(pairs) if cut is not None else []
    return cut.painted(rgb, mask, pieces) if cut is not None and pieces else warp(rgb, mask, pairs)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A thing that moves: `cells` bool [h, w], and its control points in cells (x + iy)."""

    cells: Mask
    before: C64
    after: C64
    weights: F32  # of the control points: all places that hold on weigh as much as the arrows


@dataclass(frozen=True, slots=True)
class _Cut:
    """The painted box reduced to cells; cell (i, j)'s centre is pixel (y0 + (i + .5) k - .5, ...)."""

    y0: int
    x0: int
    height: int
    width: int
    ky: float
    kx: float
    rgb: F32  # [h, w, 3], 0..1
    area: Mask  # [h, w]
    border: tuple[bool, bool, bool, bool]  # which sides are the picture's: top, bottom, left, right

    @classmethod
    def of(cls, rgb: U8, mask: Mask) -> _Cut | None:
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y0, x0 = max(0, int(ys[0]) - 3), max(0, int(xs[0]) - 3)
        y1, x1 = min(mask.shape[0], int(ys[-1]) + 4), min(mask.shape[1], int(xs[-1]) + 4)
        height, width = y1 - y0, x1 - x0
        k = max(1.0, max(height, width) / _CELLS)
        w, h = max(1, round(width / k)), max(1, round(height / k))
        if min(h, w) < 8:
            return None
        small = fast_resize(np.ascontiguousarray(rgb[y0:y1, x0:x1]), (w, h))
        share = fast_resize(mask[y0:y1, x0:x1].astype(np.uint8) * 255, (w, h))
        area: Mask = share > 127
        colours = small.astype(np.float32) / np.float32(255)
        border = (y0 == 0, y1 == mask.shape[0], x0 == 0, x1 == mask.shape[1])
        return cls(y0, x0, height, width, height / h, width / w, colours, area, border)

    def cell(self, x: float, y: float) -> tuple[float, float]:
        """Image pixel -> (row, col) in cells."""
        return (y - self.y0 + 0.5) / self.ky - 0.5, (x - self.x0 + 0.5) / self.kx - 0.5

    # --- what moves -------------------------------------------------------------------------------

    def pieces(self, pairs: Sequence[PointPair]) -> list[_Piece]:
        """One piece per connected thing under the arrows; none when any arrow has none."""
        ends = [
            (self.cell(p.handle.x, p.handle.y), self.cell(p.target.x, p.target.y)) for p in pairs
        ]
        here = [e for e in ends if self._inside(e[0])]
        if not here:
            return []
        things = self._things(np.array([e[0] for e in here]))
        found: list[_Piece] = []
        left = list(here)
        while left:
            at = self._on(things, left[0][0])
            if at is None:
                return []
            cells = connected(things, *at)
            mine = [e for e in left if (on := self._on(things, e[0])) is not None and cells[on]]
            left = [e for e in left if e not in mine]
            if not self._is_piece(cells):
                return []
            anchors = self._anchors(cells)
            hold = [_HOLD * len(mine) / max(1, len(anchors))] * len(anchors)
            weights = np.array([*[1.0] * len(mine), *hold], np.float32)
            before = [complex(a[1], a[0]) for a, _ in mine] + anchors
            after = [complex(b[1], b[0]) for _, b in mine] + anchors
            ends_of = (np.array(before, np.complex64), np.array(after, np.complex64))
            found.append(_Piece(cells, *ends_of, weights))
        return found

    def _inside(self, at: tuple[float, float]) -> bool:
        row, col = round(at[0]), round(at[1])
        h, w = self.area.shape
        return 0 <= row < h and 0 <= col < w and bool(self.area[row, col])

    def _on(self, things: Mask, at: tuple[float, float]) -> tuple[int, int] | None:
        """The thing's cell at (row, col), or the nearest within two cells."""
        row, col = round(at[0]), round(at[1])
        top, left = max(0, row - 2), max(0, col - 2)
        near = np.argwhere(things[top : row + 3, left : col + 3])
        if not len(near):
            return None
        gap = ((near + np.array([top - at[0], left - at[1]])) ** 2).sum(axis=1)
        i, j = near[int(gap.argmin())]
        return int(i) + top, int(j) + left

    def _things(self, handles: npt.NDArray[np.float64]) -> Mask:
        """Painted cells that are no background.

        Background is what most of the painted area's outline lies on: its commonest colours there,
        and all that can be reached from these in small steps of colour.
        """
        edge = self.area & ~_eroded(self.area)
        colours, cells = self.rgb[edge], np.argwhere(edge)
        behind = np.zeros_like(self.area)
        left = np.ones(len(cells), np.bool_)
        while left.any():
            alike = np.abs(colours[:, None] - colours[left][None, :: max(1, left.sum() // 64)])
            alike = (alike.max(axis=2) < _ALIKE) & left[:, None]
            best = alike[:, alike.sum(axis=0).argmax()]
            if best.sum() < _SHARE * len(cells):
                break
            seeds = np.zeros_like(self.area)
            seeds[tuple(cells[best].T)] = True
            surface = self._reached(seeds)
            if not behind.any() or _nearest(surface, handles) > _CLEAR:
                behind |= surface
            left &= ~best
        things: Mask = self.area & ~behind
        return things

    def _reached(self, seeds: Mask) -> Mask:
        """Painted cells that small steps of colour lead to from the seeds."""
        down = np.abs(self.rgb[1:] - self.rgb[:-1]).max(axis=2) > _STEP
        right = np.abs(self.rgb[:, 1:] - self.rgb[:, :-1]).max(axis=2) > _STEP
        closed = ~self.area
        down |= closed[1:] | closed[:-1]
        right |= closed[:, 1:] | closed[:, :-1]
        out, count = seeds, -1
        while count != (count := int(out.sum())):
            out = swept(out, right)
            out = swept(out.T, down.T).T
        return out

    def _is_piece(self, cells: Mask) -> bool:
        inside = self.area.sum()
        edge = self.area & ~_eroded(self.area)
        return bool(
            cells.sum() <= _LARGEST * inside and (cells & edge).sum() <= _OPEN * max(1, edge.sum())
        )

    def _anchors(self, cells: Mask) -> list[complex]:
        """Where the piece runs out of the painted area (not of the picture): it stays there."""
        edge = cells & ~_eroded(self.area)
        for side, is_border in zip(
            (edge, edge[::-1], edge.T, edge.T[::-1]), self.border, strict=True
        ):
            if is_border:
                side[:_SLIVER] = False
        near = np.argwhere(edge)
        step = max(1, -(-len(near) // _ANCHORS))
        return [complex(float(c), float(r)) for r, c in near[::step]]

    # --- the picture ------------------------------------------------------------------------------

    def painted(self, rgb: U8, mask: Mask, pieces: Sequence[_Piece]) -> U8:
        """What lies behind, and the pieces at their new places."""
        box = np.s_[self.y0 : self.y0 + self.height, self.x0 : self.x0 + self.width]
        inside = mask[box]
        gone = np.zeros_like(self.area)
        for piece in pieces:
            gone |= grown(piece.cells, _RIM + 1) & self.area
        veil = self._full(gone.astype(np.float32))
        behind = np.stack(
            [self._full(c) for c in np.moveaxis(_filled(self.rgb, ~gone), 2, 0)], axis=2
        )
        out = rgb[box].astype(np.float32)
        out += (255 * behind - out) * np.clip(2 * veil, 0, 1)[..., None]
        for piece in pieces:
            self._lay(out, rgb, piece)
        made = rgb.copy()
        made[box][inside] = (out[inside] + 0.5).astype(np.uint8)
        return made

    def _lay(self, out: F32, rgb: U8, piece: _Piece) -> None:
        h, w = self.area.shape
        rows, cols = np.mgrid[:h, :w].astype(np.float32)
        source = _rigid(
            (cols + 1j * rows).ravel(), piece.after, piece.before, piece.weights
        ).reshape(h, w)
        matte = grown(piece.cells, _RIM).astype(np.float32)
        soft = _blurred(matte)
        cover = _bilinear(soft, source.imag, source.real)
        share = np.clip(3 * self._full(cover) - 1, 0, 1)
        i, j = np.nonzero(share > 0.004)
        if not len(i):
            return
        y = self.y0 + (self._full(source.imag)[i, j] + 0.5) * self.ky - 0.5
        x = self.x0 + (self._full(source.real)[i, j] + 0.5) * self.kx - 0.5
        out[i, j] += (sampled(rgb, y, x) - out[i, j]) * share[i, j][:, None]

    def _full(self, small: F32) -> F32:
        """Values on the cells to all pixels of the box, bilinear, cell centre on cell centre."""
        h, w = small.shape
        ends = (0.5 / self.kx - 0.5, 0.5 / self.ky - 0.5)
        padded = np.pad(small, 1, mode="reflect", reflect_type="odd")
        box = (ends[0] + 1, ends[1] + 1, w - 0.5 - 0.5 / self.kx + 1, h - 0.5 - 0.5 / self.ky + 1)
        return stretched(padded.astype(np.float32), box, self.width, self.height)


# --- numbers ------------------------------------------------------------------------------------------


def _nearest(cells: Mask, points: npt.NDArray[np.float64]) -> float:
    """Distance of the nearest cell to any of the points [n, 2]; inf without cells."""
    at = np.argwhere(cells)
    gap = np.hypot(at[:, 0, None] - points[:, 0], at[:, 1, None] - points[:, 1])
    return float(gap.min()) if gap.size else float("inf")


def _rigid(at: C64, begin: C64, end: C64, weights: F32) -> C64:
    """Where `at` [n] goes when `begin` [k] go to `end` [k]: locally a turn and a shift.

    Without a second point there is nothing to turn about: a shift.
    """
    gap = np.abs(at[:, None] - begin) ** 2
    weight = (weights / np.maximum(gap, 1e-4)).astype(np.float32)
    weight /= weight.sum(axis=1, keepdims=True)
    middle, there = weight @ begin, weight @ end
    turn = (weight * (end - there[:, None]) * np.conj(begin - middle[:, None])).sum(axis=1)
    size = np.abs(turn)
    turn = np.where(size > 1e-5, turn / np.maximum(size, 1e-12), 1)
    return np.asarray(turn * (at - middle) + there, np.complex64)


def _filled(rgb: F32, known: Mask) -> F32:
    """What lies behind the unknown cells [h, w, 3]: means of ever larger neighbourhoods (pull-push)."""
    h, w = known.shape
    if known.all() or not known.any() or min(h, w) < 2:
        return rgb
    even = np.pad(rgb * known[..., None], ((0, h % 2), (0, w % 2), (0, 0)))
    share = np.pad(known.astype(np.float32), ((0, h % 2), (0, w % 2)))
    total = even.reshape(even.shape[0] // 2, 2, -1, 2, 3).sum(axis=(1, 3))
    weight = share.reshape(share.shape[0] // 2, 2, -1, 2).sum(axis=(1, 3))
    coarse = total / np.maximum(weight, 1e-6)[..., None]
    coarse = _filled(coarse.astype(np.float32), weight > 0)
    rows, cols = np.mgrid[:h, :w]
    y, x = (rows + 0.5) / 2 - 0.5, (cols + 0.5) / 2 - 0.5
    wide = np.stack([_bilinear(c, y, x) for c in np.moveaxis(coarse, 2, 0)], axis=2)
    return np.where(known[..., None], rgb, wide).astype(np.float32)


def _bilinear(a: F32, y: npt.NDArray[np.floating], x: npt.NDArray[np.floating]) -> F32:
    """Values of `a` [h, w] at (y, x), clamped to its border."""
    h, w = a.shape
    y, x = np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)
    i, j = (
        np.minimum(y.astype(np.int64), max(0, h - 2)),
        np.minimum(x.astype(np.int64), max(0, w - 2)),
    )
    v, u = y - i, x - j
    i1, j1 = np.minimum(i + 1, h - 1), np.minimum(j + 1, w - 1)
    top = a[i, j] * (1 - u) + a[i, j1] * u
    low = a[i1, j] * (1 - u) + a[i1, j1] * u
    return np.asarray(top * (1 - v) + low * v, np.float32)


def _eroded(cells: Mask) -> Mask:
    """Without its outermost cells; the array's own border is no edge."""
    return ~grown(~cells, 1)


def _blurred(a: F32) -> F32:
    """Mean of 3 x 3, the border repeated."""
    wide = np.pad(a, 1, mode="edge")
    rows = wide[1:-1] + wide[:-2] + wide[2:]
    return np.asarray((rows[:, 1:-1] + rows[:, :-2] + rows[:, 2:]) / 9, np.float32)
