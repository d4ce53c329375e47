"""One picture's work and its jobs as the pages see them.

Everything that a person set lies in the project record (image px, plain JSON), written when it
changes. Widgets and canvas are projections of it: after a reload, on another page or in a new
browser they are built from it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from workbench.app import App
from workbench.core import keys
from workbench.core.config import (
    LORA_PRESETS,
    STRENGTHS,
    DragConfig,
    GenerationConfig,
    InversionConfig,
    LoraConfig,
    LoraRef,
)
from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.options import from_mapping
from workbench.core.record import JobState
from workbench.core.request import (
    MAX_PROMPT,
    EditRequest,
    GenerateTask,
    ImageAsset,
    MaskAsset,
    ModelRef,
    PointPair,
    SweepTask,
)
from workbench.diffusion.registry.files import find_files, native_size
from workbench.editing.crop_plan import crop_of
from workbench.imaging import crop
from workbench.imaging.crop import Crop
from workbench.jobs import Job
from workbench.storage.history import Store
from workbench.storage.history.projects import Project
from workbench.ui.shell.forms import say

log = logging.getLogger(__name__)

SMALL = 500 * 10**6  # bytes of weights that are hashed while a page waits (about a second)
C = TypeVar("C")
MOST_JOBS = 50


def _log_collision(names: Sequence[str]) -> None:
    log.info("two tabs changed the same: %s", ", ".join(names))


tell_collision: Callable[[Sequence[str]], None] = _log_collision  # the shell shows it on the page


class Workspace:
    """A project opened for reading and changing; every change is saved at once."""

    def __init__(self, store: Store, project: Project) -> None:
        """Wrap a project that `store` holds."""
        self.store = store
        self.project = project

    @classmethod
    def create(
        cls,
        store: Store,
        image: ImageAsset,
        *,
        title: str,
        prompt: str = "",
        parent: str | None = None,
        settings: Mapping[str, Any] | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> Workspace:
        """Begin the work on a stored picture: fresh mask and arrows, kept or default settings."""
        project = store.projects.create(title=title, image=image.id, image_name=image.name)
        space = cls(store, project)
        own = {**(settings or {}), "size": [image.width, image.height], "alpha": image.alpha}
        own |= {"parent": parent, "jobs": []}
        space.change(prompt=prompt[:MAX_PROMPT], drawing=dict(drawing or {}), settings=own)
        return space

    @classmethod
    def open(cls, store: Store, project_id: str) -> Workspace:
        """Open a project.

        Raises:
            BadInput: when there is none of this id.
            StoreError: when its file cannot be read.
        """
        return cls(store, store.projects.load(project_id))

    def change(self, *, base: Project | None = None, **fields: Any) -> None:
        """Change fields of the record and save it; unchanged values write nothing.

        `base` is the record that the person had in front of them, by default the one that was opened
        here: what another tab has changed since then is merged, and where both changed the same,
        `tell_collision` is called with the names.
        """
        base = base or self.project
        if any(getattr(base, k) != v for k, v in fields.items()):
            self.project, collided = self.store.projects.update(base, **fields)
            if collided:
                tell_collision(collided)

    def set(self, **settings: Any) -> None:
        """Change entries of the record's settings and save it."""
        self.change(settings={**self.project.settings, **settings})

    def get(self, name: str, default: Any = None) -> Any:
        """An entry of the settings."""
        return self.project.settings.get(name, default)

    # --- typed views ------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The project's id."""
        return self.project.id

    @property
    def title(self) -> str:
        """Title of the project."""
        return self.project.title or self.project.image_name or say("shell.untitled")

    @property
    def image(self) -> ImageAsset:
        """The picture."""
        width, height = self.get("size") or (0, 0)
        name = self.project.image_name or "picture"
        return ImageAsset(
            id=self.project.image,
            width=int(width),
            height=int(height),
            name=name,
            alpha=self.get("alpha"),
        )

    @property
    def model(self) -> ModelRef:
        """The model to work with."""
        return ModelRef(name=str(self.get("model") or "storybook"))

    @property
    def lora(self) -> LoraConfig:
        """Training options of the LoRA; valid fields of an older version are kept."""
        return _lenient(LoraConfig, self.get("lora"))

    @property
    def inversion(self) -> InversionConfig:
        """Options of the inversion."""
        return _lenient(InversionConfig, self.get("inversion"))

    @property
    def drag(self) -> DragConfig:
        """Options of the drag."""
        return _lenient(DragConfig, self.get("drag"))

    @property
    def seed(self) -> int:
        """Seed of the LoRA's training."""
        return int(self.get("seed", 0))

    @property
    def working_size(self) -> int:
        """Longest side while editing, px; 0 = the model's own."""
        return int(self.get("working_size", 0))

    @property
    def crop(self) -> bool:
        """True if a big picture is edited on the part around its mask."""
        return bool(self.get("crop", True))

    @property
    def lora_file(self) -> LoraRef | None:
        """A LoRA file that takes the place of the one that would be trained."""
        return _reference(self.get("lora_file"))

    @property
    def style(self) -> LoraRef | None:
        """A style LoRA that is stacked under the picture's."""
        return _reference(self.get("style"))

    @property
    def made_with(self) -> GenerationConfig | None:
        """Generation options of a picture made from a prompt; None for any other picture."""
        known = self.get("made")
        if not isinstance(known, Mapping) or known.get("image") != self.project.image:
            return None
        return _lenient(GenerationConfig, known.get("config"))

    @property
    def made_unlike(self) -> tuple[str, str] | None:
        """Prompt and model of a made picture, where the project has others by now."""
        known = self.get("made") or {}
        then = str(known.get("prompt", "")), str(known.get("model", ""))
        return then if self.made_with and then != (self.project.prompt, self.model.name) else None

    @property
    def generation(self) -> GenerationConfig | None:
        """The generation whose own latents a drag starts from, instead of an inversion.

        None when it was switched off, or when prompt or model are not those of the picture any
        more: the latents of another prompt are those of another picture.
        """
        own = self.made_with if self.get("own_latents", True) else None
        return own if self.made_unlike is None else None

    @property
    def jobs(self) -> list[str]:
        """Ids of this project's jobs, oldest first."""
        return list(self.get("jobs", ()))

    def request(self, pairs: tuple[PointPair, ...], mask: MaskAsset | None) -> EditRequest:
        """All that one edit needs, from the record as it stands.

        Raises:
            BadInput: naming what is out of range.
        """
        return EditRequest(
            image=self.image,
            mask=mask,
            pairs=pairs,
            prompt=self.project.prompt,
            model=self.model,
            lora=self.lora,
            inversion=self.inversion,
            drag=self.drag,
            seed=self.seed,
            working_size=self.working_size,
            crop=self.crop,
            lora_file=self.lora_file,
            style=self.style,
            generation=self.generation,
            parent=self.get("parent"),
        )

    def add_job(self, job_id: str) -> None:
        """Remember a job as this project's (the newest ones are kept)."""
        if job_id not in self.jobs:
            self.set(jobs=[*self.jobs, job_id][-MOST_JOBS:])


