"""Displacement of what the handles hold.

Left to itself ("auto") a piece moves as rigidly as it can (Sorkine and Alexa, SGP 2007): with u the
displacement of its cells, N the pairs of neighbours in it and R_i a turn, it minimises

    sum over N of | (x_i + u_i) - (x_j + u_j) - R_i (x_i - x_j) |^2  +  sum over rim c_ij |u_i|^2

in turns: R_i from the surroundings of each cell, then u from a Laplace equation. Across an edge of colour
a piece is free. Where it runs on without one (into ground of its own colour, or beyond the mask, where
nothing may change) it is tied, c_ij > 0: the ground follows softly for a length or two of the arrow, and
a stretch takes the place of a tear. A piece with one arrow and a pin on it turns about the pin; one that
is free and whose arrows agree on a change of size is turned and scaled as a whole. "shift", "turn" and
"stretch" are closed forms. Pins are arrows of length 0.

Displacements are float32 [2, h, w] (down, right) in cells of the grid that they are found on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workbench.core.request import PointPair
from workbench.imaging.masks import bilinear, blurred, colour_evidence, filled, grown
from workbench.warping.held import EDGE, Grid, conductance, seeds_of, solve

Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

_HOLD = 18.0  # of 256: radius round a handle that is carried without turning
_BETWEEN = 0.35  # of the way to the next handle: less is carried where handles lie close together
_MERGED = 2.0  # cells: handles closer together than this say nothing about a turn
_STEP = 0.1  # of colour (0..1) that leaves 1/e of what ties a piece to its ground
_EDGE_STEP = 0.15  # the same at the mask's edge
_HELD = 3.0  # tie to what lies beyond the mask, against 1 inside a piece
_PLAIN = (0.25, 0.6)  # ties around: from here to there a tie counts
_LOOSE = 0.03  # share of the rim below which ties are chance, and a piece is free
_AHEAD = 0.5  # cosine of a rim's normal with the way, from which on it lies ahead
_OPEN = 0.4  # tie or likeness across which the ground follows
_COLLAR = 1.5  # lengths of the arrow: how far the ground that hangs on to a piece follows it
_SOFT = 0.3  # stiffness of that ground, against 1 inside the piece
_TURNS = 12  # most rounds of the rigid fit
_SETTLED = 0.05  # cells: a round that moves nothing farther is the last
_APART = 4.0  # cells: handles closer together than this say nothing about a size
_FREE = (
    0.5  # of what holds a piece to its ground, per sqrt(cells): more, and it cannot grow as a whole
)
_RESIZED = 0.08  # change of size from which on arrows mean one
_AGREED = 0.15  # of the longest arrow: farther off, arrows do not agree on one


def displacement(grid: Grid, piece: Mask, pairs: Sequence[PointPair]) -> F32:
    """Displacement [2, h, w] (down, right) of a piece and of the ground that follows it, in cells.

    Cells that stay have 0.

    Args:
        grid: cells.
        piece: bool [h, w], connected; it may change.
        pairs: arrows and pins whose handles lie in the piece or next to it.
    """
    own = [p for p in pairs if p.move != "auto" and p.length > 0]
    if not own:
        return _auto(grid, piece, pairs)
    fields = [_closed(grid, piece, p, pairs) for p in own]
    rest = [p for p in pairs if p not in own]
    if any(p.length > 0 for p in rest):
        fields.append(_auto(grid, piece, rest))
        own = [*own, rest[0]]
    weights = [1 / (1e-3 + _gap(grid, p) ** 2) for p in own]
    mixed = sum(w * f for w, f in zip(weights, fields, strict=True)) / sum(weights)
    return np.asarray(mixed * piece, np.float32)


def _ends(grid: Grid, pair: PointPair) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Handle and way of an arrow in cells (row, col)."""
    handle, target = (np.array(grid.cell(p)) for p in (pair.handle, pair.target))
    return handle, target - handle


def _gap(grid: Grid, pair: PointPair) -> F32:
    """Distance [h, w] of every cell from an arrow's handle, in cells."""
    row, col = grid.cell(pair.handle)
    h, w = grid.shape
    rows, cols = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None]
    return np.asarray(np.hypot(rows - row, cols - col), np.float32)


# --- shift, turn, stretch -----------------------------------------------------------------------------


