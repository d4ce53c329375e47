"""Previews of the picture while it is dragged, limited to a tenth of the time."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING

import torch

from workbench.core.record import OnStep, StepInfo
from workbench.editing.text_to_image import to_rgb
from workbench.imaging import decode

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime
    from workbench.editing.working_image import WorkingImage

log = logging.getLogger(__name__)

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
