"""Which part of the picture may change: what is painted, else a proposal from the arrows, else all.

No Streamlit. The proposal takes the place of the paint everywhere, on the canvas, in the preview, the
checklist and the run, so that what is seen is what will be done. It is never written into the drawing
unless somebody wants to go on painting on it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.canvas.automask import propose
from workbench.canvas.checklist import Code, Finding, percent
from workbench.canvas.drawing import Drawing, Shape
from workbench.canvas.rasterize import rasterise
from workbench.core.request import PointPair
from workbench.storage.history import Store
from workbench.ui.draw import trace
from workbench.ui.shell.workspace import Workspace

UNPAINTED = {"propose": "Around the arrows", "whole": "Whole picture"}


@dataclass(frozen=True, slots=True)
class Area:
    """What may change: `mask`, bool [H,W], empty for everything; not to be written into."""

    mask: NDArray[np.bool_]
    proposed: bool = False


class Areas:
    """Finds the area of a drawing; the last ones are remembered."""

    def __init__(self, store: Store) -> None:
        """Read the pictures from `store`."""
        self._store = store
        self._painted = lru_cache(maxsize=8)(self._rasterise)
        self._proposed = lru_cache(maxsize=8)(self._propose)

    def painted(self, drawing: Drawing, size: tuple[int, int]) -> NDArray[np.bool_]:
        """What is painted, bool [H,W], on a picture of `size` (width, height)."""
        return self._painted(drawing.shapes, drawing.invert, *size)

    def of(self, space: Workspace, drawing: Drawing) -> Area:
        """What may change when this drawing is run."""
        mask = self.painted(drawing, (space.image.width, space.image.height))
        if mask.any() or unpainted(space) == "whole":
            return Area(mask)
        moving = tuple(p for p in drawing.pairs if p.length > 0)
        if not moving:
            return Area(mask)
        proposal = self._proposed(space.image.id, moving)
        return Area(proposal, proposed=True) if proposal.any() else Area(mask)

    def _rasterise(
        self, shapes: tuple[Shape, ...], invert: bool, width: int, height: int
    ) -> NDArray[np.bool_]:
        return rasterise(Drawing(shapes=shapes, invert=invert), width, height)

    def _propose(self, image: str, pairs: tuple[PointPair, ...]) -> NDArray[np.bool_]:
        return propose(self._store.image(image), pairs)


def unpainted(space: Workspace) -> str:
    """What a drawing without paint means in this project: "propose" or "whole"."""
    chosen = str(space.get("unpainted", "propose"))
    return chosen if chosen in UNPAINTED else "propose"


def adopt(drawing: Drawing, area: Area) -> Drawing:
    """The drawing with the proposal painted, so that brush and eraser can change it.

    Raises:
        BadInput: when the outline has too many corners to be drawn on.
    """
    return dataclasses.replace(drawing, shapes=trace.polygons(area.mask), invert=False)


def told(findings: list[Finding], area: Area, *, waiting: bool = False) -> list[Finding]:
    """The checklist, with a line that the area was proposed and not painted.

    `waiting`: there is no arrow yet, and with the first one an area will be proposed.
    """
    if waiting:
        return [f for f in findings if f.code is not Code.NO_MASK]
    if not area.proposed:
        return findings
    kept = [f for f in findings if f.code is not Code.MASK_AREA]
    share = percent(float(area.mask.mean()))
    return [*kept, Finding("ok", Code.MASK_PROPOSED, values={"share": share})]