def _closed(grid: Grid, piece: Mask, pair: PointPair, pairs: Sequence[PointPair]) -> F32:
    """One arrow's own displacement of its piece [2, h, w], by its kind of movement."""
    handle, way = _ends(grid, pair)
    out = np.empty((2, *grid.shape), np.float32)
    if pair.move == "shift":
        out[:] = way[:, None, None]
        return out
    pivot = _pivot(grid, piece, pair, pairs)
    rows, cols = np.mgrid[: grid.shape[0], : grid.shape[1]].astype(np.float32)
    arm = handle - pivot
    reach = float(np.hypot(*arm))
    if reach < 1:
        out[:] = way[:, None, None]
    elif pair.move == "turn":
        end = arm + way
        turn = complex(end[1], end[0]) / complex(arm[1], arm[0])
        turn /= max(abs(turn), 1e-9)
        place = (cols - pivot[1]) + 1j * (rows - pivot[0])
        step = place * (turn - 1)
        ended = turn * complex(arm[1], arm[0])  # of the handle; a turn alone may miss the target
        missed = end - np.array([ended.imag, ended.real])
        share = np.clip(np.abs(place) / reach, 0, 1)
        out[0] = step.imag + missed[0] * share
        out[1] = step.real + missed[1] * share
    else:
        along = ((rows - pivot[0]) * arm[0] + (cols - pivot[1]) * arm[1]) / reach**2
        out[:] = way[:, None, None] * np.clip(along, 0, None)
    return out


def _pivot(
    grid: Grid, piece: Mask, pair: PointPair, pairs: Sequence[PointPair]
) -> npt.NDArray[np.float64]:
    """Pivot of an arrow's turn or stretch: a pin, where the piece is attached, or its far end."""
    handle, way = _ends(grid, pair)
    pins = [np.array(grid.cell(p.handle)) for p in pairs if p.length == 0]
    if pins:
        return min(pins, key=lambda p: float(np.hypot(*(p - handle))))
    hold = _attached(grid, piece)
    rows, cols = np.nonzero(piece)
    if hold.sum() > 0.02 * np.sqrt(len(rows)):
        at = np.argwhere(hold > 0)
        weight = hold[hold > 0]
        return np.asarray((at * weight[:, None]).sum(axis=0) / weight.sum())
    if pair.move == "turn":  # attached nowhere: about its middle
        return np.array([rows.mean(), cols.mean()])
    size = max(float(np.hypot(*way)), 1e-9)
    along = ((rows - handle[0]) * way[0] + (cols - handle[1]) * way[1]) / size
    far = (
        along.argmin()
        if way @ (np.array([rows.mean(), cols.mean()]) - handle) <= 0
        else along.argmax()
    )
    return np.asarray(handle + way / size * along[far])


def _attached(grid: Grid, piece: Mask) -> F32:
    """Attachment of each cell of a piece [h, w] to neighbours that stay: sum of conductances."""
    down, right = conductance(grid.rgb, EDGE)
    out = np.zeros(grid.shape, np.float32)
    v, u = piece[1:] ^ piece[:-1], piece[:, 1:] ^ piece[:, :-1]
    out[1:] += down * v
    out[:-1] += down * v
    out[:, 1:] += right * u
    out[:, :-1] += right * u
    return np.where(piece & (out > 0.3), out, 0).astype(np.float32)


# --- by itself ----------------------------------------------------------------------------------------


def _auto(grid: Grid, piece: Mask, pairs: Sequence[PointPair]) -> F32:
    on = [p for p in pairs if p.length > 0 or _is_on(grid, piece, p)]
    if len(on) > 1 and sum(p.length > 0 for p in on) == 1:
        return _turned(grid, on)[0]
    if sum(p.length > 0 for p in on) > 1:
        sized, scale, missed = _turned(grid, on, resize=True)
        held = float(_attached(grid, piece).sum()) / float(np.sqrt(piece.sum()))
        if abs(scale - 1) > _RESIZED and missed < _AGREED and 0.5 < scale < 2 and held < _FREE:
            return sized
    return _rigid(grid, piece, pairs)


def _is_on(grid: Grid, piece: Mask, pair: PointPair) -> bool:
    """True if a handle lies on a piece or within two cells of it."""
    row, col = (round(v) for v in grid.cell(pair.handle))
    return bool(piece[max(0, row - 2) : row + 3, max(0, col - 2) : col + 3].any())


