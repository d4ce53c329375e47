"""Move what the handles hold as layers over what stays; trust, and compose with what the model drew.

Each connected piece is cut out, moved (`motion`) and laid over the picture, whose gaps are closed with
what lies around them. Pixels keep their own colours at the picture's own resolution; the move itself
knows where it had to invent: where something was uncovered, drawn out, laid over something else, or at
a seam. Coordinates are image pixels; (0, 0) is the centre of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from workbench.core.request import PointPair
from workbench.imaging.decode import resize
from workbench.imaging.masks import (
    bilinear,
    blurred,
    connected,
    cubic,
    enlarged,
    filled,
    grown,
    mirrored,
    sampled,
)
from workbench.warping.held import CELLS, Grid, PictureFeatures, random_walker, reduced, rim, warm
from workbench.warping.motion import displacement, inverted, strain

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

STRETCHED = (1.75, 2.5)  # from here to there a stretch loses trust; half of it at 2.1
LEFT = (0.3, 1.5)  # cells: who moves less leaves nothing uncovered, who moves more does
_STILL = 0.05  # px: who moves less than this stays
_COARSE = 3  # cells: what is coarser of the ground is filled in smoothly, what is finer is copied
_AROUND = 2  # half as many cells: around a gap, and its distance from what is copied
_REACH, _EVERY = 12, 4  # the same: offsets that are tried
_FEW = 0.05  # share of cells around that must be known to compare them
_ALIKE = 0.5  # weight of a difference in colour from what is expected in the gap
_LIVELY = 2.0  # weight of a difference in contrast
_NEVER = 3.0  # cost of copying what is not known
_MOST = 6  # offsets
_BAND = 512  # rows at a time


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One piece: `matte` [h, w] in 0..1 where it was; at (y, x) it now shows (y, x) - `back`.

    `way` and `back` [2, h, w] (down, right) in image pixels, `cover` [h, w] in 0..1 where it is now.
    """

    matte: F32
    way: F32
    back: F32
    cover: F32


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """Moving layers with their displacements on the cells of `grid`; the first layer lies lowest."""

    grid: Grid
    layers: tuple[Layer, ...]

    @property
    def veil(self) -> F32:
        """Uncovered cells, which something moved away from, [h, w] in 0..1."""
        out = np.zeros(self.grid.shape, np.float32)
        for layer in self.layers:
            was = np.clip(2 * blurred(grown(layer.matte > 0.5, 1).astype(np.float32)), 0, 1)
            out = np.maximum(out, was * _ramp(np.hypot(*layer.way) / max(self.grid.scale), *LEFT))
        return out * self.grid.area

    def trust(self) -> Trust:
        """Maps of the cells that keep their own pixels, and of the reasons why others do not."""
        cover = np.zeros(self.grid.shape, np.float32)
        maps = {name: cover.copy() for name in Trust.REASONS}
        for layer in self.layers:
            here, moved = layer.cover, np.hypot(*layer.back) > _STILL
            maps["overlaps"] = np.maximum(maps["overlaps"], np.minimum(cover, here))
            stretch, folded = strain(layer.back, self.grid)
            maps["stretched"] = np.maximum(maps["stretched"], here * _ramp(stretch, *STRETCHED))
            maps["overlaps"] = np.maximum(maps["overlaps"], here * folded)
            edge = 4 * here * (1 - here) * moved
            maps["seams"] = np.maximum(maps["seams"], edge)
            cover = np.maximum(cover, here)
        maps["uncovered"] = self.veil * (1 - cover)
        area = self.grid.area
        return Trust({k: (v * area).astype(np.float32) for k, v in maps.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Trust:
    """Maps [h, w] in 0..1 of what cannot be trusted, by reason; 0 everywhere else."""

    maps: dict[str, F32]

    REASONS = ("uncovered", "stretched", "seams", "overlaps")

    def doubt(self, **weights: float) -> F32:
        """One map [h, w]: the largest of the reasons, each times its weight (1 where none is given)."""
        return np.asarray(
            np.max([weights.get(k, 1.0) * m for k, m in self.maps.items()], axis=0), np.float32
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of `plan`."""

    cells: int = CELLS  # along the longer side of what may change
    features: PictureFeatures | None = field(default=None, repr=False)


def moved_picture(
    rgb: U8,
    mask: Mask | None,
    pairs: Sequence[PointPair],
    *,
    features: PictureFeatures | None = None,
    cells: int = CELLS,
) -> U8:
    """The instant preview: the picture with what the handles hold moved along the arrows.

    Args:
        rgb: uint8 [H, W, 3].
        mask: bool [H, W], True = may change; None or empty = everything may.
        pairs: arrows in image pixels; one of length 0 is a pin.
        features: the model's features of the picture, where they are known.
        cells: resolution at which pieces and displacements are found.

    Returns:
        uint8 [H, W, 3], bit-identical outside the mask.
    """
    motion = plan(rgb, mask, pairs, Plan(cells=cells, features=features))
    return rgb.copy() if motion is None else render(motion, rgb, mask)


def plan(
    rgb: U8, mask: Mask | None, pairs: Sequence[PointPair], options: Plan | None = None
) -> Motion | None:
    """Find what moves and how far; None when nothing does.

    `rgb` uint8 [H, W, 3]; `mask` bool [H, W], None or empty = everything may change; `pairs` in image
    pixels.
    """
    options = options or Plan()
    arrows = [p for p in pairs if p.length > 0]
    grid = Grid.of(rgb, mask, options.cells)
    if grid is None:
        return None
    arrows = [p for p in arrows if grid.inside(p.handle)]
    if not arrows:
        return None
    open_ground = mask is None or not mask.any()
    cells = np.zeros(grid.shape, np.bool_)
    for grow in dict.fromkeys(p.grow for p in arrows):
        points = [p.handle for p in arrows if p.grow == grow]
        cells |= warm(random_walker(grid, points, options.features, open_ground=open_ground), grow)
    layers, left = [], list(arrows)
    while left:
        piece = connected(_under(grid, left[0], cells), cells)
        mine = [p for p in left if p is left[0] or (_under(grid, p, cells) & piece).any()]
        left = [p for p in left if not any(p is m for m in mine)]
        if piece.any():
            layers.append(_layer(grid, piece, [*mine, *(p for p in pairs if p.length == 0)]))
    return Motion(grid, tuple(layers)) if layers else None


def _under(grid: Grid, pair: PointPair, cells: Mask) -> Mask:
    """Held cells within two of a handle."""
    row, col = (round(v) for v in grid.cell(pair.handle))
    out = np.zeros_like(cells)
    near = np.s_[max(0, row - 2) : row + 3, max(0, col - 2) : col + 3]
    out[near] = cells[near]
    return out


def _layer(grid: Grid, piece: Mask, pairs: Sequence[PointPair]) -> Layer:
    half = grid.halved()
    small = np.asarray(reduced(piece.astype(np.float32), half.shape) > 0.5)
    if not small.any():
        half, small = grid, piece
    u = displacement(half, small, pairs)
    follows = small | (np.hypot(*u) > 1e-3)
    u = filled(np.moveaxis(u, 0, 2), follows)
    way, back = (
        np.stack([enlarged(v[..., i] * k, grid.shape) for i, k in enumerate(half.scale)])
        for v in (u, inverted(u, follows))
    )
    ky, kx = grid.scale
    rows, cols = np.mgrid[: grid.shape[0], : grid.shape[1]].astype(np.float32)
    # the outline belongs to what moves, but must not tie it to the ground in whose colour it ends
    body = rim(piece | (enlarged(follows.astype(np.float32), grid.shape) > 0.5), grid)
    # what runs on beyond the mask, tied to it, has no outline there
    on = grown(body, 2) & grown(~grid.area, 2) & (np.hypot(*way) < max(grid.scale))
    matte = blurred(((body & grid.area) | on).astype(np.float32))
    cover = bilinear(matte, rows - back[0] / ky, cols - back[1] / kx)
    return Layer(
        matte, way, back.astype(np.float32), np.clip(3 * cover - 1, 0, 1).astype(np.float32)
    )


def render(motion: Motion, rgb: U8, mask: Mask | None, *, fine: bool = False) -> U8:
    """The picture with its pieces moved, uint8 [H, W, 3]; bit-identical outside the mask.

    `fine` reads between pixels with a cubic kernel, which keeps texture sharp, instead of a linear one.
    """
    grid = motion.grid
    part = rgb[grid.box]
    out = part.astype(np.float32)
    seen = motion.veil * grown(np.max([v.cover for v in motion.layers], axis=0) < 1, 1)
    share = grid.full(np.clip(2 * seen, 0, 1))
    at = np.nonzero(share > 0)
    if len(at[0]):
        out[at] += (_ground(motion, seen > 0, part, at) - out[at]) * share[at][:, None]
    for layer in motion.layers:
        _lay(out, part, layer, grid, fine=fine)
    made = rgb.copy()
    new = np.clip(out + 0.5, 0, 255).astype(np.uint8)
    if mask is not None and mask.any():
        new = np.where(mask[grid.box][..., None], new, part)
    made[grid.box] = new
    return made


def _ground(motion: Motion, gap: Mask, part: U8, at: tuple[npt.NDArray[np.intp], ...]) -> F32:
    """Colours (0..255) [n, 3] of pixels `at` of a gap [h, w]: smooth, with texture from nearby.

    Coarse colours are those of the surroundings (`filled`). What is finer is copied from elsewhere in
    the picture, at offsets at which the surroundings of the gap look like themselves (He and Sun,
    ECCV 2012); where two offsets meet their texture is mixed and keeps its strength.
    """
    grid = motion.grid
    behind = filled(grid.rgb, motion.veil <= 0)
    half = grid.halved()
    known = reduced((motion.veil <= 0).astype(np.float32), half.shape) > 0.99
    small = np.stack([reduced(c, half.shape) for c in np.moveaxis(behind, 2, 0)], axis=2)
    empty = (reduced(gap.astype(np.float32), half.shape) > 0) & ~known
    lively = reduced(np.abs(behind - blurred(behind)).sum(axis=2), half.shape)
    offsets, weights = _offsets(small, lively, known, empty)
    if offsets:
        behind = blurred(behind, _COARSE)
    shares = [half.full(weight)[at] for weight in weights]
    places = [
        tuple(
            np.clip(i + round(d * k), 0, n - 1)
            for i, d, k, n in zip(at, offset, half.scale, part.shape, strict=False)
        )
        for offset in offsets
    ]
    strength = sum(shares) / np.sqrt(sum(s * s for s in shares) + 1e-6) if shares else 0.0
    ground = np.empty((len(at[0]), 3), np.float32)
    for c in range(3):  # one plane of a large picture at a time
        low = 255 * grid.full(np.ascontiguousarray(behind[..., c]))
        detail = sum(
            share * (part[..., c][place] - low[place])
            for share, place in zip(shares, places, strict=True)
        )
        ground[:, c] = low[at] + strength * detail
    return ground


def _offsets(
    rgb: F32, lively: F32, known: Mask, gap: Mask
) -> tuple[list[tuple[int, int]], list[F32]]:
    """Offsets (down, right) in cells from a gap to texture for it, and where each is used [h, w].

    Args:
        rgb: float32 [h, w, 3] in 0..1, gaps filled smoothly.
        lively: float32 [h, w], contrast within and around each cell.
        known: bool [h, w], what may be copied.
        gap: bool [h, w], what needs texture; not known.

    Returns:
        At most `_MOST` offsets, none where the grid holds nothing to copy.
    """
    ring = grown(gap, _AROUND) & known
    if not gap.any() or not ring.any():
        return [], []
    rows, cols = (np.flatnonzero((gap | ring).any(axis=a)) for a in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    steps = range(-_REACH, _REACH + 1, _EVERY)
    tried = [(dy, dx) for dy in steps for dx in steps if np.hypot(dy, dx) > _AROUND]

    def shifted(plane: F32) -> F32:
        """What each offset leads to from every cell of the box, [rows, cols, offsets]."""
        wide = np.pad(plane, _REACH)[rows[0] :, cols[0] :]
        size = rows[-1] + 1 - rows[0], cols[-1] + 1 - cols[0]
        at = [(dy + _REACH, dx + _REACH) for dy, dx in tried]
        return np.stack([wide[y : y + size[0], x : x + size[1]] for y, x in at], axis=2)

    there = shifted((~grown(~known, 1)).astype(np.float32)) > 0
    error = sum(np.abs(shifted(c) - c[box][..., None]) for c in np.moveaxis(rgb, 2, 0))
    seen = (there & ring[box][..., None]).astype(np.float32)
    count = blurred(seen, _AROUND)
    cost = blurred(error * seen, _AROUND) / np.maximum(count, 1e-3) + (count < _FEW)
    cost += _ALIKE * error  # marble is no texture for skin,
    # and an eye none for a cheek: what is copied must be as lively as what is around the gap
    lively = blurred(lively)
    usual = filled(np.where(ring, lively, 0)[..., None].astype(np.float32), ring)[box]
    cost += _LIVELY * np.abs(shifted(lively) - usual)
    cost = np.where(there, cost, _NEVER)[gap[box]]
    chosen, best = [], np.full(len(cost), np.float32(_NEVER))
    for _ in range(_MOST):
        sums = np.minimum(cost, best[:, None]).sum(axis=0)
        k = int(np.argmin(sums))
        if sums[k] > 0.98 * best.sum():
            break
        chosen.append(k)
        best = np.minimum(best, cost[:, k])
    if not chosen:
        return [], []
    used = np.zeros((*known.shape, len(chosen)), np.float32)
    best_of = np.argmin(cost[:, chosen], axis=1)
    used[gap] = (best_of[:, None] == np.arange(len(chosen))) & (best < _NEVER)[:, None]
    weights = blurred(filled(used, gap))
    return [tried[k] for k in chosen], list(np.moveaxis(weights, 2, 0))


def _lay(out: F32, part: U8, layer: Layer, grid: Grid, *, fine: bool) -> None:
    """Blend one moved piece into `out` [height, width, 3]."""
    cover = grid.full(layer.cover)
    back = [grid.full(b) for b in layer.back]
    for top in range(0, part.shape[0], _BAND):
        rows = slice(top, top + _BAND)
        i, j = np.nonzero(cover[rows] > 0.004)
        if not len(i):
            continue
        i += top
        share = cover[i, j][:, None]
        y = mirrored((i - back[0][i, j]).astype(np.float32), part.shape[0])
        x = mirrored((j - back[1][i, j]).astype(np.float32), part.shape[1])
        own = cubic(part, y, x) if fine else sampled(part, y, x)
        out[i, j] += (own - out[i, j]) * share


def _ramp(x: F32, low: float, high: float) -> F32:
    s = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(s * s * (3 - 2 * s), np.float32)


AGREE = 0.2  # gap between the model's two pictures (of a range of 2) at which own pixels count 1/e
_FEATHER = 2  # working px
_NEAR = 9  # working px: around what the model drew, where colour and grain are compared
_RING = 6
_FINE = 2  # working px: what is finer is detail


def agreement(drawn: U8, again: U8, tau: float = AGREE) -> F32:
    """Agreement of the model with the moved picture [h, w]: 1 where it draws the same again.

    Args:
        drawn: the model's result uint8 [h, w, 3].
        again: the moved picture through the autoencoder and back, uint8 [h, w, 3].
        tau: see `AGREE`.
    """
    gap = blurred(np.abs(drawn.astype(np.float32) - again).mean(axis=2) / 127.5, _RING - 2)
    return blurred(np.exp(-((gap / tau) ** 2)).astype(np.float32), _RING - 2)


def composed(own: U8, drawn: U8, doubt: F32, agreed: F32 | None = None) -> U8:
    """The moved picture at its own resolution with the model's pixels where it cannot be trusted.

    Args:
        own: uint8 [H, W, 3].
        drawn: uint8 [h, w, 3], the same part at the model's resolution.
        doubt: [H, W].
        agreed: [h, w]; None: the model agrees wherever there is no doubt.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = own.shape[:2]
    k = max(1.0, height / drawn.shape[0])
    share = blurred(doubt, max(1, round(_FEATHER * k)))
    if agreed is not None:
        share = 1 - (1 - share) * np.clip(enlarged(agreed, (height, width)), 0, 1)
    new = resize(drawn, (width, height), "bicubic").astype(np.float32)
    new += _detail(own, new, doubt, k)
    out = own + share[..., None] * (new - own)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _detail(own: U8, new: F32, doubt: F32, k: float) -> F32:
    """Detail [H, W, 3] of the moved picture that what was drawn lacks against the pixels around it.

    A model draws at its own size and smoothly; the moved picture has texture there, drawn out or copied
    from elsewhere. It is added by the share that is missing, by Immerkaer's estimate of both
    (Computer Vision and Image Understanding 64, 1996).
    """
    inside = doubt > 0.5
    ring = grown(inside, max(2, round(_RING * k))) & (doubt < 0.05)
    if min(inside.sum(), ring.sum()) < 64:
        return np.zeros((1, 1, 3), np.float32)
    wanted, there = _noise(own.mean(axis=2), ring), _noise(new.mean(axis=2), inside)
    if wanted <= max(there, 0.5):
        return np.zeros((1, 1, 3), np.float32)
    plain = own.astype(np.float32)
    missing = np.float32(np.sqrt(1 - (there / wanted) ** 2))
    return missing * (plain - blurred(plain, max(1, round(_FINE * k))))


def _noise(grey: npt.NDArray[np.floating], where: Mask) -> float:
    """Standard deviation of the noise of a grey picture, robustly (median) over `where`."""
    wide = np.pad(np.asarray(grey, np.float32), 1, mode="edge")
    rows = wide[:-2] - 2 * wide[1:-1] + wide[2:]
    second = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.median(np.abs(second[where]))) / (0.6745 * 6)


# --- the judge ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seams:
    """Misfit of a candidate with its surroundings: lower is better.

    `step`: mean difference (0..255) across the border of what was drawn beyond the picture's usual
    one; `texture`: |log2| of the detail inside against that around it.
    """

    step: float
    texture: float


def seams(picture: U8, doubt: F32) -> Seams:
    """Measure how the doubtful pixels (`doubt` [H, W] in 0..1) of a picture uint8 [H, W, 3] fit the rest."""
    inside = doubt > 0.3
    if not inside.any() or inside.all():
        return Seams(0.0, 0.0)
    grey = picture.astype(np.float32)
    outside = grown(inside, 2 * _RING) & ~grown(inside, 1)
    ring = outside if outside.any() else ~inside
    soft = blurred(grey, 1)
    rows = np.abs(np.diff(soft, axis=0)).mean(axis=2)
    cols = np.abs(np.diff(soft, axis=1)).mean(axis=2)
    across = np.concatenate([rows[inside[1:] ^ inside[:-1]], cols[inside[:, 1:] ^ inside[:, :-1]]])
    usual = np.concatenate([rows[ring[1:] & ring[:-1]], cols[ring[:, 1:] & ring[:, :-1]]])
    step = float(across.mean() - (usual.mean() if usual.size else 0.0))
    detail = np.abs(grey - blurred(grey, 2)).mean(axis=2)
    ratio = (float(detail[inside].mean()) + 0.5) / (float(detail[ring].mean()) + 0.5)
    return Seams(step, abs(float(np.log2(ratio))))
