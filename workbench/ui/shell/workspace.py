"""One picture's work as the pages see it: the project on disk with types put on. No Streamlit.

Everything that a person set lies in the project record (image px, plain JSON), written when it
changes. Widgets and canvas are projections of it: after a reload, on another page or in a new
browser they are built from it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from workbench.core.config import (
    LORA_PRESETS,
    STRENGTHS,
    DragConfig,
    GenerationConfig,
    InversionConfig,
    LoraConfig,
    LoraRef,
)
from workbench.core.errors import BadInput
from workbench.core.options import from_mapping
from workbench.core.request import (
    MAX_PROMPT,
    EditRequest,
    ImageAsset,
    MaskAsset,
    ModelRef,
    PointPair,
)
from workbench.storage.history import Project, Store
from workbench.ui.shell.words import say

log = logging.getLogger(__name__)
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
        """What the project is called."""
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
        """How the LoRA is trained; what an older version wrote is read as far as it is valid."""
        return _lenient(LoraConfig, self.get("lora"))

    @property
    def inversion(self) -> InversionConfig:
        """How the picture is inverted."""
        return _lenient(InversionConfig, self.get("inversion"))

    @property
    def drag(self) -> DragConfig:
        """How the latent is dragged."""
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
        """Whether a big picture is edited on the part around its mask."""
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
        """How this picture was made from a prompt; None for any other picture."""
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
    """What a project remembers of a picture that was made from a prompt."""
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
