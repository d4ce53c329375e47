"""What became of each arrow of a finished drag, read from its record. No torch.

The record keeps every tracked position, so that the report can be made for old edits, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from workbench.core.config import DragConfig
from workbench.core.record import EditResult, Stop
from workbench.core.request import Point, PointPair

_SLACK = 1.0  # lattice px that a point may be off through rounding at either end


@dataclass(frozen=True, slots=True)
class Converged:
    """One arrow; lengths in image px, to the target as it was drawn.

    `nearest` is how close the handle ever came; `jumps` are the trackings (counted from 1) in which
    it leapt farther than one turn can have moved it: another place was taken for the feature.
    """

    number: int
    length: float
    left: float
    nearest: float
    arrived: bool
    jumps: tuple[int, ...]

    @property
    def share(self) -> float:
        """Part of the way that was made; 1 for an arrow without length."""
        return 1.0 - self.left / self.length if self.length > 0 else 1.0

    @property
    def sentence(self) -> str:
        """What there is to say beyond the distance, or nothing."""
        if self.jumps:
            times = f" and {len(self.jumps) - 1} more" if len(self.jumps) > 1 else ""
            return (
                f"Arrow {self.number}: tracking jumped at step {self.jumps[0]}{times}; what was "
                "followed after that may be another thing that looks alike."
            )
        if not self.arrived and self.left > self.nearest + max(2.0, 0.2 * self.length):
            return (
                f"Arrow {self.number} was within {self.nearest:.1f} px of its target and slipped back "
                f"to {self.left:.1f} px."
            )
        return ""


def left_of(pairs: Sequence[PointPair], result: EditResult) -> list[float]:
    """Image px from where each handle was tracked last to its target as it was drawn.

    The record's own distances lie between lattice points, to which both ends were rounded; they serve
    where no way was kept.
    """
    out = []
    for n, pair in enumerate(pairs):
        way = [row[n] for row in result.trajectory if n < len(row)]
        counted = result.distances[n] if n < len(result.distances) else pair.length
        out.append(way[-1].distance(pair.target) if len(way) > 1 else counted)
    return out


def convergence(
    pairs: Sequence[PointPair], result: EditResult, drag: DragConfig, per_cell: float
) -> list[Converged]:
    """The report of every arrow.

    Args:
        pairs: as they were asked for.
        result: with the tracked positions.
        drag: settings of the run.
        per_cell: image px per lattice px.
    """
    reach = drag.stop_distance * per_cell
    done = result.stop == Stop.REACHED.name
    out = []
    for n, (pair, left) in enumerate(zip(pairs, left_of(pairs, result), strict=True)):
        counted = result.distances[n] if n < len(result.distances) else pair.length
        way = [row[n] for row in result.trajectory if n < len(row)]
        nearest = min([left, *(p.distance(pair.target) for p in way[1:])])
        out.append(
            Converged(
                number=n + 1,
                length=pair.length,
                left=left,
                nearest=nearest,
                arrived=done or counted <= reach,
                jumps=_jumps(way, drag, per_cell),
            )
        )
    return out


def _jumps(way: Sequence[Point], drag: DragConfig, per_cell: float) -> tuple[int, ...]:
    """Trackings after which a point lay farther off than the updates before it can have moved it.

    A turn pulls by at most `max_shift`; a feature that answers twice as strongly is still followed.
    The warped start of `warp` and `auto` is one long step by intention: the first row to the second.
    """
    if drag.method == "warp":
        return ()
    most = (2 * drag.max_shift + _SLACK) * per_cell
    if drag.method == "gooddrag":
        most = (2 * drag.max_shift * drag.updates_per_tracking + _SLACK) * per_cell
    first = 1 if drag.method == "auto" else 0
    steps = enumerate(pairwise(way[first:]), 1)
    return tuple(k for k, (a, b) in steps if a.distance(b) > most)
