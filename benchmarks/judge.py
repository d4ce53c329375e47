"""Evaluate a picture as the result of a benchmark drag: points found again, error to the truth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import metrics
from benchmarks.locate import FeatureMap, Features, seed_of
from benchmarks.scenes import AnyDrag, Pictures
from workbench.drag.tracking import Found, Template

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime

U8 = NDArray[np.uint8]


class Evaluator:
    """Measures the results of one drag; the source's features are computed once."""

    def __init__(self, drag: AnyDrag, pictures: Pictures, runtime: Runtime) -> None:
        """Nothing is computed yet."""
        self.drag, self.pictures, self._runtime = drag, pictures, runtime
        self._features, self._template = Features(runtime), Template()
        self._before: FeatureMap | None = None

    def __call__(self, result: U8) -> dict[str, Any]:
        """Flat figures of a result uint8 [H, W, 3]; pixels are those of the picture.

        left_X, share_X      mean distance of the handles to their targets by locator X, in pixels
                             and as a share of each arrow's length
        found_X              where each handle was found: [x, y, likeness]
        mae, ssim            to the truth inside the changed region (mae 0..255)
        mae_source, ...      the same of the untouched source: doing nothing
        mae_ratio            mae / mae_source
        ssim_ratio           (1 - ssim) / (1 - ssim_source)
        outside_max, _mean   absolute difference to the source outside the painted mask, 0..255
        """
        p, pairs = self.pictures, self.drag.pairs
        out: dict[str, Any] = {}
        for name, found in self._found(result).items():
            left = [f.point.distance(q.target) for f, q in zip(found, pairs, strict=True)]
            out[f"left_{name}"] = float(np.mean(left))
            shares = [d / q.length for d, q in zip(left, pairs, strict=True) if q.length > 0]
            out[f"share_{name}"] = float(np.mean(shares))
            out[f"found_{name}"] = [
                [round(f.point.x, 2), round(f.point.y, 2), round(f.score, 4)] for f in found
            ]
        out["mae"] = metrics.mae(result, p.truth, p.region)
        out["mae_source"] = metrics.mae(p.source, p.truth, p.region)
        out["mae_ratio"] = metrics.relative_mae(result, p.truth, p.source, p.region)
        out["ssim"], out["ssim_ratio"] = metrics.relative_dissimilarity(
            result, p.truth, p.source, p.region
        )
        out["ssim_source"] = metrics.ssim(p.source, p.truth, p.region)
        out["outside_max"], out["outside_mean"] = metrics.change_outside(result, p.source, p.mask)
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in out.items()}

    def _found(self, result: U8) -> dict[str, list[Found]]:
        drag, p = self.drag, self.pictures
        prompt, seed = drag.caption, seed_of(drag.key)
        with self._runtime.job():
            if self._before is None:
                self._before = self._features.view(p.source, prompt, seed)
            after = self._features.view(result, prompt, seed)
        return {
            "features": [self._features.find(self._before, after, q) for q in drag.pairs],
            "template": [self._template.find(p.source, result, q) for q in drag.pairs],
        }

    @property
    def locators(self) -> dict[str, str]:
        """Settings of the locators, by name."""
        return {"features": self._features.name, "template": repr(self._template)}


def finite(value: Any) -> float:
    """A figure of a row as a float; NaN for what JSON has as null or what is missing."""
    return float(value) if isinstance(value, (int, float)) else math.nan
