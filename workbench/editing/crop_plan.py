"""The crop that a request edits, its cache keys, and how well the model knows it; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from workbench.core import keys
from workbench.core.request import EditRequest
from workbench.imaging import decode
from workbench.imaging.coords import Frame
from workbench.imaging.crop import Crop, plan, whole
from workbench.storage.history import Store
from workbench.warping.held import PictureFeatures

Mask = NDArray[np.bool_]
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


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
    styled, longest = keys.with_style_lora(model, style), max(crop.working)
    return StageNames(
        adapter=keys.adapter_key(request, image, styled, longest),
        latent=keys.latent_key(request, image, styled, longest),
        look=look_key(image, styled, request.prompt, crop.working),
        crop=crop,
    )


LEVEL = 101  # timestep of the features: low noise, where they outline things
NOISES = 4  # whose mean is taken
# error of the noise: up to the first, a draft is no worse than moved pixels; beyond the second it is better
# nowhere; beyond the last features mean nothing. docs/benchmarks.md, "Which of the two", says where from
PARTLY, POORLY, UNFIT = 0.28, 0.32, 0.6


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Result of the model on the untouched picture.

    `features`: of the supervised layer. `again` uint8 [h, w, 3]: the picture through the autoencoder and
    back. `noise_error` [h, w]: squared error of the predicted noise at `LEVEL`, 1 = knows nothing.
    """

    features: PictureFeatures
    again: U8
    noise_error: F32

    def knows(self, rgb: U8, where: Mask | None) -> dict[str, Any]:
        """Error of the model on the working picture [h, w, 3] where it may change [h, w].

        Returns {"level": see `level_of`, "psnr": dB of the round trip, "noise": error of the predicted
        noise}.
        """
        gap = (self.again.astype(np.float32) - rgb) ** 2
        error = gap.mean(axis=2)
        if where is not None and where.any():
            error = error[where]
        psnr = float(10 * np.log10(255**2 / max(float(error.mean()), 1e-3)))
        small = self.noise_error
        if where is not None and where.any():
            size = (small.shape[1], small.shape[0])
            cells = decode.resize(where.astype(np.uint8) * 255, size, "box") > 32
            small = small[cells] if cells.any() else small
        noise = float(small.mean())
        return {"level": level_of(noise), "psnr": round(psnr, 2), "noise": round(noise, 4)}

    def trusted(self, rgb: U8, where: Mask | None) -> PictureFeatures | None:
        """The features, unless the model knows too little of the picture for them to mean anything."""
        return None if unfit(self.knows(rgb, where)) else self.features


def unfit(knows: dict[str, Any]) -> bool:
    """True if a model's noise error says that it would draw garbage."""
    return float(knows["noise"]) > UNFIT


def level_of(noise: float) -> str:
    """ "well", "partly" or "poorly" by the error of the predicted noise; decibels say nothing of it."""
    return "poorly" if noise > POORLY else "partly" if noise > PARTLY else "well"


def look_key(image: str, model: str, prompt: str, size: tuple[int, int]) -> str:
    """Cache key of a model's look at a working picture.

    Args:
        image: id of the pixels that it was made from.
        model: fingerprint, with a style LoRA in it if there is one (`keys.with_style_lora`).
        prompt: the request's.
        size: (width, height) of the working picture.
    """
    return keys.key("look", 1, image, model, prompt, list(size), LEVEL, NOISES)


def look_of(raw: bytes, frame: Frame) -> Look:
    """Read what is kept; `frame` says which part of the picture it is of."""
    found = load(raw)
    box = (float(frame.x0), float(frame.y0), float(frame.width), float(frame.height))
    features = PictureFeatures(found["features"].astype(np.float32), box)
    return Look(features, found["again"], found["noise_error"])
