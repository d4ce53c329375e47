"""Editable area of the picture: the painted mask, else a proposal from the arrows, else all.

No Streamlit. The proposal takes the place of the paint everywhere, on the canvas, in the preview, the
checklist and the run, so that what is seen is what will be done. It is never written into the drawing
unless somebody wants to go on painting on it.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench.canvas import selection
from workbench.canvas.checklist import PIN, Code, Finding, percent
from workbench.canvas.drawing import Drawing, Shape
from workbench.canvas.rasterize import rasterise
from workbench.canvas.selection import propose
from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair
from workbench.imaging.decode import read_mask
from workbench.storage.history import Store
from workbench.ui.shell import projection
from workbench.ui.shell.forms import say
from workbench.ui.shell.workspace import Workspace

UNPAINTED = {"propose": say("draw.around_arrows"), "whole": say("draw.whole_picture")}
_SENT = 640  # longest side of a mask on its way to the browser, px


@dataclass(frozen=True, slots=True)
class Area:
    """Editable area: `mask`, bool [H,W], empty for everything; not to be written into."""

    mask: NDArray[np.bool_]
    proposed: bool = False


class Areas:
    """Finds the area of a drawing; the last ones are remembered."""

    def __init__(self, store: Store) -> None:
        """Read the pictures from `store`."""
        self._store = store
        self._painted = lru_cache(maxsize=8)(self._rasterise)
        self._proposed = lru_cache(maxsize=32)(self._propose)
        self._parts = lru_cache(maxsize=32)(self._part)
        self._weights = lru_cache(maxsize=64)(self._weigh)
        self._pictures: tuple[NDArray[np.bool_], bytes] | None = None

    def painted(self, drawing: Drawing, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Painted mask, bool [H,W], on a picture of `size` (width, height)."""
        return self._painted(drawing.shapes, drawing.invert, *size)

    def of(self, space: Workspace, drawing: Drawing) -> Area:
        """Editable area when this drawing is run."""
        mask = self.painted(drawing, (space.image.width, space.image.height))
        if mask.any() or unpainted(space) == "whole":
            return Area(mask)
        moving = tuple(p for p in drawing.pairs if p.length > 0)
        if not moving:
            return Area(mask)
        proposal = self._proposed(space.image.id, moving)
        return Area(proposal, proposed=True) if proposal.any() else Area(mask)

    def part_at(self, image: str, at: Point, grow: float = 0.0) -> NDArray[np.bool_]:
        """Connected region at a position, bool [H,W]; empty on background. `grow`: -1 to 1."""
        return self._parts(image, round(at.x), round(at.y), grow)

    def weights(self, space: Workspace, drawing: Drawing, pair: PointPair) -> bytes | None:
        """Grey PNG of the weight with which each pixel follows an arrow's handle; None if unknown.

        Nothing outside of what is painted follows; unpainted, outside of what is proposed for the arrow.
        """
        size = (space.image.width, space.image.height)
        shapes = drawing.shapes if drawing.has_mask else ()
        return self._weights(space.image.id, pair, shapes, size)

    def picture(self, area: Area) -> bytes:
        """A mask for the browser: PNG, opaque where the picture may change."""
        if self._pictures is None or self._pictures[0] is not area.mask:
            grey = Image.fromarray(np.where(area.mask, 255, 0).astype(np.uint8))
            grey.thumbnail((_SENT, _SENT), Image.Resampling.BOX)
            out = io.BytesIO()
            Image.merge("LA", (grey, grey)).save(out, "PNG", compress_level=4)
            self._pictures = (area.mask, out.getvalue())
        return self._pictures[1]

    def _part(self, image: str, x: int, y: int, grow: float) -> NDArray[np.bool_]:
        return selection.part_at(self._store.image(image), Point(float(x), float(y)), grow)

    def _weigh(
        self, image: str, pair: PointPair, shapes: tuple[Shape, ...], size: tuple[int, int]
    ) -> bytes | None:
        mask = self._painted(shapes, False, *size) if shapes else None
        if mask is None and pair.length > 0:
            mask = self._proposed(image, (pair,))
        return selection.weights(self._store.image(image), pair, mask)

    def _rasterise(
        self, shapes: tuple[Shape, ...], invert: bool, width: int, height: int
    ) -> NDArray[np.bool_]:
        return rasterise(Drawing(shapes=shapes, invert=invert), width, height)

    def _propose(self, image: str, pairs: tuple[PointPair, ...]) -> NDArray[np.bool_]:
        return propose(self._store.image(image), pairs)


def unpainted(space: Workspace) -> str:
    """Meaning of an empty mask in this project: "propose" or "whole"."""
    chosen = str(space.get("unpainted", "propose"))
    return chosen if chosen in UNPAINTED else "propose"


def adopt(drawing: Drawing, area: Area) -> Drawing:
    """The drawing with the proposal painted, so that brush and eraser can change it.

    Raises:
        BadInput: when the outline has too many corners to be drawn on.
    """
    return painted_with(drawing, area.mask)


def painted_with(drawing: Drawing, mask: NDArray[np.bool_]) -> Drawing:
    """The drawing with exactly `mask`, bool [H,W], painted.

    Raises:
        BadInput: when the outline has too many corners to be drawn on.
    """
    return dataclasses.replace(drawing, shapes=projection.polygons(mask), invert=False)


def mask_of(raw: bytes, size: tuple[int, int], name: str) -> NDArray[np.bool_]:
    """The painted part of a mask file, as `imaging.masks` decides it; scaled to `size` (width, height).

    Raises:
        BadInput: when it is not a mask, or nothing in it is painted.
    """
    mask, _notices = read_mask(raw, *size, name, fit=True)
    if not mask.any():
        raise BadInput(say("draw.mask_empty", name=name), code="empty-mask", field="mask")
    return mask


def said(drawing: Drawing, area: Area) -> str:
    """Text alternative of the drawing."""
    lines = []
    for n, arrow in enumerate(drawing.arrows, 1):
        off = "" if arrow.on else say("draw.said_off")
        hx, hy, tx, ty = (round(v) for v in arrow.pair.to_json()[:4])
        length = round(arrow.pair.length)
        if arrow.pair.length < PIN:
            lines.append(say("draw.said_pin", n=n, hx=hx, hy=hy, off=off))
        else:
            lines.append(
                say("draw.said_arrow", n=n, hx=hx, hy=hy, tx=tx, ty=ty, length=length, off=off)
            )
    share = percent(float(area.mask.mean()))
    if area.proposed:
        lines.append(say("draw.said_proposed", share=share))
    elif area.mask.any():
        lines.append(say("draw.said_mask", share=share))
    else:
        lines.append(say("draw.said_whole"))
    return " ".join(lines if drawing.arrows else [say("draw.said_nothing"), *lines])


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