def _turned(
    grid: Grid, pairs: Sequence[PointPair], *, resize: bool = False
) -> tuple[F32, float, float]:
    """The turn and shift nearest to all arrows and pins [2, h, w], with `resize` the similarity.

    What it misses of a target is spread around that handle by inverse squared distances. Also
    returns the change of size, and the most that is missed, as a share of the longest arrow.
    """
    ends = [_ends(grid, p) for p in pairs]
    a = np.array([complex(h[1], h[0]) for h, _ in ends])
    b = a + np.array([complex(w[1], w[0]) for _, w in ends])
    scale = complex(1)
    spread = float((np.abs(a - a.mean()) ** 2).sum())
    if spread > _MERGED**2:
        scale = complex(((b - b.mean()) * np.conj(a - a.mean())).sum() / spread)
        if not resize or max(np.abs(x - y) for x in a for y in a) < _APART:
            scale /= max(abs(scale), 1e-9)
    rows, cols = np.mgrid[: grid.shape[0], : grid.shape[1]].astype(np.float32)
    place = cols + 1j * rows
    u = (scale - 1) * (place - a.mean()) + (b.mean() - a.mean())
    missed = b - (a + (scale - 1) * (a - a.mean()) + (b.mean() - a.mean()))
    if np.abs(missed).max() > 1e-3:
        weights = [1 / (0.25 + _gap(grid, p) ** 2) for p in pairs]
        u = u + sum(w * m for w, m in zip(weights, missed, strict=True)) / sum(weights)
    share = float(np.abs(missed).max() / max(float(np.abs(b - a).max()), 1e-9))
    return np.stack([u.imag, u.real]).astype(np.float32), abs(scale), share


@dataclass(frozen=True, slots=True, eq=False)
class _Body:
    """A piece with its collar, the ground that follows it where no edge parts the two.

    `cells` bool [h, w]. `links`: stiffness between vertical [h - 1, w] and horizontal [h, w - 1]
    neighbours, 1 inside the piece; those that lead out of the body tie it to what stays. `pinned`
    [2, h, w]: pull, per direction, of a cell to where it is.
    """

    cells: Mask
    links: tuple[F32, F32]
    pinned: F32


def _body(grid: Grid, piece: Mask, pairs: Sequence[PointPair]) -> _Body:
    """Find where a piece hangs on to its ground, and how much of the ground follows it there."""
    inside, rim = _within(piece), _across(piece)
    alike, ties = _ties(grid, piece, rim)
    ways = np.array([_ends(grid, p)[1] for p in pairs])
    ties = _behind(piece, ties, ways.sum(axis=0))
    share = sum(float(t.sum()) for t in ties) / max(1, sum(int(r.sum()) for r in rim))
    if share < _LOOSE:
        return _Body(piece, inside, _pinned(grid, piece, pairs))
    longest = float(np.hypot(*ways.T).max())
    near = grid.area & (_spread(ties, rim) > 0.5)
    cells, is_open = piece, [t > _OPEN for t in ties]
    for _ in range(round(max(2.0, _COLLAR * longest))):
        new = np.zeros_like(cells)
        new[1:] |= cells[:-1] & is_open[0]
        new[:-1] |= cells[1:] & is_open[0]
        new[:, 1:] |= cells[:, :-1] & is_open[1]
        new[:, :-1] |= cells[:, 1:] & is_open[1]
        cells = cells | (new & near)
        is_open = [a > _OPEN for a in alike]
    cut = _across(grid.area)  # what reaches the mask's edge is tied to what lies beyond
    links = tuple(
        np.where(c, np.float32(_HELD), np.where(r, t, np.where(i > 0, i, np.float32(_SOFT) * a)))
        for c, r, t, i, a in zip(cut, rim, ties, inside, alike, strict=True)
    )
    return _Body(cells, (links[0], links[1]), _pinned(grid, piece, pairs))


def _ties(
    grid: Grid, piece: Mask, rim: tuple[Mask, Mask]
) -> tuple[tuple[F32, F32], tuple[F32, F32]]:
    """How much neighbours look alike, 0..1, everywhere and, as ties of a piece, at its rim.

    A tie counts where the rim around it looks alike, too: a spot in the ground's colour ties nothing.
    At the mask's edge, where a piece ends because it may not change, more is taken for alike, and most
    where what lies outside has colours of the piece (a bird behind a rock, and the sky around both).
    """
    own = colour_evidence(grid.rgb, piece.astype(np.float32), (~piece).astype(np.float32))
    foreign = 1 - np.minimum(own[1:], own[:-1]), 1 - np.minimum(own[:, 1:], own[:, :-1])
    steps = [_step(grid.rgb, axis) for axis in (0, 1)]
    alike = [np.exp(-((s / _STEP) ** 2)) for s in steps]
    plain = np.clip((_spread(alike, rim) - _PLAIN[0]) / (_PLAIN[1] - _PLAIN[0]), 0, 1)
    edge = grown(~grid.area, 1)
    ties = []
    for axis, (r, a, step) in enumerate(zip(rim, alike, steps, strict=True)):
        tie = a * _mid(plain, axis)
        outer = _mid(edge.astype(np.float32), axis) > 0
        tie = np.where(
            outer, np.maximum(tie, np.exp(-foreign[axis] * (step / _EDGE_STEP) ** 2)), tie
        )
        ties.append(np.where(r, tie, 0).astype(np.float32))
    return (alike[0], alike[1]), (ties[0], ties[1])


