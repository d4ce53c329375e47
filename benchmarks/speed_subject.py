"""Subject of `bench speed`: numbers of steps, the picture, its mask and its arrows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.core.config import InversionConfig
from workbench.core.request import Point, PointPair
from workbench.imaging import coords

PROMPT = "a red cube on a table"
_INVERTED = 35  # of the reference's 50 DDIM steps


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers of steps: of a timed run, and of the edit that it stands for."""

    lora: int = 80
    drag: int = 80
    ddim: int = 50
    batch: int = 4
    rank: int = 16

    @property
    def inversion(self) -> InversionConfig:
        """DDIM steps and strength."""
        return InversionConfig(steps=self.ddim, strength=0.7)


FULL = Plan()
QUICK = Plan(lora=10, drag=12, ddim=20)
COUNT = Plan(lora=2, drag=3, ddim=4)
EXTENDED = {"train": 80, "lora": 80, "invert": _INVERTED, "reference": _INVERTED,
            "drag": 80, "denoise": _INVERTED}  # fmt: skip


def picture(size: int) -> NDArray[np.uint8]:
    """Smooth colours with a box on them, [size,size,3]."""
    y, x = np.mgrid[:size, :size]
    rgb = np.stack([x * 255 // size, y * 255 // size, (x + y) * 3 % 256], axis=-1)
    rgb[size // 3 : size // 2, size // 4 : size // 2] = (200, 30, 40)
    return rgb.astype(np.uint8)


def painted(size: int) -> NDArray[np.bool_]:
    """The middle of the picture, 3/4 of each side."""
    mask = np.zeros((size, size), np.bool_)
    mask[size // 8 : size * 7 // 8, size // 8 : size * 7 // 8] = True
    return mask


def pairs_of(count: int, size: int, shift: int = 0) -> tuple[PointPair, ...]:
    """Arrows of a sixth of the picture, spread over its middle."""
    side = math.ceil(math.sqrt(count))
    made = []
    for i in range(count):
        row, col = divmod(i, side)
        x = size * (0.25 + 0.4 * (col + 0.5) / side) + shift
        y = size * (0.25 + 0.5 * (row + 0.5) / side)
        made.append(PointPair(Point(x, y), Point(x + size / 6, y)))
    return tuple(made)


def positions(
    pairs: tuple[PointPair, ...], size: tuple[int, int]
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Handles and targets as the baseline takes them: (row, col) on the feature grid."""
    feature_grid = coords.feature_grid_size(*size)
    handles = coords.to_feature_grid([p.handle for p in pairs], size, feature_grid)
    targets = coords.to_feature_grid([p.target for p in pairs], size, feature_grid)
    return [(float(r), float(c)) for r, c in handles], [(float(r), float(c)) for r, c in targets]


def latent_mask(mask: NDArray[np.bool_], z: torch.Tensor) -> torch.Tensor:
    """A painted mask at the latent's size, [1,1,h,w] of 0 and 1 on its device."""
    _, latent = coords.mask_levels(mask)
    return torch.from_numpy(latent.astype(np.float32))[None, None].to(z.device)
