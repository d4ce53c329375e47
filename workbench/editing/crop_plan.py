"""The crop a request edits, and the cache keys of its stages. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core import keys
from workbench.core.request import EditRequest
from workbench.editing.picture_look import look_key
from workbench.imaging import decode
from workbench.imaging.crop import Crop, plan, whole
from workbench.storage.history import Store

Mask = NDArray[np.bool_]


def crop_of(request: EditRequest, mask: Mask | None, native: int) -> Crop:
    """The part of the picture that is edited, and its working size.

    `crop.plan` follows mask and arrows to the pixel. Here its box grows to a coarse grid, so that
    most changes of the mask keep the crop, and with it LoRA and inversion.
    """
    width, height = request.image.width, request.image.height
    longest = request.working_size
    if request.generation is not None:  # its latents have the size at which it was made
        return Crop(0, 0, width, height, width, height)
    if request.drag.parity:
        return _reference_size(width, height, longest, native)
    if not request.crop:
        return whole(width, height, native, longest=longest)
    found = plan(width, height, mask, request.pairs, native, longest=longest)
    if found.is_whole(width, height):
        return found
    grid = max(8, (longest or native) // 4)
    x0, y0 = found.x0 // grid * grid, found.y0 // grid * grid
    x1 = min(width, -(-(found.x0 + found.width) // grid) * grid)
    y1 = min(height, -(-(found.y0 + found.height) // grid) * grid)
    size = decode.working_size(x1 - x0, y1 - y0, native, longest=longest)
    return Crop(x0, y0, x1 - x0, y1 - y0, *size)


def _reference_size(width: int, height: int, longest: int, native: int) -> Crop:
    """The whole picture as the reference scales it: `native` wide, any height (docs/algorithm.md 1.1).

    A chosen working size is the longest side instead. Sides need not be multiples of 8: the
    autoencoder rounds down, and the result is stretched back.
    """
    scale = longest / max(width, height) if longest else native / width
    return Crop(0, 0, width, height, max(8, int(width * scale)), max(8, int(height * scale)))


@dataclass(frozen=True, slots=True)
class StageNames:
    """Cache keys of what a request needs per picture; `adapter` is None where no LoRA is trained.

    `look`: the model's features of the picture and how well it knows it.
    """

    adapter: str | None
    latent: str
    look: str
    crop: Crop


def stage_names(request: EditRequest, store: Store, native: int) -> StageNames:
    """The keys of a request whose model has a fingerprint, without loading the model.

    Raises:
        StoreError: when the pixels are needed (a crop) and are missing.
    """
    mask = store.mask(request.mask.id) if request.mask is not None else None
    crop = crop_of(request, mask, native)
    image = request.image.id
    if not crop.is_whole(request.image.width, request.image.height):
        rows, cols = crop.slices
        image = decode.image_id(np.ascontiguousarray(store.image(image)[rows, cols]))
    return names_of(request, image, crop, request.model.fingerprint)


def names_of(request: EditRequest, image: str, crop: Crop, model: str) -> StageNames:
    """The keys for a working picture that was made from the pixels `image` names."""
    style = request.style if request.generation is None else None
    styled, longest = keys.styled_model(model, style), max(crop.working)
    return StageNames(
        adapter=keys.adapter_key(request, image, styled, longest),
        latent=keys.latent_key(request, image, styled, longest),
        look=look_key(image, styled, request.prompt, crop.working),
        crop=crop,
    )