def _behind(piece: Mask, ties: tuple[F32, F32], way: npt.NDArray[np.float64]) -> tuple[F32, F32]:
    """Ties but for those on the side to which a piece goes: nothing is torn there."""
    here, (down, right) = piece.astype(np.float32), way / max(float(np.hypot(*way)), 1e-9)
    ahead = (here[:-1] - here[1:]) * down > _AHEAD, (here[:, :-1] - here[:, 1:]) * right > _AHEAD
    return ties[0] * ~ahead[0], ties[1] * ~ahead[1]


def _step(rgb: F32, axis: int) -> F32:
    """Steps of colour between neighbours, or to one cell beyond: outlines are spread over two cells."""
    n = rgb.shape[axis]
    step = np.abs(np.diff(rgb, axis=axis)).max(axis=2)
    far = np.abs(rgb.take(range(2, n), axis) - rgb.take(range(n - 2), axis)).max(axis=2)
    pad = [(0, 0), (0, 0)]
    for side in ((1, 0), (0, 1)):
        pad[axis] = side
        step = np.maximum(step, np.pad(far, pad))
    return np.asarray(step, np.float32)


def _spread(values: Sequence[F32], rim: tuple[Mask, Mask]) -> F32:
    """Values of the rim's links as means around each cell of the rim, and from there outwards [h, w].

    Means are weighted by the values themselves: a limb that leaves a piece is narrow.
    """
    v, u = (x * r for x, r in zip(values, rim, strict=True))
    mean = blurred(_gathered(v * v, u * u)) / np.maximum(blurred(_gathered(v, u)), 1e-3)
    around = _gathered(rim[0].astype(np.float32), rim[1].astype(np.float32)) > 0
    return filled(mean[..., None].astype(np.float32), around)[..., 0]


def _gathered(down: F32, right: F32) -> F32:
    """Sums of the values of each cell's links [h, w]."""
    out = np.zeros((right.shape[0], down.shape[1]), np.float32)
    out[1:] += down
    out[:-1] += down
    out[:, 1:] += right
    out[:, :-1] += right
    return out


def _within(cells: Mask) -> tuple[F32, F32]:
    """1 between neighbours that both lie in a region, else 0."""
    down, right = cells[1:] & cells[:-1], cells[:, 1:] & cells[:, :-1]
    return down.astype(np.float32), right.astype(np.float32)


def _across(cells: Mask) -> tuple[Mask, Mask]:
    """True between neighbours of which one lies in a region."""
    return cells[1:] ^ cells[:-1], cells[:, 1:] ^ cells[:, :-1]


def _pinned(grid: Grid, piece: Mask, pairs: Sequence[PointPair]) -> F32:
    """Pull [2, h, w] that keeps a piece at the picture's border: what lies beyond cannot be shown."""
    out = np.zeros((2, *grid.shape), np.float32)
    down, right = np.sum([_ends(grid, p)[1] for p in pairs], axis=0)
    top, bottom, left, end = grid.border
    out[0, 0] = piece[0] & (top and down > 0)
    out[0, -1] = piece[-1] & (bottom and down < 0)
    out[1, :, 0] = piece[:, 0] & (left and right > 0)
    out[1, :, -1] = piece[:, -1] & (end and right < 0)
    return out


def _rigid(grid: Grid, piece: Mask, pairs: Sequence[PointPair]) -> F32:
    """Displacement of a piece and its collar as rigid as possible [2, h, w]; elsewhere it is 0."""
    body = _body(grid, piece, pairs)
    fixed = np.zeros(grid.shape, np.bool_)
    u = np.zeros((2, *grid.shape), np.float32)
    for pair in pairs:
        way = _ends(grid, pair)[1]
        others = [pair.handle.distance(p.handle) for p in pairs if p is not pair]
        room = min(others, default=np.inf) / max(grid.scale) / grid.unit  # of 256
        near = seeds_of(grid, [pair.handle], max(2.0, min(_HOLD, _BETWEEN * room))) & piece
        fixed |= near
        u[:, near] = way.astype(np.float32)[:, None]
    free, within = body.cells & ~fixed, _within(body.cells)
    stiff = body.links[0] * within[0], body.links[1] * within[1]
    start = np.where(fixed, u, _shifted(u, fixed) * body.cells)
    u = solve(start, free, body.links, steps=150, absorbed=body.pinned, tolerance=3e-3)
    for _ in range(_TURNS):
        new = solve(
            u, free, body.links, steps=24, source=_wanted(u, body.cells, stiff),
            absorbed=body.pinned, tolerance=3e-3,
        )  # fmt: skip
        step = float(np.abs(new - u).max())
        u = new
        if step < _SETTLED:
            break
    return np.asarray(u * body.cells, np.float32)


