"""Drags whose true result is known: held-out scenes, balanced over kinds, lengths and numbers of pairs.

Seeds: training draws its scenes from seeds below `demo.config.HELD_OUT_SEED`, its own evaluation from
there on; the benchmark's begin `OFFSET` above, so that it shares no scene with either. A set is named
by one number; tuning and reporting use different ones (docs/benchmarks.md says which).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.config import HELD_OUT_SEED
from training.scenes import (
    KINDS,
    SCENES_VERSION,
    Scene,
    changed_mask,
    drag_targets,
    sample,
)
from workbench.canvas.drawing import Drawing, Stroke
from workbench.canvas.rasterize import rasterise
from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair

U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SET_VERSION = 1  # raised when the drags of a set change; SCENES_VERSION is part of it
OFFSET = 10_000_000
PER_SET = 10_000  # scene seeds that a set may use
MOST_DRAGS = 1_200
BUCKETS: tuple[tuple[float, float], ...] = ((8.0, 16.0), (16.0, 32.0), (32.0, 64.0))
MOST_PAIRS = 4
_GROW, _CLOSE, _PEN = 5, 7, 18.0  # px: how a person paints around what moves


class AnyDrag(Protocol):
    """Description of a drag with a known truth, drawn or photographed."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def pairs(self) -> tuple[PointPair, ...]: ...  # noqa: D102
    @property
    def caption(self) -> str: ...  # noqa: D102
    @property
    def length(self) -> float: ...  # noqa: D102
    @property
    def bucket_name(self) -> str: ...  # noqa: D102
    def pictures(self) -> Pictures: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Drag:
    """One drag of the benchmark; `index` is its place in the set."""

    index: int
    before: Scene
    after: Scene
    pairs: tuple[PointPair, ...]  # in image pixels; the targets are where the handles really get to
    names: tuple[str, ...]  # of the handles
    bucket: tuple[float, float]  # px, the lengths of all pairs lie in it

    @property
    def kind(self) -> str:
        """Kind of the scene."""
        return self.before.kind

    @property
    def caption(self) -> str:
        """The prompt."""
        return self.before.caption

    @property
    def key(self) -> str:
        """Name of the drag, the same in every run: kind, scene seed, handles."""
        return f"{self.kind}-{self.before.seed}-{'+'.join(self.names)}"

    @property
    def length(self) -> float:
        """Mean length of the pairs in pixels."""
        return float(np.mean([p.length for p in self.pairs]))

    @property
    def bucket_name(self) -> str:
        """The bucket in words."""
        return f"{self.bucket[0]:.0f}-{self.bucket[1]:.0f} px"

    def pictures(self) -> Pictures:
        """Draw source and truth, and what a user would paint."""
        from training.scenes import render

        drawn = render([self.before, self.after])
        rgb = (drawn.clamp(0, 1) * 255 + 0.5).byte().permute(0, 2, 3, 1).numpy()
        region = changed_mask(self.before, self.after)
        return Pictures(rgb[0].copy(), rgb[1].copy(), region, painted(region, self.pairs))


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Source and truth uint8 [H, W, 3]; the changed `region` and the painted `mask`, bool [H, W]."""

    source: U8
    truth: U8
    region: Mask
    mask: Mask


def scene_seed(set_seed: int, number: int) -> int:
    """The seed of a set's n-th scene.

    Raises:
        BadInput: for a set below 0 or above 999999, or more scenes than a set has.
    """
    if not 0 <= set_seed < 1_000_000:
        raise BadInput(
            f"The benchmark's seed is {set_seed}; give a number from 0 to 999999.",
            code="out-of-range",
        )
    if not 0 <= number < PER_SET:
        raise BadInput(f"A set has {PER_SET} scenes; number {number} is not among them.")
    return HELD_OUT_SEED + OFFSET + set_seed * PER_SET + number


def drag_set(count: int, set_seed: int) -> list[Drag]:
    """The first `count` drags of a set: kinds in turn, lengths and numbers of pairs balanced.

    A longer set begins with the shorter one. A scene that has no drag of the wanted length and
    number of pairs (small ranges of motion, few handles) is passed over for the next one; after
    eight such scenes, one pair less is asked for.

    Raises:
        BadInput: for a count that is not from 1 to `MOST_DRAGS`, or a bad seed.
    """
    if not 1 <= count <= MOST_DRAGS:
        raise BadInput(
            f"{count} drags were asked for; a set has 1 to {MOST_DRAGS}.", code="out-of-range"
        )
    return list(_drags(count, set_seed))


def _drags(count: int, set_seed: int) -> Iterator[Drag]:
    number = 0
    for index in range(count):
        turn, place = divmod(index, len(KINDS))
        # 3 lengths x 4 pairs: every combination once in 12 turns, each kind starting elsewhere
        bucket = BUCKETS[(turn + place) % len(BUCKETS)]
        pairs = 1 + (turn + 2 * place) % MOST_PAIRS
        tries = 0
        while True:
            drag = _try(index, KINDS[place], scene_seed(set_seed, number), bucket, pairs)
            number += 1
            if drag is not None:
                yield drag
                break
            tries += 1
            if tries % 8 == 0:
                pairs = max(1, pairs - 1)


def _try(index: int, kind: str, seed: int, bucket: tuple[float, float], pairs: int) -> Drag | None:
    before = sample(kind, seed)
    if pairs > len(before.handles):
        return None
    rng = np.random.Generator(np.random.Philox(key=[seed, SET_VERSION]))
    try:
        moves = drag_targets(before, rng, min_px=bucket[0], max_px=bucket[1], pairs=pairs)
    except ValueError:  # this scene has no such drag
        return None
    after = before.drag(moves)
    start, end = before.handles, after.handles
    made = tuple(PointPair(Point(start[n].x, start[n].y), Point(end[n].x, end[n].y)) for n in moves)
    if not all(bucket[0] - 0.5 <= p.length <= bucket[1] + 0.5 for p in made):
        return None  # the solver found another way to the target and stopped short of it
    return Drag(index, before, after, made, tuple(moves), bucket)


def painted(region: Mask, pairs: tuple[PointPair, ...]) -> Mask:
    """A mask as a person paints it: what changes, its gaps closed, a margin, and along the arrows."""
    strokes = tuple(Stroke((p.handle, p.target), _PEN) for p in pairs)
    ways = rasterise(Drawing(shapes=strokes), region.shape[1], region.shape[0])
    grown = _dilate(region | ways, _GROW + _CLOSE)
    return ~_dilate(~grown, _CLOSE)


def _dilate(mask: Mask, radius: int) -> Mask:
    """Exact dilation by a disc; outside the picture nothing is painted."""
    out = np.zeros_like(mask)
    height, width = mask.shape
    for dy in range(-radius, radius + 1):
        reach = int((radius**2 - dy**2) ** 0.5)
        row = np.zeros((height, width + 1), np.int32)
        row[:, 1:] = np.cumsum(mask, axis=1)
        right = np.minimum(np.arange(width) + reach + 1, width)
        left = np.maximum(np.arange(width) - reach, 0)
        wide = row[:, right] > row[:, left]
        if dy >= 0:
            out[dy:] |= wide[: height - dy]
        else:
            out[:dy] |= wide[-dy:]
    return out


def facts(set_seed: int) -> dict[str, int]:
    """The fields that identify a set of drags, for the header of a result file."""
    return {"set": set_seed, "set_version": SET_VERSION, "scenes_version": SCENES_VERSION}
