"""The pages' only access to the workbench: everything that they may ask for.

Everything behind it is shared by all sessions of the process. If the engine's interface changes,
this file changes and the pages do not.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
import os
import platform
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench.app import App, get_app
from workbench.canvas.drawing import Arrow, Drawing, History
from workbench.canvas.overlay import canvas_background
from workbench.core.config import LoraRef, method_spec
from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.record import JobState
from workbench.core.request import (
    EditRequest,
    GenerateTask,
    ImageAsset,
    MaskAsset,
    TrainTask,
)
from workbench.diffusion.registry import ModelSpec, suited
from workbench.imaging import decode as images
from workbench.imaging.coords import Viewport
from workbench.imaging.crop import Crop
from workbench.imaging.opening import Stop
from workbench.storage.archive import page
from workbench.storage.history import Store
from workbench.sweeps.results import estimate, rough_pass
from workbench.ui.shell import figures, forms, projection, workspace
from workbench.ui.shell.area import Areas
from workbench.ui.shell.forms import say
from workbench.ui.shell.workspace import Facts, Jobs, ModelFacts, Workspace, settings_of
from workbench.warping.layers import moved_picture


class Undo(OrderedDict[str, History]):
    """Undo and redo of the last projects that were worked on, shared by all sessions."""

    KEPT = 64

    def __setitem__(self, name: str, history: History) -> None:
        """Keep a project's history; the one untouched for longest goes."""
        super().__setitem__(name, history)
        self.move_to_end(name)
        while len(self) > self.KEPT:
            self.popitem(last=False)


