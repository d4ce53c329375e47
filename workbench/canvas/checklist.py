"""What is missing, surprising or fine about a drawing, in sentences for the user.

Run is possible when nothing blocks; a warning says what will probably not be as wished.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from workbench.canvas.drawing import Drawing, crossing
from workbench.core.config import DragConfig
from workbench.core.request import MAX_PAIRS, Point, PointPair

Mask = npt.NDArray[np.bool_]
Level = Literal["ok", "warn", "block"]

_LONG = 0.5  # of the picture's diagonal
_SAME = 1.0  # px: two handles closer than this are one


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the checklist: "block" disables Run, "warn" does not."""

    level: Level
    text: str


def ready(checks: list[Check]) -> bool:
    """Whether nothing blocks the run."""
    return all(c.level != "block" for c in checks)


def checklist(
    drawing: Drawing, size: tuple[int, int], mask: Mask, config: DragConfig | None = None
) -> list[Check]:
    """Check a drawing on a picture of `size` (width, height); blocks first, then warnings, then ok.

    Args:
        drawing: arrows and shapes in image pixels.
        size: the picture's width and height.
        mask: the rasterised mask, bool [height, width].
        config: the drag's options; some change what an empty mask means.
    """
    options = config or DragConfig()
    numbered = [(i, a.pair) for i, a in enumerate(drawing.arrows, 1) if a.on]
    checks = _arrows(drawing, numbered, size)
    checks += _between(numbered)
    checks += _mask(numbered, mask, options)
    order = {"block": 0, "warn": 1, "ok": 2}
    return sorted(checks, key=lambda c: order[c.level])


def _arrows(
    drawing: Drawing, numbered: list[tuple[int, PointPair]], size: tuple[int, int]
) -> list[Check]:
    checks: list[Check] = []
    if not drawing.arrows and drawing.loose is None:
        checks.append(
            Check("block", "Draw an arrow: from the part that shall move to where it shall go.")
        )
    elif not numbered and drawing.loose is None:
        checks.append(Check("block", "All arrows are switched off; switch at least one on."))
    if drawing.loose is not None:
        p = drawing.loose
        checks.append(
            Check("block", f"The handle at ({p.x:.0f}, {p.y:.0f}) has no target; click its target.")
        )
    if len(numbered) > MAX_PAIRS:
        checks.append(
            Check("block", f"There are {len(numbered)} arrows; at most {MAX_PAIRS} are possible.")
        )
    diagonal = float(np.hypot(*size))
    for i, pair in numbered:
        for what, p in (("handle", pair.handle), ("target", pair.target)):
            if not _inside(p, size):
                text = (
                    f"Arrow {i}: the {what} ({p.x:.1f}, {p.y:.1f}) is outside the "
                    f"{size[0]}x{size[1]} picture; move it inside."
                )
                checks.append(Check("block", text))
        if pair.length < 1e-3:
            text = f"Arrow {i}: handle and target are the same point, so it holds that point still."
            checks.append(Check("warn", text))
        elif pair.length > _LONG * diagonal:
            text = (
                f"Arrow {i} is {pair.length:.0f} px long, more than half of the picture; "
                "two shorter drags one after the other keep more of it."
            )
            checks.append(Check("warn", text))
    if numbered and all(c.level == "ok" for c in checks):
        n = len(numbered)
        checks.append(Check("ok", f"{n} arrow{'s' if n > 1 else ''}."))
    return checks


def _between(numbered: list[tuple[int, PointPair]]) -> list[Check]:
    checks: list[Check] = []
    for (i, a), (j, b) in itertools.combinations(numbered[:MAX_PAIRS], 2):
        if a.handle.distance(b.handle) < _SAME:
            if a.target.distance(b.target) < _SAME:
                text = f"Arrows {i} and {j} are the same; delete one of them."
            else:
                text = (
                    f"Arrows {i} and {j} pull the same handle to different targets; "
                    "it will end between them, so delete one."
                )
            checks.append(Check("warn", text))
        elif crossing(a, b):
            text = f"Arrows {i} and {j} cross; what lies between them may tear."
            checks.append(Check("warn", text))
    return checks


def _mask(numbered: list[tuple[int, PointPair]], mask: Mask, options: DragConfig) -> list[Check]:
    share = float(mask.mean()) if mask.size else 0.0
    if not mask.any():
        if options.parity and options.method == "gooddrag":
            text = "Nothing is painted, and in this mode that freezes the whole picture; paint it."
            return [Check("warn", text)]
        text = "Nothing is painted, so the whole picture may change; paint what may move."
        return [Check("warn", text)]
    checks: list[Check] = []
    height, width = mask.shape
    room = max(3.0, 0.01 * float(np.hypot(width, height)))
    for i, pair in numbered:
        for what, p in (("handle", pair.handle), ("target", pair.target)):
            if not _inside(p, (width, height)):
                continue
            if not mask[_pixel(p, mask.shape)]:
                why = "it cannot move" if what == "handle" else "nothing can arrive there"
                text = f"Arrow {i}: the {what} is outside the painted area, where {why}; paint it."
                checks.append(Check("warn", text))
            elif _near_edge(p, mask, room):
                text = f"Arrow {i}: the {what} is at the painted area's edge; paint more around it."
                checks.append(Check("warn", text))
    if mask.all():
        checks.append(Check("ok", "Everything is painted: the whole picture may change."))
    elif not checks:
        checks.append(Check("ok", f"{_percent(share)} of the picture may change."))
    return checks


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "Less than 1%"


def _inside(p: Point, size: tuple[int, int]) -> bool:
    return -0.5 <= p.x <= size[0] - 0.5 and -0.5 <= p.y <= size[1] - 0.5


def _pixel(p: Point, shape: tuple[int, ...]) -> tuple[int, int]:
    row, col = round(p.y), round(p.x)
    return min(max(row, 0), shape[0] - 1), min(max(col, 0), shape[1] - 1)


def _near_edge(p: Point, mask: Mask, room: float) -> bool:
    """Whether an unpainted pixel lies within `room` of a painted point."""
    row, col = _pixel(p, mask.shape)
    r = int(np.ceil(room))
    y0, x0 = max(0, row - r), max(0, col - r)
    window = mask[y0 : row + r + 1, x0 : col + r + 1]
    ys, xs = np.nonzero(~window)
    return bool(np.any((ys + y0 - p.y) ** 2 + (xs + x0 - p.x) ** 2 <= room * room))
