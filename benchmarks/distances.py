"""Mean distance, in the four definitions that published tables use under one name.

Where is the source's feature at a handle in the result, and how far is that from the target?

    global      the best match anywhere in the result, features averaged over 8 noises; pixels, mean
                over all points of all pictures (DragDiffusion, arXiv 2306.14435)
    mask        the same, looked for inside the mask only ("m-MD", DragLoRA, arXiv 2505.12427)
    discs       looked for in two discs around handle and target, with a radius of their distance
                / sqrt(2), at least 5 px; pictures squeezed to the model's native square; in shares of
                the picture's sides, mean per picture first (RegionDrag, arXiv 2407.18247)
    global_e1   as `global` with a single noise: tables differ in it, mostly without a word

They are four different numbers (a feature that is found on the other ear costs `global` half a
picture and `discs` nothing), so each stands under its own name.

The published features are DIFT's on Stable Diffusion 2.1. Figures have the published names (`md_...`)
only where those were used; with any other model's features they are called `own_...`.

Against the published programs: noise is seeded by the picture's content, not by the order in which a
file system lists it; a handle or target between pixels is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.locate import (
    DIFT_ENSEMBLE,
    Features,
    Recipe,
    published,
    seed_of,
)
from workbench.core.request import Point, PointPair
from workbench.imaging import decode

if TYPE_CHECKING:
    from benchmarks.readers import Sample
    from workbench.diffusion.model import Runtime

U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Tensor = torch.Tensor

LEAST_RADIUS = 5.0  # px, of RegionDrag's discs
_ROWS = 16  # of pixels whose features exist at a time: 512 px x 1280 channels need 42 MB


@dataclass(frozen=True, slots=True)
class Extractor:
    """A model whose features are compared, and whether they are the published ones."""

    runtime: Runtime
    recipe: Recipe
    dift: bool

    @classmethod
    def of(cls, runtime: Runtime) -> Extractor:
        """DIFT's recipe on Stable Diffusion 2.1; on any other model the benchmark's own."""
        recipe = published(runtime)
        if recipe is not None:
            return cls(runtime, recipe, True)
        return cls(runtime, Recipe(ensemble=DIFT_ENSEMBLE, shifts=1), False)

    @property
    def prefix(self) -> str:
        """Prefix of the figures' names."""
        return "md" if self.dift else "own"

    @property
    def name(self) -> str:
        """Model and recipe: figures of different names do not compare."""
        name = Features(self.runtime, self.recipe).name
        return f"DIFT ({name})" if self.dift else name


class Distances:
    """Measures the results of one sample; the source's features are computed once."""

    def __init__(self, sample: Sample, extractor: Extractor) -> None:
        """Nothing is computed yet."""
        self.sample, self.extractor = sample, extractor
        self._before: dict[str, Tensor] = {}

    def __call__(self, result: U8) -> dict[str, list[float]]:
        """Definition -> distance per pair: pixels; of "discs" shares of the picture's sides.

        `result` is uint8 [H, W, 3] of the source's size.
        """
        sample, pairs = self.sample, self.sample.pairs
        height, width = sample.rgb.shape[:2]
        if result.shape != sample.rgb.shape:
            raise ValueError(f"the result is {result.shape}, the source {sample.rgb.shape}")
        with self.extractor.runtime.job():
            if not self._before:
                self._before = self._views(sample.rgb)
            after = self._views(result)
        everywhere: list[Mask | None] = [None] * len(pairs)
        inside: list[Mask | None] = [sample.mask] * len(pairs)
        near: list[Mask | None] = [*discs(pairs, (width, height))]
        found: dict[str, list[tuple[int, int]]] = {}
        for view, wanted in (
            ("usual", {"global": everywhere, "mask": inside}),
            ("square", {"discs": near}),
            ("single", {"global_e1": everywhere}),
        ):
            maps = similarities(
                self._before[view], after[view], pairs, (width, height), nearest=view == "square"
            )
            for name, where in wanted.items():
                found[name] = [best(m, w) for m, w in zip(maps, where, strict=True)]
        out = {}
        for name, points in found.items():
            scale = (width, height) if name == "discs" else (1, 1)
            out[name] = [
                math.hypot((x - t[0]) / scale[0], (y - t[1]) / scale[1])
                for (x, y), t in zip(points, _targets(pairs, (width, height)), strict=True)
            ]
        return out

    def _views(self, rgb: U8) -> dict[str, Tensor]:
        """Features [C, rows, cols] of a picture, as each definition wants them."""
        from dataclasses import replace

        recipe, runtime = self.extractor.recipe, self.extractor.runtime
        prompt, seed = self.sample.prompt, seed_of(self.sample.key)
        native = runtime.native_size
        if not self.extractor.dift:  # no published size to keep: the one the model knows
            size = decode.working_size(rgb.shape[1], rgb.shape[0], native)
            usual = decode.resize(rgb, size)
        else:
            usual = rgb
        square = decode.resize(rgb, (native, native), "nearest")
        wanted = {
            "usual": (recipe, usual),
            "square": (replace(recipe, posterior=False), square),
            "single": (replace(recipe, ensemble=1), usual),
        }
        return {
            name: Features(runtime, how).view(picture, prompt, seed).values
            for name, (how, picture) in wanted.items()
        }


