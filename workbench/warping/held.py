"""Segment what a handle holds: a random walk solved on a grid of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.core.request import Point, PointPair
from workbench.imaging.decode import fast_resize
from workbench.imaging.masks import bilinear, colour_evidence, connected, enlarged, grown

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

SPAN = 256  # lengths are given for a picture of this size, of which the painted part is 1 / AROUND
AROUND = 1.7
CELLS = (
    88  # along the longer side of the painted box; finer cells were no better (docs/algorithm.md)
)
_MARGIN = 4  # cells around the painted box
_LEAST = 8  # cells: a smaller box holds nothing that could be moved


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The painted box as cells; the centre of cell (i, j) is pixel (y0 + (i + .5) ky - .5, ...)."""

    y0: int
    x0: int
    height: int  # of the box, pixels
    width: int
    rgb: F32  # [h, w, 3], 0..1
    area: Mask  # [h, w], True = may change
    unit: float  # cells per 1/SPAN of the surroundings: scale of all lengths below
    border: tuple[bool, bool, bool, bool]  # sides that are the picture's: top, bottom, left, right

    @classmethod
    def of(cls, rgb: U8, mask: Mask | None, cells: int = CELLS) -> Grid | None:
        """Reduce the painted box of a picture uint8 [H, W, 3]; None when it is too small.

        Args:
            rgb: the picture.
            mask: bool [H, W], True = may change; None or empty = all of it.
            cells: most cells along the box's longer side; a cell is never less than a pixel.
        """
        rows, cols = rgb.shape[:2]
        if mask is None or not mask.any():
            mask = np.ones((rows, cols), np.bool_)
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = max(int(ys[-1] - ys[0]), int(xs[-1] - xs[0])) + 1
        k = max(1.0, box / cells)
        room = round(_MARGIN * k)
        y0, x0 = max(0, int(ys[0]) - room), max(0, int(xs[0]) - room)
        y1, x1 = min(rows, int(ys[-1]) + 1 + room), min(cols, int(xs[-1]) + 1 + room)
        height, width = y1 - y0, x1 - x0
        w, h = max(1, round(width / k)), max(1, round(height / k))
        if min(h, w) < _LEAST:
            return None
        small, area = rgb[y0:y1, x0:x1], mask[y0:y1, x0:x1]
        if (h, w) != (height, width):
            small = fast_resize(np.ascontiguousarray(small), (w, h))
            area = fast_resize(area.astype(np.uint8) * 255, (w, h)) > 127
        span = min(float(max(rows, cols)), max(float(SPAN), AROUND * box))
        border = (y0 == 0, y1 == rows, x0 == 0, x1 == cols)
        colours = small.astype(np.float32) / np.float32(255)
        return cls(y0, x0, height, width, colours, area, span / SPAN / k, border)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.area.shape[0], self.area.shape[1]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels per cell, (down, right)."""
        return self.height / self.shape[0], self.width / self.shape[1]

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that the cells stand for."""
        return slice(self.y0, self.y0 + self.height), slice(self.x0, self.x0 + self.width)

    def cell(self, p: Point) -> tuple[float, float]:
        """Image point -> (row, col) in cells."""
        ky, kx = self.scale
        return (p.y - self.y0 + 0.5) / ky - 0.5, (p.x - self.x0 + 0.5) / kx - 0.5

    def inside(self, p: Point) -> bool:
        """True if a point lies on a cell that may change."""
        row, col = (round(v) for v in self.cell(p))
        h, w = self.shape
        return 0 <= row < h and 0 <= col < w and bool(self.area[row, col])

    def halved(self) -> Grid:
        """The same box with half as many cells each way, on which displacements are found."""
        h, w = (max(4, n // 2) for n in self.shape)
        rgb = np.stack([_reduced(self.rgb[..., c], (h, w)) for c in range(3)], axis=2)
        area = _reduced(self.area.astype(np.float32), (h, w)) > 0.5
        unit = self.unit * h / self.shape[0]
        return Grid(self.y0, self.x0, self.height, self.width, rgb, area, unit, self.border)

    def full(self, cells: F32) -> F32:
        """Values on cells [h, w] as values on the box's pixels [height, width], bilinear."""
        return enlarged(cells, (self.height, self.width))


def _reduced(a: F32, shape: tuple[int, int]) -> F32:
    """Means over blocks of about a / shape cells."""
    for axis, n in enumerate(shape):
        edges = np.round(np.linspace(0, a.shape[axis], n + 1)).astype(np.int64)
        sums = np.add.reduceat(a, edges[:-1], axis=axis)
        counts = np.diff(edges).astype(np.float32)
        a = np.asarray(sums / (counts[:, None] if axis == 0 else counts), np.float32)
    return np.asarray(a, np.float32)


def reduced(a: F32, shape: tuple[int, int]) -> F32:
    """Values of a grid [h, w] on a smaller one of `shape`."""
    return a if a.shape == shape else _reduced(a, shape)


_LEAST_CONDUCTANCE = (
    1e-5  # conductance between neighbours of any colour: no cell is cut off altogether
)


def conductance(rgb: F32, edge: float) -> tuple[F32, F32]:
    """Conductance between vertical and between horizontal neighbours.

    Args:
        rgb: float32 [h, w, 3] in 0..1.
        edge: step in colour (largest channel) that lets 1/e through.

    Returns:
        float32 [h - 1, w] and [h, w - 1], exp(-step / edge).
    """
    down = np.abs(rgb[1:] - rgb[:-1]).max(axis=2)
    right = np.abs(rgb[:, 1:] - rgb[:, :-1]).max(axis=2)
    least = np.float32(_LEAST_CONDUCTANCE)
    return np.exp(-down / edge) + least, np.exp(-right / edge) + least


def solve(
    start: F32,
    free: Mask,
    links: tuple[F32, F32],
    *,
    steps: int,
    source: F32 | None = None,
    absorbed: F32 | None = None,
    tolerance: float = 1e-4,
) -> F32:
    """Solve  sum over neighbours j of c_ij (u_i - u_j) + a_i u_i = s_i  at the free cells.

    Conjugate gradients with the diagonal as preconditioner; fields along leading axes share one
    system, so that they take the same number of steps.

    Args:
        start: float32 [..., h, w]; its values at cells that are not free are the conditions.
        free: bool [h, w].
        links: conductances c between vertical [h - 1, w] and horizontal [h, w - 1] neighbours.
        steps: at most so many.
        source: s, [..., h, w]; 0 when None.
        absorbed: a >= 0, [h, w] or one per field [..., h, w]; 0 when None.
        tolerance: stop when the preconditioned residual is below it everywhere.

    Returns:
        float32 [..., h, w]; `start` is not written into.
    """
    down, right = links
    total = np.zeros(free.shape, np.float32)
    total[1:] += down
    total[:-1] += down
    total[:, 1:] += right
    total[:, :-1] += right
    if absorbed is not None:
        total = total + absorbed
    u: F32 = start.astype(np.float32)
    keep = free.astype(np.float32)
    inverse = keep / np.maximum(total, 1e-12)
    buffer = np.empty_like(u)

    def flow(x: F32) -> F32:
        out = total * x
        part = buffer[..., 1:, :]
        np.multiply(down, x[..., :-1, :], out=part)
        out[..., 1:, :] -= part
        np.multiply(down, x[..., 1:, :], out=part)
        out[..., :-1, :] -= part
        part = buffer[..., 1:]
        np.multiply(right, x[..., :-1], out=part)
        out[..., 1:] -= part
        np.multiply(right, x[..., 1:], out=part)
        out[..., :-1] -= part
        out *= keep
        return out

    r = -flow(u)
    if source is not None:
        r += source * keep
    z = r * inverse
    p: F32 = z.astype(np.float32)
    rz = float(np.vdot(r, z))
    for step in range(steps):
        if step % 8 == 0 and float(np.abs(z).max()) < tolerance:
            break
        ap = flow(p)
        length = rz / max(float(np.vdot(p, ap)), 1e-30)
        u += np.float32(length) * p
        ap *= np.float32(length)
        r -= ap
        np.multiply(r, inverse, out=z)
        new = float(np.vdot(r, z))
        p *= np.float32(new / max(rz, 1e-30))
        p += z
        rz = new
    return u


EDGE = 0.05  # step in colour (0..1) that lets 1/e of the heat through
SEED = 6.0  # radius of the disc round a handle that is heated, where it has the handle's colour
_ALIKE = 0.15  # colours (0..1) closer than this are one colour, within the seed
_WARM = 0.2  # heat above which a cell is held at grow 0; grow +-1 divides or multiplies it by ten
_GAPS = 1.0  # of what is held: gaps in it that are larger are its ground, seen through it
_REACH = (
    60.0  # where nothing is painted: distance over which heat is lost, a quarter of the picture
)
_PULL = 0.01  # how strongly features heat and cool, against 1 between cells of one colour
_LIKE = 0.4  # cosine similarity from which on two features resemble each other
_SPREAD = (0.12, 0.3)  # share of the picture that does: below the first, features say nothing
_STEPS = (200, 100, 60)  # of the solver: at half the size, at full size, with what colours say
_COLOUR = 0.05  # how strongly colours heat and cool that are rather the thing's or its ground's
_DECADES = 3.0  # of heat over which a cell's colour loses its say in favour of the thing
_GROUND = 0.3  # heat from which on a cell says nothing about the ground
_OUTSIDE = 3.0  # weight, in the ground's colours, of cells that may not change


@dataclass(frozen=True, slots=True, eq=False)
class PictureFeatures:
    """A model's features of a picture or of a part of it.

    `values`: float32 [C, rows, cols]. `box`: (x0, y0, width, height) of the part, in image pixels.
    """

    values: F32
    box: tuple[float, float, float, float]

    def similarity(self, p: Point) -> F32:
        """Cosine similarity [rows, cols], in [-1, 1], of every feature with the one at a point."""
        c, rows, cols = self.values.shape
        at = self._cell(np.full((1, 1), p.y, np.float32), np.full((1, 1), p.x, np.float32))
        own = np.array([float(bilinear(v, *at)[0, 0]) for v in self.values], np.float32)
        flat = self.values.reshape(c, -1)
        size = np.linalg.norm(flat, axis=0) * max(float(np.linalg.norm(own)), 1e-12)
        return np.asarray((own @ flat / np.maximum(size, 1e-12)).reshape(rows, cols), np.float32)

    def likeness(self, p: Point, grid: Grid) -> F32:
        """Similarity of each cell of a grid to the thing at `p`, in [-1, 1].

        Similarity, stretched so that the picture's median similarity is -1 and the handle's own +1:
        absolute values differ from model to model and from picture to picture. Features of which next
        to nothing resembles the handle's tell places apart, not things; they count less, down to 0.
        """
        found = self.similarity(p)
        spread = float((found > _LIKE).mean())
        trust = min(1.0, max(0.0, (spread - _SPREAD[0]) / (_SPREAD[1] - _SPREAD[0])))
        base = float(np.median(found))
        found = trust * np.clip(2 * (found - base) / max(1 - base, 1e-3) - 1, -1, 1)
        ky, kx = grid.scale
        h, w = grid.shape
        y = grid.y0 + (np.arange(h, dtype=np.float32) + 0.5) * ky - 0.5
        x = grid.x0 + (np.arange(w, dtype=np.float32) + 0.5) * kx - 0.5
        rows, cols = self._cell(y, x)
        return bilinear(found, np.repeat(rows[:, None], w, 1), np.repeat(cols[None], h, 0))

    def _cell(self, y: npt.NDArray[np.float32], x: npt.NDArray[np.float32]) -> tuple[F32, F32]:
        x0, y0, width, height = self.box
        rows, cols = self.values.shape[1:]
        return (
            np.asarray((y - y0 + 0.5) * (rows / height) - 0.5, np.float32),
            np.asarray((x - x0 + 0.5) * (cols / width) - 0.5, np.float32),
        )


def held_region(
    rgb: U8,
    handle: Point,
    *,
    mask: Mask | None = None,
    grow: float = 0.0,
    features: PictureFeatures | None = None,
    colours: bool = True,
    cells: int = CELLS,
) -> Mask:
    """Mask of what a handle holds, for its outline.

    Args:
        rgb: uint8 [H, W, 3].
        handle: image pixels.
        mask: bool [H, W], True = may change; nothing outside it is held. None or empty: everything may.
        grow: from -1 (the handle's own spot) over 0 to 1 (everything connected to it).
        features: the model's features of the picture, where they are known.
        colours: ask the colours of thing and ground, too, not their edge alone.
        cells: resolution of the answer along the longer side of what may change.

    Returns:
        bool [H, W]; connected, and empty only when the handle may not change.
    """
    out = np.zeros(rgb.shape[:2], np.bool_)
    grid = Grid.of(rgb, mask, cells)
    if grid is None or not grid.inside(handle):
        return out
    free = mask is None or not mask.any()
    pair = PointPair(handle, handle, grow=grow)
    found = held(grid, [pair], features, open_ground=free, colours=colours)
    inside = grid.full(found.astype(np.float32)) > 0.5
    out[grid.box] = inside if mask is None or free else inside & mask[grid.box]
    return out


def held(
    grid: Grid,
    pairs: Sequence[PointPair],
    features: PictureFeatures | None = None,
    *,
    open_ground: bool = False,
    colours: bool = True,
) -> Mask:
    """Cells [h, w] that the handles of `pairs` (image pixels) hold, each by its own `grow`."""
    out = np.zeros(grid.shape, np.bool_)
    for grow in dict.fromkeys(p.grow for p in pairs):
        mine = [p for p in pairs if p.grow == grow and grid.inside(p.handle)]
        if not mine:
            continue
        heat = random_walker(
            grid, [p.handle for p in mine], features, open_ground=open_ground, colours=colours
        )
        found = warm(heat, grow)
        reached = np.zeros_like(found)
        for p in mine:
            row, col = (round(v) for v in grid.cell(p.handle))
            reached[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] = True
        out |= connected(reached & found, found)
    return out


def warm(heat: F32, grow: float) -> Mask:
    """Cells that count as held; `heat` falls by orders of magnitude at edges, so `grow` is a power."""
    cells = np.asarray(heat > min(0.99, _WARM * 10.0**-grow))
    return cells | _enclosed(cells)


def _enclosed(cells: Mask) -> Mask:
    """Gaps that held cells surround, such as an eye in a face; none where they are most of it."""
    ground = ~cells
    edge = np.zeros_like(cells)
    edge[[0, -1]], edge[:, [0, -1]] = ground[[0, -1]], ground[:, [0, -1]]
    gaps = ground & ~connected(edge, ground)
    return gaps if gaps.sum() < _GAPS * cells.sum() else np.zeros_like(gaps)


def random_walker(
    grid: Grid,
    handles: Sequence[Point],
    features: PictureFeatures | None = None,
    *,
    open_ground: bool = False,
    colours: bool = True,
) -> F32:
    """Heat [h, w] in 0..1 that flows from the handles to what may not change.

    `open_ground`: nothing was painted, so that nothing near says what stays; heat is lost on the way.
    Where all cells may change, those at the border of the grid stay. `colours`: let the colours of what
    is warm and cold speak, too.
    """
    area = grid.area
    if area.all():
        area = np.zeros_like(area)
        area[1:-1, 1:-1] = True
    like: F32 | None = None
    if features is not None:
        like = np.max([features.likeness(p, grid) for p in handles], axis=0)
    lost = 1 / (_REACH * grid.unit) ** 2 if open_ground else 0.0
    found: F32 | None = None
    half = grid.halved()
    for level, steps in zip((half, grid), _STEPS, strict=False):
        shape = level.shape
        free = (reduced(area.astype(np.float32), shape) > 0) if level is half else area
        seeds = seeds_of(level, handles) & free
        start = seeds.astype(np.float32)
        if found is not None:
            start = np.where(free & ~seeds, enlarged(found, shape), start)
        scale = (grid.shape[0] / shape[0]) ** 2  # what is lost per cell grows with its area
        source, absorbed = _pulls(None if like is None else reduced(like, shape), lost, scale)
        found = solve(
            start, free & ~seeds, conductance(level.rgb, EDGE),
            steps=steps, source=source, absorbed=absorbed, tolerance=1e-3,
        )  # fmt: skip
    assert found is not None
    found = np.clip(found, 0, 1) * area
    if not colours:
        return found
    # the colours of what is warm, and those of what is cold, tell the thing from its ground
    cold = np.where(area, 1 - np.clip(found / _GROUND, 0, 1), _OUTSIDE).astype(np.float32)
    told = colour_evidence(grid.rgb, found, cold)
    near = np.clip(1 + np.log10(np.maximum(found, 1e-9)) / _DECADES, 0, 1)
    told = np.where(told > 0, told * near, told).astype(np.float32)
    source, absorbed = _pulls(like, lost, 1.0)
    pull = np.float32(_COLOUR) * np.abs(told)
    warmer = np.where(told > 0, pull, np.float32(0))
    found = solve(
        np.where(seeds, np.float32(1), found), area & ~seeds, conductance(grid.rgb, EDGE),
        steps=_STEPS[2], source=warmer if source is None else warmer + source,
        absorbed=pull if absorbed is None else pull + absorbed, tolerance=1e-3,
    )  # fmt: skip
    return np.clip(found, 0, 1) * area


def _pulls(like: F32 | None, lost: float, scale: float) -> tuple[F32 | None, F32 | None]:
    """Source and absorption per cell: features heat what looks alike and cool what does not."""
    if like is None:
        return None, (np.full((1, 1), lost * scale, np.float32) if lost else None)
    pull = np.float32(_PULL * scale) * np.abs(like)
    source = np.where(like > 0, pull, 0).astype(np.float32)
    return source, pull + np.float32(lost * scale)


def seeds_of(grid: Grid, points: Sequence[Point], radius: float = SEED) -> Mask:
    """Cells [h, w] of a point's own colour within `radius` (of 256) of it, and those right under it."""
    h, w = grid.shape
    rows, cols = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None]
    out = np.zeros((h, w), np.bool_)
    reach = radius * grid.unit
    for p in points:
        row, col = grid.cell(p)
        gap = np.hypot(rows - row, cols - col)
        own = grid.rgb[min(max(round(row), 0), h - 1), min(max(round(col), 0), w - 1)]
        alike = np.abs(grid.rgb - own).max(axis=2) < _ALIKE
        out |= ((gap <= reach) & alike) | (gap <= min(1.5, max(reach, 0.75)))
    return out


def rim(cells: Mask, grid: Grid, width: float = 1.0) -> Mask:
    """Held cells with their anti-aliased outline, `width` of 256 px taken along."""
    return grown(cells, max(1, round(width * grid.unit)))