def _shifted(u: F32, fixed: Mask) -> F32:
    """The mean displacement of what is held, as a start for all."""
    count = max(1, int(fixed.sum()))
    return np.asarray((u * fixed).sum(axis=(1, 2))[:, None, None] / count, np.float32)


def _wanted(u: F32, piece: Mask, inside: tuple[F32, F32], blur: int = 2) -> F32:
    """Right-hand side of the ARAP system: rotated differences between neighbours, summed [2, h, w]."""
    # edges after the move, as (along, across): a turn by a has (cos a, sin a) times the length
    down, right = inside
    turn = np.zeros_like(u)
    v, h = u[:, 1:] - u[:, :-1], u[:, :, 1:] - u[:, :, :-1]
    edges = down * np.stack([1 + v[0], v[1]])
    turn[:, 1:] += edges
    turn[:, :-1] += edges
    edges = right * np.stack([1 + h[1], -h[0]])
    turn[:, :, 1:] += edges
    turn[:, :, :-1] += edges
    turn = np.stack([blurred(t, blur) for t in turn])
    size = np.hypot(turn[0], turn[1])
    good = piece & (size > 1e-9)
    cos = np.where(good, turn[0] / np.maximum(size, 1e-9), 1)
    sin = np.where(good, turn[1] / np.maximum(size, 1e-9), 0)
    v = down * np.stack([_mid(cos, 0) - 1, _mid(sin, 0)])
    h = right * np.stack([-_mid(sin, 1), _mid(cos, 1) - 1])
    out = np.zeros_like(u)
    out[:, 1:] += v
    out[:, :-1] -= v
    out[:, :, 1:] += h
    out[:, :, :-1] -= h
    return out


def _mid(x: F32, axis: int) -> F32:
    """Means of neighbours along an axis."""
    return np.asarray((x[1:] + x[:-1]) / 2 if axis == 0 else (x[:, 1:] + x[:, :-1]) / 2, np.float32)


# --- and back ------------------------------------------------------------------------------------------


def inverted(u: F32, piece: Mask) -> F32:
    """The displacement that leads back: b(y) = u(y - b(y)), [h, w, 2].

    `u` [h, w, 2] is the piece's displacement, continued smoothly around it. Each cell's displacement
    is put down where the cell lands, gaps are closed, and a few rounds of the equation itself make it exact.
    """
    h, w = piece.shape
    rows, cols = np.mgrid[:h, :w].astype(np.float32)
    at = np.nonzero(piece)
    y, x = at[0] + u[at][:, 0], at[1] + u[at][:, 1]
    i, j = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    total, weight = np.zeros((2, h * w)), np.zeros(h * w)
    for di, dj in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1 - np.abs(y - i - di)) * (1 - np.abs(x - j - dj))
        good = (i + di >= 0) & (i + di < h) & (j + dj >= 0) & (j + dj < w)
        index = ((i + di) * w + j + dj)[good]
        weight += np.bincount(index, share[good], h * w)
        for axis in (0, 1):
            total[axis] += np.bincount(index, share[good] * u[at][good, axis], h * w)
    known = (weight > 0.25).reshape(h, w)
    if not known.any():
        return u
    back = (total / np.maximum(weight, 1e-9)).reshape(2, h, w).transpose(1, 2, 0).astype(np.float32)
    back = filled(back, known)
    for _ in range(6):
        y, x = rows - back[..., 0], cols - back[..., 1]
        back = np.stack([bilinear(u[..., 0], y, x), bilinear(u[..., 1], y, x)], axis=2)
    return back


def strain(back: F32, grid: Grid) -> tuple[F32, F32]:
    """Largest stretch, and whether it is folded (1.0), of a move at every cell."""
    ky, kx = grid.scale
    (vy, vx), (uy, ux) = (np.gradient(b) for b in back)
    a, b, c, d = 1 - vy / ky, -vx / kx, -uy / ky, 1 - ux / kx  # of the way back
    det = a * d - b * c
    square = (a * a + b * b + c * c + d * d) / 2
    least = np.sqrt(np.maximum(square - np.sqrt(np.maximum(square**2 - det**2, 0)), 1e-6))
    return np.asarray(1 / least, np.float32), np.asarray(det <= 0, np.float32)