def settings_of(request: EditRequest) -> dict[str, Any]:
    """The settings with which an edit was made, for "use these settings" and "continue"."""
    data = request.to_json()
    keys = ("lora", "inversion", "drag", "seed", "working_size", "crop", "lora_file", "style")
    kept = {**{k: data[k] for k in keys}, "model": request.model.name, "strength": "custom"}
    if request.generation is not None:
        kept |= {"made": made_as(request.image.id, request.prompt, request.model.name,
                                 data["generation"]), "own_latents": True}  # fmt: skip
    return kept


def made_as(image: str, prompt: str, model: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Generation data that a project keeps of a picture made from a prompt."""
    return {"image": image, "prompt": prompt, "model": model, "config": dict(config)}


def preset_of(config: LoraConfig) -> str:
    """The preset that a configuration equals, or "custom"."""
    same = (name for name, preset in LORA_PRESETS.items() if preset.config == config)
    return next(same, "custom")


def strength_of(config: DragConfig) -> str:
    """The preset strength that a drag configuration equals, or "custom"."""
    # normal first: of a method without steps all strengths are the same
    order = sorted(STRENGTHS, key=lambda s: s != "normal")
    return next((s for s in order if DragConfig.preset(config.method, s) == config), "custom")


def _reference(data: Any) -> LoraRef | None:
    """A LoRA from a record, None where there is none or it cannot be read."""
    if not isinstance(data, Mapping):
        return None
    try:
        return from_mapping(LoraRef, data, strict=False)
    except (BadInput, TypeError):
        return None


def _lenient(cls: type[C], data: Any) -> C:
    """A configuration from a record; entries that are unknown or out of range take the default."""
    if not isinstance(data, Mapping):
        return cls()
    try:
        return from_mapping(cls, data, strict=False)
    except BadInput:
        good = {}
        for name, value in data.items():
            try:
                from_mapping(cls, {name: value}, strict=False)
            except BadInput:
                continue
            good[name] = value
        return from_mapping(cls, good, strict=False)


class Jobs:
    """Jobs of the process's `App`; `owner` None sees all of them."""

    def __init__(self, app: App) -> None:
        """Wrap the process's `App`."""
        self.app = app
        self.owner: str | None = None

    def job(self, job_id: str) -> Job:
        """A job as it stands; `BadInput` for an unknown id."""
        return self.app.executor.snapshot(job_id, self.owner)

    def knows(self, job_id: str) -> bool:
        """True if a job of this id is known here."""
        if not job_id:
            return False
        try:
            self.job(job_id)
        except BadInput:
            return False
        return True

    def is_live(self, job_id: str) -> bool:
        """True if a job runs or waits."""
        return self.knows(job_id) and not self.job(job_id).state.ended

    def cancel(self, job_id: str) -> JobState:
        """Ask a job to stop."""
        return self.app.executor.cancel(job_id, self.owner)

    def queue(self) -> list[Job]:
        """Jobs that run or wait, in their order."""
        return self.app.executor.queue(self.owner)

    def edit_of(self, job_id: str) -> str | None:
        """The id of the edit that a finished job made, or None."""
        with contextlib.suppress(BadInput):
            job = self.job(job_id)
            if job.kind == "edit" and job.state is JobState.DONE and isinstance(job.result, str):
                return job.result
        return None

    def submit_edit(self, request: EditRequest) -> str:
        """Queue an edit; the same request still under way gives the same job."""
        return self.app.submit_edit(request, self.owner or "")

    def submit_sweep(self, requests: Sequence[EditRequest], label: str) -> str:
        """Queue several edits as one job."""
        return self.app.submit_sweep(SweepTask(tuple(requests), label), self.owner or "")

    def submit_generate(self, task: GenerateTask) -> str:
        """Queue the making of pictures from a prompt."""
        return self.app.submit_generate(task, self.owner or "")

    def submit_replay(self, edit: str) -> str:
        """Queue the recomputing of an edit."""
        return self.app.submit_replay(edit, self.owner or "")

    def submit_download(self, model: str, *, full: bool) -> str:
        """Queue the download of a model."""
        return self.app.submit_download(model, self.owner or "", full=full)

    def recent(self, kind: str) -> list[Job]:
        """The jobs of a kind that this process ran or will run, newest first."""
        return [j for j in self.app.executor.recent(self.owner) if j.kind == kind]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model as the pages need to know it. `problem` is why it cannot be used now, or ""."""

    name: str
    native: int = 512
    size: int = 0  # bytes of weights
    fingerprint: str = ""  # "" while it is not known
    problem: str = ""


class Facts:
    """Looks models up and remembers what it found, until `forget`."""

    def __init__(self, app: App) -> None:
        """Ask `app`."""
        self._app = app
        self._look = lru_cache(maxsize=32)(self._find)

    def of(self, name: str) -> ModelFacts:
        """The facts about a model."""
        found = self._look(name)
        if found.problem or not found.fingerprint:
            self._look.cache_clear()  # its files may have come since
        return found

    def forget(self) -> None:
        """Look again: models were added, fetched or removed."""
        self._look.cache_clear()

    def _find(self, name: str) -> ModelFacts:
        try:
            spec = self._app.registry.resolve(name)
            files = find_files(spec, self._app.registry)
            mark = self._app.model_ref(name).fingerprint if files.bytes < SMALL else ""
            return ModelFacts(name, native_size(files), files.bytes, mark)
        except WorkbenchError as exc:
            return ModelFacts(name, problem=str(exc))


def digest(request: EditRequest) -> str:
    """Everything a picture's LoRA and inversion depend on, as one text; names do not count."""
    file, style, generation = request.lora_file, request.style, request.generation
    trained = None if file else (dataclasses.asdict(request.lora), request.seed)
    loras = [(ref.id, ref.weight) if ref else None for ref in (file, style)]
    made = dataclasses.asdict(generation) if generation else None
    parts = (request.image.id, request.prompt, trained, loras, made, request.crop)
    return keys.key("pages", *parts, request.model.name, request.working_size)


def lora_key(request: EditRequest, facts: ModelFacts) -> str | None:
    """The cache key of the LoRA of a picture that is edited as a whole; None where it is not known."""
    if not facts.fingerprint:
        return None
    image = request.image
    found = crop.whole(image.width, image.height, facts.native, longest=request.working_size)
    model = keys.with_style_lora(facts.fingerprint, request.style)
    return keys.adapter_key(request, image.id, model, max(found.working))


def piece(request: EditRequest, facts: ModelFacts, mask: NDArray[np.bool_] | None) -> Crop:
    """Crop and working size of an edit; `mask` bool [H,W], None for all."""
    painted = mask if mask is not None and mask.any() else None
    return crop_of(request, painted, facts.native)