def discs(pairs: Sequence[PointPair], size: tuple[int, int]) -> list[Mask]:
    """RegionDrag's search regions, bool [H, W] per pair; `size` is (width, height)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    out = []
    handles = _rounded([p.handle for p in pairs], size)
    for (hx, hy), (tx, ty) in zip(handles, _targets(pairs, size), strict=True):
        radius = max(LEAST_RADIUS, math.hypot(hx - tx, hy - ty) / math.sqrt(2))
        near_handle = (x - hx) ** 2 + (y - hy) ** 2 < radius**2
        near_target = (x - tx) ** 2 + (y - ty) ** 2 < radius**2
        out.append(near_handle | near_target)
    return out


def similarities(
    before: Tensor,
    after: Tensor,
    pairs: Sequence[PointPair],
    size: tuple[int, int],
    *,
    nearest: bool = False,
) -> list[NDArray[np.float32]]:
    """Per pair: cosine similarity [H, W] of the source's feature at the handle with every pixel.

    Features [C, rows, cols] are brought to the picture's `size` (width, height) bilinearly, as
    `interpolate(align_corners=False)` does, or by the nearest.
    """
    width, height = size
    handles = _rounded([p.handle for p in pairs], size)
    vectors = torch.stack([
        _upsampled(before, size, y, y + 1, nearest)[:, 0, x] for x, y in handles
    ])  # fmt: skip
    vectors = F.normalize(vectors, dim=1)
    out = torch.empty(len(pairs), height, width)
    for top in range(0, height, _ROWS):
        end = min(top + _ROWS, height)
        band = F.normalize(_upsampled(after, size, top, end, nearest), dim=0)
        out[:, top:end] = torch.einsum("pc,chw->phw", vectors, band)
    return [m.numpy() for m in out]


def _upsampled(
    features: Tensor, size: tuple[int, int], top: int, end: int, nearest: bool
) -> Tensor:
    """Rows `top` to `end` of the features at the picture's size, [C, end - top, W]."""
    _, rows, cols = features.shape
    ys = _sources(torch.arange(top, end), rows, size[1], nearest)
    xs = _sources(torch.arange(size[0]), cols, size[0], nearest)
    (i0, i1, v), (j0, j1, u) = ys, xs
    lines = features[:, i0] * (1 - v)[:, None] + features[:, i1] * v[:, None]
    return lines[..., j0] * (1 - u) + lines[..., j1] * u


def _sources(at: Tensor, count: int, size: int, nearest: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For output places `at`: the two samples between which they lie, and the second's weight."""
    if nearest:
        index = (at * count) // size
        return index, index, torch.zeros(len(at))
    place = ((at + 0.5) * count / size - 0.5).clamp(min=0)
    low = place.floor().long().clamp(max=count - 1)
    return low, (low + 1).clamp(max=count - 1), place - low


def best(similarity: NDArray[np.float32], inside: Mask | None) -> tuple[int, int]:
    """(x, y) of the largest similarity, of several the first row by row."""
    if inside is not None:
        similarity = np.where(inside, similarity, -np.inf)
    row, col = np.unravel_index(int(similarity.argmax()), similarity.shape)
    return int(col), int(row)


def _targets(pairs: Sequence[PointPair], size: tuple[int, int]) -> list[tuple[int, int]]:
    return _rounded([p.target for p in pairs], size)


def _rounded(points: Sequence[Point], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Pixels (x, y) of points, inside the picture."""
    return [
        (min(max(round(p.x), 0), size[0] - 1), min(max(round(p.y), 0), size[1] - 1)) for p in points
    ]
