"""What the model already knows of a picture: asked of the cache by key, without loading torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.app import App
from workbench.core import keys
from workbench.core.errors import WorkbenchError
from workbench.core.request import EditRequest
from workbench.diffusion.registry import find_files, native_size
from workbench.editing.crop_plan import crop_of
from workbench.imaging import crop
from workbench.imaging.crop import Crop

SMALL = 500 * 10**6  # bytes of weights that are hashed while a page waits (about a second)


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
        """Look anew: models were added, fetched or removed."""
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
    """What a picture's LoRA and inversion depend on, as one text; names do not count."""
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
    model = keys.styled_model(facts.fingerprint, request.style)
    return keys.adapter_key(request, image.id, model, max(found.working))


def piece(request: EditRequest, facts: ModelFacts, mask: NDArray[np.bool_] | None) -> Crop:
    """Which part of the picture is edited, and at which size; `mask` bool [H,W], None for all."""
    painted = mask if mask is not None and mask.any() else None
    return crop_of(request, painted, facts.native)