class Backend(Jobs):
    """The engine as the pages see it: with all work, or the work of one owner (`of`)."""

    def __init__(self, app: App) -> None:
        """Wrap the process's `App`."""
        super().__init__(app)
        self.store: Store = app.store
        self.thumbnail = self.store.thumbnail
        self._fresh: dict[str, NDArray[np.uint8]] = {}  # the picture that was stored last
        self._pixels = lru_cache(maxsize=8)(self._read_pixels)
        self._shown = lru_cache(maxsize=64)(self._encode_shown)
        self._behind = lru_cache(maxsize=16)(self._draw_behind)
        self.suits = lru_cache(maxsize=64)(lambda image: suited(self.pixels(image)))
        self._drafted: tuple[Any, tuple[bytes, tuple[int, int, int, int]]] | None = None
        self.areas = Areas(self.store)
        self._warm = threading.Lock()  # held for ever by the first warm-up
        self._generations = itertools.count(1)
        self.undo = Undo()
        self.facts = Facts(app)

    def of(self, owner: str) -> Backend:
        """The same engine with one owner's projects, edits and jobs; pictures stay cached for all."""
        mine = copy.copy(self)
        mine.owner = owner
        mine.store = self.app.store.of(owner)
        mine.undo = Undo()
        return mine

    # --- pictures ---------------------------------------------------------------------------------

    def decode(self, raw: bytes, name: str, stop: Stop | None = None) -> images.Decoded:
        """Read an upload; `BadInput` in one sentence when it is not a usable picture."""
        return images.decode(raw, name, stop)

    def restored(self, decoded: images.Decoded) -> Workspace | None:
        """The project that a picture of ours brings along (mask, arrows, settings), or None."""
        if decoded.edit is None:
            return None
        found = page.restore(decoded.edit, decoded.rgb, self.store)
        return self.project_of(found.request, notices=found.notices)

    def project_of(
        self, request: EditRequest, *, title: str = "", notices: tuple[str, ...] = ()
    ) -> Workspace:
        """A new project that stands where an edit began: its picture, mask, arrows, settings."""
        drawing = self.drawing_of(request)
        space = Workspace.create(
            self.store,
            request.image,
            title=title or request.image.name,
            prompt=request.prompt,
            parent=request.parent,
            settings=settings_of(request),
            drawing=drawing.to_json(),
        )
        space.set(notices=list(notices))
        return space

    def drawing_of(self, request: EditRequest) -> Drawing:
        """Mask and arrows of a request as a drawing that one can go on with.

        Raises:
            BadInput: when the mask is too ragged to be drawn on.
        """
        shapes = projection.polygons(self.store.mask(request.mask.id)) if request.mask else ()
        return Drawing(tuple(Arrow(p) for p in request.pairs), shapes)

    def put_image(self, rgb: NDArray[np.uint8], name: str) -> ImageAsset:
        """Store a picture, uint8 [H,W,3], that will be looked at next; do not write into it after.

        Raises:
            StoreError: when the disk refuses.
        """
        asset = self.store.put_image(rgb, name)
        self._fresh.clear()  # one at most: a second's work to read from the disk, 72 MB to keep
        self._fresh[asset.id] = rgb
        return asset

    def _read_pixels(self, image_id: str) -> NDArray[np.uint8]:
        fresh = self._fresh.pop(image_id, None)
        return fresh if fresh is not None else self.store.image(image_id)

    def pixels(self, image_id: str) -> NDArray[np.uint8]:
        """A stored picture, uint8 [H,W,3]; do not write into it."""
        return self._pixels(image_id)

    def shown(self, image_id: str, longest: int = figures.SHOWN) -> bytes:
        """A stored picture small enough for a page, WebP bytes."""
        return self._shown(image_id, longest)

    def shown_part(self, image_id: str, box: Sequence[int] | None, longest: int) -> bytes:
        """The part [x0, y0, width, height] of a stored picture, all of it when None; WebP bytes."""
        if box is None:
            return self.shown(image_id, longest)
        x0, y0, width, height = box
        part = self.pixels(image_id)[y0 : y0 + height, x0 : x0 + width]
        return figures.encode(figures.shown(np.ascontiguousarray(part), longest), quality=92)

    def _encode_shown(self, image_id: str, longest: int) -> bytes:
        return figures.encode(figures.shown(self.pixels(image_id), longest), quality=92)

    def alpha_blob(self, alpha: NDArray[np.uint8] | None) -> str | None:
        """Store a picture's transparency, uint8 [H,W]; its id, None for an opaque picture."""
        if alpha is None:
            return None
        out = io.BytesIO()
        Image.fromarray(alpha).save(out, "PNG")
        return self.store.put_blob(out.getvalue(), "png")

    # --- drawings ---------------------------------------------------------------------------------

    def next_generation(self) -> int:
        """A number for a projection of a drawing, never used before in this process."""
        return next(self._generations)

    def canvas_background(self, space: Workspace, view: Viewport) -> bytes:
        """Background of the canvas: the picture in that view; WebP bytes."""
        return self._behind(space.image.id, view)

    def _draw_behind(self, image_id: str, view: Viewport) -> bytes:
        return canvas_background(self.pixels(image_id), view)

    def canvas_colours(self) -> dict[str, Any]:
        """Colours of arrows and mask on the canvas, and the brightness outside the mask (`dim`)."""
        return {**forms.chosen(self.app.settings.ui), "off": "#969696"}

    def draft(
        self, space: Workspace, drawing: Drawing, longest: int = 640
    ) -> tuple[bytes, tuple[int, int, int, int]] | None:
        """Instant preview of the drag; None without arrows.

        Returns:
            WebP bytes at most `longest` px long, and the box (x, y, width, height) of the picture that
            they show: of a big picture only the part in which something happens.
        """
        if not any(p.length > 0 for p in drawing.pairs):
            return None
        image = space.image
        mask = self.areas.of(space, drawing).mask
        key = (image.id, drawing.pairs, drawing.shapes, mask.any(), longest)
        known = self._drafted
        if known is None or known[0] != key:
            near = figures.close_up((image.width, image.height), mask, drawing.pairs, longest)
            to = near or figures.frame(image.width, image.height, longest)
            small = figures.seen(self.pixels(image.id), to)
            rows, cols = slice(to.y0, to.y0 + to.height), slice(to.x0, to.x0 + to.width)
            cut = figures.fit_mask(mask[rows, cols], to.out_width, to.out_height)
            pairs = figures.fit_pairs(drawing.pairs, to)
            made = figures.encode(moved_picture(small, cut if mask.any() else None, pairs))
            self._drafted = known = (key, (made, (to.x0, to.y0, to.width, to.height)))
        return known[1]

    def mask_asset(self, space: Workspace, drawing: Drawing) -> MaskAsset | None:
        """The stored mask with which a drawing is run; None where everything may change."""
        mask = self.areas.of(space, drawing).mask
        return self.store.put_mask(mask) if mask.any() else None

    # --- projects ---------------------------------------------------------------------------------

    def project_with(self, job_id: str) -> str | None:
        """The id of the project that a job belongs to, or None."""
        found = (p.id for p in self.store.projects.recent() if job_id in p.settings.get("jobs", ()))
        return next(found, None)

    # --- models -----------------------------------------------------------------------------------

    def models(self) -> list[ModelSpec]:
        """The models that can be chosen."""
        return self.app.models()

    def default_model(self) -> str:
        """The model that a new project takes."""
        return self.app.model_for(None)

    def defaults(self, rgb: NDArray[np.uint8] | None = None) -> dict[str, Any]:
        """The settings with which a project of a picture [H,W,3] begins: model, method and preset."""
        wanted = self.app.settings
        spec = method_spec(wanted.method)
        return {
            "model": self.app.model_for(rgb),
            "drag": dataclasses.asdict(spec.drag_config(wanted.preset)),
            "inversion": dataclasses.asdict(spec.inversion_config()),
        }

    def model_facts(self, space: Workspace) -> ModelFacts:
        """Facts about a project's model; `problem` says why it cannot be used."""
        return self.facts.of(space.model.name)

    def piece(self, space: Workspace) -> Crop:
        """Crop of a project's picture with the present drawing, and the size at which it is edited."""
        drawing = self._drawing(space)
        mask = self.areas.of(space, drawing).mask
        return workspace.piece(space.request(drawing.pairs, None), self.model_facts(space), mask)

    def warm_up(self, model: str = "") -> None:
        """Import torch and load a model behind the first page, once per process."""
        if self._warm.acquire(blocking=False):
            self.app.warm_up(model)

    # --- jobs -------------------------------------------------------------------------------------

    def is_trained(self, space: Workspace) -> bool:
        """True if the LoRA that a run of the present drawing would train is there already."""
        if space.lora_file is not None:
            return True
        key = self._known(space).get("lora")
        if key:
            return self.app.cache.has(str(key))
        return self.prepared(self._drawn_or_not(space))[0]

    def prepared(self, request: EditRequest) -> tuple[bool, bool]:
        """Return True if a request's LoRA and inversion are cached; False where that cannot be told quickly.

        Without a fingerprint a big model file would have to be read first.
        """
        with contextlib.suppress(WorkbenchError):
            if self.facts.of(request.model.name).fingerprint:
                return self.app.prepared(request)
        return False, False

    def seconds(
        self, requests: Sequence[EditRequest], *, train: bool = False, fresh: bool = False
    ) -> forms.Guess | None:
        """Seconds that runs will take at most, guessed where no earlier one says; None without the model.

        `train`: only their training and inversion. `fresh`: nothing is taken from the cache.
        """
        stages = ("lora", "invert") if train else None
        known: dict[object, tuple[bool, bool]] = {}  # of a sweep, many runs share their preparation

        def prepared(request: EditRequest) -> tuple[bool, bool]:
            of = (request.image.id, request.prompt, request.lora, request.inversion)
            if of not in known:
                known[of] = (False, False) if fresh else self.prepared(request)
            return known[of]

        unit = self._rough_pass(requests[0].model.name) if requests else None
        measured, took = (
            estimate(requests, self.app.store.records(), prepared=prepared, stages=stages, unit=u)
            for u in (None, unit)
        )
        return forms.Guess(took, rough=took > 1.2 * (measured or 0)) if took is not None else None

    def _rough_pass(self, model: str) -> float | None:
        facts = self.facts.of(model)
        if facts.problem:
            return None
        threads = self.app.settings.threads or os.cpu_count() or 1
        return rough_pass(facts.size, facts.native, gpu=self.has_gpu(), threads=threads)

    def generating_seconds(self, task: GenerateTask) -> forms.Guess | None:
        """Seconds that making pictures will take, from the last time with the same model, else rough."""
        for job in self.app.executor.recent():
            made = job.payload
            took = (job.finished or 0.0) - (job.started or 0.0)
            done = isinstance(made, GenerateTask) and job.state is JobState.DONE and took > 0
            if done and made.model.name == task.model.name:
                return forms.Guess(took * _passes(task) / _passes(made))
        unit, native = self._rough_pass(task.model.name), self.facts.of(task.model.name).native
        return forms.Guess(unit * _passes(task) / native**2, rough=True) if unit else None

    def training_seconds(self, space: Workspace) -> forms.Guess | None:
        """Seconds that training a project's picture will take; None without its model."""
        return self.seconds([self._drawn_or_not(space)], train=True)

    def has_gpu(self) -> bool:
        """True if the settings mean a GPU on this machine; torch is not asked, which may be half loaded."""
        device = self.app.settings.device
        if device != "auto":
            return device != "cpu"
        apple = sys.platform == "darwin" and platform.machine() == "arm64"
        return apple or any(Path("/proc/driver/nvidia/gpus").glob("*"))

    def reconstruction(self, space: Workspace) -> dict[str, Any] | None:
        """Result of the training with the present settings, or None before it.

        `reconstruction` is the id of the picture inverted and denoised again, `psnr` in dB.
        """
        known = self._known(space)
        return known if known.get("reconstruction") else None

    def _known(self, space: Workspace) -> dict[str, Any]:
        """The result of the last training with the present settings, as the project keeps it."""
        job_id = str(space.get("train_job") or "")
        if self.knows(job_id):
            job = self.job(job_id)
            if job.state is JobState.DONE and isinstance(job.result, dict):
                made = EditRequest.from_json(job.result["request"], strict=False)
                names = ("lora", "reconstruction", "psnr", "notices", "crop", "knows")
                kept = {k: job.result.get(k) for k in names}
                space.set(prepared={"of": workspace.digest(made), **kept})
                further = job.result.get("lora_file")
                if further and space.get("adopted") != job_id:
                    name = further["name"] or say(
                        "shell.trained_further_steps_steps", steps=made.lora.steps
                    )
                    space.set(lora_file={**further, "name": name}, adopted=job_id)
        known = space.get("prepared") or {}
        if known.get("of") != workspace.digest(space.request((), None)):
            return {}
        now = self.piece(space)
        place = [now.x0, now.y0, now.width, now.height]
        return dict(known) if known.get("crop") in (None, place) else {}

    def submit_train(self, space: Workspace) -> str:
        """Queue the training and inversion of a project's picture.

        Of a picture that is larger than the model's own size, the part around the mask is trained,
        as the edit will take it.
        """
        return self._submit_train(TrainTask(request=self._training(space), preview=True))

    def submit_further(self, space: Workspace) -> str:
        """Queue more training steps, from the LoRA that a project's edits use now, at its rank.

        Raises:
            BadInput: when there is none to go on from.
        """
        from workbench.diffusion.lora_files import read

        request = self._training(space)
        raw = self.app.lora_of(request)
        if raw is None:
            raise BadInput(say("shell.there_is_no_lora_to"))
        start = request.lora_file or LoraRef(id=self.store.put_blob(raw, "safetensors"))
        rank = read(raw).rank or request.lora.rank
        lora = dataclasses.replace(request.lora, rank=rank)
        request = dataclasses.replace(request, lora=lora, lora_file=None)
        return self._submit_train(TrainTask(request=request, start=start, preview=True))

    def _submit_train(self, task: TrainTask) -> str:
        return self.app.submit_train(task, self.owner or "")

    def _training(self, space: Workspace) -> EditRequest:
        drawing = self._drawing(space)
        return space.request(drawing.pairs, self.mask_asset(space, drawing))

    def _drawn_or_not(self, space: Workspace) -> EditRequest:
        """The request of the present drawing; without it where the drawing cannot be run."""
        try:
            return self._training(space)
        except BadInput:
            return space.request((), None)

    def _drawing(self, space: Workspace) -> Drawing:
        return Drawing.from_json(space.project.drawing) if space.project.drawing else Drawing()


def _passes(task: GenerateTask) -> float:
    """Cost of a generation, in passes over the picture."""
    area = (task.config.width or 1) * (task.config.height or 1)
    return float(task.count * task.config.steps * area)


OWNERS = 256  # whose undo steps are kept in memory
_one = threading.Lock()
_backends: OrderedDict[str | None, Backend] = OrderedDict()


def get_backend(owner: str | None = None) -> Backend:
    """The backend of an owner, None for all work; the first call opens history, cache and queue.

    A plain module variable and not `st.cache_resource`: that one is emptied by "clear cache", and
    a second `App` would be a second queue.
    """
    app = get_app()
    with _one:
        whole = _backends.get(None)
        if whole is None or whole.app is not app:
            _backends.clear()
            whole = _backends[None] = Backend(app)
        if owner is None:
            return whole
        if owner not in _backends:
            _backends[owner] = whole.of(owner)
        _backends.move_to_end(owner)
        _backends.move_to_end(None)  # the whole never goes
        while len(_backends) > OWNERS:
            _backends.popitem(last=False)
        return _backends[owner]
