"""What a model makes of an untouched picture, as it is kept in the cache; no torch, so pages can read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from workbench.core import keys
from workbench.imaging import decode
from workbench.imaging.coords import Frame
from workbench.warping.held import PictureFeatures

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

LEVEL = 101  # timestep of the features: low noise, where they outline things
NOISES = 4  # whose mean is taken
PARTLY, POORLY = (
    (33.0, 0.35),
    (26.0, 0.6),
)  # dB and error of the noise: beyond either, the level is lower


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What the model makes of the untouched picture.

    `features`: of the supervised layer. `again` uint8 [h, w, 3]: the picture through the autoencoder and
    back. `noise_error` [h, w]: squared error of the predicted noise at `LEVEL`, 1 = knows nothing.
    """

    features: PictureFeatures
    again: U8
    noise_error: F32

    def knows(self, rgb: U8, where: Mask | None) -> dict[str, Any]:
        """How well the model knows the working picture [h, w, 3] where it may change [h, w].

        Returns {"level": see `level_of`, "psnr": dB, "noise": error of the predicted noise}.
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
        return {"level": level_of(psnr, noise), "psnr": round(psnr, 2), "noise": round(noise, 4)}

    def trusted(self, rgb: U8, where: Mask | None) -> PictureFeatures | None:
        """The features, unless the model knows too little of the picture for them to mean anything."""
        return None if unfit(self.knows(rgb, where)) else self.features


def unfit(knows: dict[str, Any]) -> bool:
    """Whether a model's noise error says that it would draw garbage."""
    return float(knows["noise"]) > POORLY[1]


def level_of(psnr: float, noise: float) -> str:
    """ "well", "partly" or "poorly"; docs/benchmarks.md says what the limits come from."""
    for name, (decibels, error) in (("poorly", POORLY), ("partly", PARTLY)):
        if psnr < decibels or noise > error:
            return name
    return "well"


def look_key(image: str, model: str, prompt: str, size: tuple[int, int]) -> str:
    """Cache key of a model's look at a working picture.

    Args:
        image: id of the pixels that it was made from.
        model: fingerprint, with a style LoRA in it if there is one (`keys.styled_model`).
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
