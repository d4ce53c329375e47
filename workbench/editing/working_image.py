"""The cropped, resized image that the model edits, previews of it, and pasting it back.

A picture that is much larger than the model's native size is edited on a crop around its mask, so
that the mask gets the model's full resolution and the rest of the picture stays bit-identical.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray

from workbench.core.record import OnStep, StepInfo
from workbench.core.request import EditRequest, Point
from workbench.editing.crop_plan import crop_of
from workbench.editing.text_to_image import to_rgb
from workbench.imaging import coords, decode
from workbench.imaging.coords import Frame
from workbench.imaging.crop import Crop, paste
from workbench.storage.history import Store

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime


U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Filter = Literal["lanczos", "bilinear"]
log = logging.getLogger(__name__)
PREVIEW = 768  # longest side of a preview, px
_HAZE = (
    48  # levels (0..255) that white may lack where a picture was transparent, and is white still
)


@dataclass(frozen=True, slots=True, eq=False)
class WorkingImage:
    """The picture of a request as the model sees it.

    `rgb` [h,w,3] is the working picture, `crop` where it lies in `source` [H,W,3]; `mask` [H,W]
    and `working_mask` [h,w] are None where everything may change. `id` names the pixels that the
    working picture was made from.
    """

    request: EditRequest
    source: U8
    mask: Mask | None
    crop: Crop
    rgb: U8
    working_mask: Mask | None
    id: str

    @classmethod
    def of(cls, request: EditRequest, store: Store, native: int) -> WorkingImage:
        """Fetch a request's pixels, and cut and scale them for a model of that native size.

        Raises:
            StoreError: when picture or mask are missing from the history.
        """
        source = store.image(request.image.id)
        mask = store.mask(request.mask.id) if request.mask is not None else None
        if mask is not None and not mask.any():
            mask = None
        crop = crop_of(request, mask, native)
        rows, cols = crop.slices
        cut = np.ascontiguousarray(source[rows, cols])
        how: Filter = "bilinear" if request.drag.parity else "lanczos"
        return cls(
            request=request,
            source=source,
            mask=mask,
            crop=crop,
            rgb=decode.resize(cut, crop.working, how),
            working_mask=crop.cut_mask(mask) if mask is not None else None,
            id=request.image.id if cut.shape == source.shape else decode.image_id(cut),
        )

    @property
    def frame(self) -> Frame:
        """Coordinates: image <-> working picture."""
        return self.crop.frame

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the working picture."""
        return self.crop.working

    @property
    def longest(self) -> int:
        """Longest side of the working picture; part of the stage keys."""
        return max(self.size)

    @property
    def cropped(self) -> bool:
        """True when only a part of the picture is edited."""
        return not self.crop.is_whole(self.request.image.width, self.request.image.height)

    @property
    def notice(self) -> str | None:
        """A sentence for the user about the size, or None."""
        width, height = self.size
        if self.cropped:
            return (
                f"The edit happens on the {self.frame.width}x{self.frame.height} px around the mask, "
                f"at {width}x{height} px; the rest of the picture is not touched."
            )
        if width < self.frame.width:
            return (
                f"The picture is edited at {width}x{height} px and put back at "
                f"{self.frame.width}x{self.frame.height} px."
            )
        return None

    # --- into the model -------------------------------------------------------------------------------

    def pixels(self, rgb: U8 | None = None) -> torch.Tensor:
        """The working picture as float32 [1,3,h,w] in [-1,1] (uint8 / 127.5 - 1)."""
        given = self.rgb if rgb is None else rgb
        tensor = torch.from_numpy(np.ascontiguousarray(given)).permute(2, 0, 1)[None]
        return tensor.to(torch.float32) / 127.5 - 1

    @property
    def feature_grid(self) -> tuple[int, int]:
        """(rows, cols) of the feature grid: half the working picture."""
        return coords.feature_grid_size(*self.size)

    def latent_mask(self) -> torch.Tensor | None:
        """The mask on the latent, float32 [1,1,h/8,w/8]; None where everything may change.

        A mask so thin that no latent cell has it counts as whole cells where it lies.
        """
        if self.working_mask is None:
            return None
        _, latent = coords.mask_levels(self.working_mask)
        if not latent.any():
            rows, cols = np.nonzero(self.working_mask)
            latent[
                np.minimum(rows // 8, latent.shape[0] - 1),
                np.minimum(cols // 8, latent.shape[1] - 1),
            ] = True
        return torch.from_numpy(latent.astype(np.float32))[None, None]

    def handles_and_targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lattice positions [P,2] (row, col), float32: handles and targets."""
        pairs = [self.frame.forward_pair(p) for p in self.request.pairs]
        made = [
            torch.from_numpy(coords.to_feature_grid(points, self.size, self.feature_grid)).float()
            for points in ([p.handle for p in pairs], [p.target for p in pairs])
        ]
        return made[0], made[1]

    # --- and back -------------------------------------------------------------------------------------

    def points(self, positions: npt.ArrayLike) -> tuple[Point, ...]:
        """Lattice positions [P,2] (row, col) as points of the picture, in image pixels."""
        found = coords.from_feature_grid(positions, self.size, self.feature_grid)
        return tuple(self.frame.back(p) for p in found)

    def distances(self, grid_pixels: Sequence[float]) -> tuple[float, ...]:
        """Lengths on the feature grid in image pixels."""
        kx, ky = self.frame.scale
        rows, cols = self.feature_grid
        per = (self.size[0] / cols / kx + self.size[1] / rows / ky) / 2
        return tuple(round(float(d) * per, 3) for d in grid_pixels)

    @property
    def scaled(self) -> bool:
        """True when the working picture has fewer pixels than the part it stands for."""
        return self.crop.working != (self.crop.width, self.crop.height)

    def put_back(self, edited: U8, unedited: U8 | None = None) -> U8:
        """The whole picture [H,W,3] with the edited working picture [h,w,3] in its place.

        `unedited` is what the model makes of the working picture without any drag: of a scaled
        picture, what does not differ from it keeps the source's own pixels.

        By default only what the mask allows is taken from it, blended inside the mask's edge; the
        rest is the source, bit for bit. In parity mode, or with compositing off, all of it is.
        """
        drag = self.request.drag
        if drag.parity:
            out = self.source.copy()
            rows, cols = self.crop.slices
            out[rows, cols] = decode.resize(edited, (self.crop.width, self.crop.height), "bilinear")
            return out
        mask = self.mask if drag.composite else None
        out = paste(self.source, edited, self.crop, mask, drag.feather, unedited=unedited)
        return _without_haze(out, self.source) if self.request.image.alpha else out

    def change_outside(self, result: U8) -> float:
        """Largest absolute difference to the source outside the mask, 0..255."""
        if self.mask is None or self.mask.all():
            return 0.0
        worst = 0
        for top in range(0, len(result), 512):  # in bands: a 64 MP picture needs no second copy
            rows = slice(top, top + 512)
            band = np.abs(result[rows].astype(np.int16) - self.source[rows])
            outside = band[~self.mask[rows]]
            worst = max(worst, int(outside.max(initial=0)))
        return float(worst)

    def screen(self) -> Screen:
        """The picture at display size, on which previews are shown."""
        width, height = self.request.image.width, self.request.image.height
        scale = min(1.0, PREVIEW / max(width, height))
        base = decode.resize(
            self.source, (max(1, round(width * scale)), max(1, round(height * scale))), "box"
        )
        x0, y0 = round(self.frame.x0 * scale), round(self.frame.y0 * scale)
        x1 = min(base.shape[1], max(x0 + 1, round((self.frame.x0 + self.frame.width) * scale)))
        y1 = min(base.shape[0], max(y0 + 1, round((self.frame.y0 + self.frame.height) * scale)))
        kept = self.mask if self.request.drag.composite and not self.request.drag.parity else None
        mask = None
        if kept is not None:
            mask = coords.shrink_mask(kept, (base.shape[0], base.shape[1]))[y0:y1, x0:x1]
        return Screen(base, (x0, y0, x1, y1), mask)


def _without_haze(result: U8, source: U8) -> U8:
    """Of a picture with transparent places: white that came back nearly white is white again.

    A transparent place is white to the model; what the autoencoder makes of white would come back as
    a faint haze over all of it. `source` is not changed; `result` is.
    """
    for top in range(0, len(result), 512):
        rows = slice(top, top + 512)
        blank = (source[rows].min(axis=2) == 255) & (result[rows].min(axis=2) >= 255 - _HAZE)
        result[rows][blank] = 255
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Screen:
    """A small picture with the place where the edited part is shown."""

    base: U8
    box: tuple[int, int, int, int]  # x0, y0, x1, y1
    mask: Mask | None  # of the box

    def show(self, edited: U8) -> U8:
        """The whole picture at display size with the edited working picture [h,w,3] in it."""
        x0, y0, x1, y1 = self.box
        part = decode.resize(edited, (x1 - x0, y1 - y0), "bilinear")
        out = self.base.copy()
        if self.mask is None:
            out[y0:y1, x0:x1] = part
        else:
            out[y0:y1, x0:x1][self.mask] = part[self.mask]
        return out


SHARE = 0.1  # of the time, for previews
MOST = 40  # frames that are kept
QUALITY = 85


class PreviewRecorder:
    """Turns the steps of a method into progress in image pixels and, now and then, a preview."""

    def __init__(
        self, image: WorkingImage, runtime: Runtime, on_step: OnStep, *, previews: bool = True
    ) -> None:
        self._previews = previews
        self.frames: list[bytes] = []
        self._image = image
        self._runtime = runtime
        self._report = on_step
        self._due = 0.0  # when the next preview may be made
        self._screen = image.screen()
        self._begun: dict[str, float] = {}  # first report of each stage

    def on_step(self, step: StepInfo) -> None:
        """Report one step of a method.

        Raises:
            Cancelled: when the job was asked to stop.
        """
        self._begun.setdefault(step.stage, time.perf_counter())
        points, distances = step.points, step.distances
        self._report(
            dataclasses.replace(
                step,
                points=None if points is None else self._image.points([(p.y, p.x) for p in points]),
                distances=None if distances is None else self._image.distances(distances),
                preview=self._preview(step),
                clean=None,
            )
        )

    def denoising(self) -> float:
        """Seconds since denoising began; 0 where it did not."""
        begun = self._begun.get("denoise")
        return 0.0 if begun is None else time.perf_counter() - begun

    def _preview(self, step: StepInfo) -> bytes | None:
        """A JPEG of the predicted clean picture, if one is due."""
        now = time.perf_counter()
        if step.clean is None or now < self._due or not self._shown():
            return None
        with torch.no_grad():
            latent = step.clean()
            if not bool(torch.isfinite(latent).all()):
                return None
            rgb = to_rgb(self._runtime.decode(latent))
        raw = decode.encode_jpeg(self._screen.show(rgb), QUALITY)
        self._keep(raw)
        done = time.perf_counter()
        self._due = done + (done - now) * (1 - SHARE) / SHARE
        return raw

    def _shown(self) -> bool:
        return self._previews and not self._runtime.saving_memory

    def _keep(self, raw: bytes) -> None:
        """Keep a frame; when there are too many, every other one goes."""
        if len(self.frames) >= MOST:
            self.frames = self.frames[::2]
        self.frames.append(raw)
