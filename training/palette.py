"""Named colours of the scenes, and arithmetic that works on numbers and tensors alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

Params = Mapping[str, Any]
XY = tuple[Any, Any]
Colours = Mapping[str, tuple[float, float, float]]

COLOURS: Colours = {
    "red": (0.86, 0.23, 0.22),
    "orange": (0.95, 0.55, 0.16),
    "yellow": (0.97, 0.82, 0.24),
    "green": (0.30, 0.66, 0.32),
    "blue": (0.22, 0.46, 0.86),
    "purple": (0.55, 0.33, 0.76),
    "pink": (0.95, 0.54, 0.66),
    "white": (0.93, 0.92, 0.89),
    "brown": (0.52, 0.34, 0.22),
    "grey": (0.52, 0.54, 0.58),
}
HAIR: Colours = {
    "black": (0.15, 0.13, 0.15),
    "brown": (0.42, 0.26, 0.16),
    "blond": (0.93, 0.76, 0.34),
    "red": (0.80, 0.31, 0.13),
    "white": (0.86, 0.85, 0.83),
    "blue": (0.22, 0.42, 0.74),
}
SKIN: Colours = {
    "pale": (0.98, 0.84, 0.74),
    "light": (0.94, 0.74, 0.58),
    "tan": (0.80, 0.57, 0.40),
    "dark": (0.52, 0.33, 0.22),
}
BACKDROPS: Colours = {
    "sky blue": (0.58, 0.77, 0.92),
    "mint": (0.62, 0.84, 0.70),
    "peach": (0.96, 0.74, 0.58),
    "lilac": (0.74, 0.66, 0.88),
    "lemon": (0.95, 0.88, 0.58),
    "stone": (0.72, 0.73, 0.75),
}
SKIES: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "blue": ((0.36, 0.62, 0.92), (0.80, 0.91, 0.98)),
    "orange": ((0.93, 0.52, 0.36), (0.99, 0.84, 0.60)),
    "purple": ((0.33, 0.26, 0.58), (0.80, 0.60, 0.80)),
    "grey": ((0.55, 0.60, 0.67), (0.84, 0.86, 0.88)),
}


def cos(v: Any) -> Any:
    """Cosine of a number or tensor."""
    return v.cos() if isinstance(v, torch.Tensor) else math.cos(v)


def sin(v: Any) -> Any:
    """Sine of a number or tensor."""
    return v.sin() if isinstance(v, torch.Tensor) else math.sin(v)


def name(table: Mapping[str, Any], index: float) -> str:
    """Name of a categorical parameter."""
    return list(table)[round(index)]


def pick(table: Colours, index: torch.Tensor) -> torch.Tensor:
    """Colours [B, 3] of categorical parameters [B]."""
    rows = torch.tensor(list(table.values()), device=index.device, dtype=torch.float32)
    return rows[index.round().long()]


def tint(colour: torch.Tensor, amount: float | torch.Tensor) -> torch.Tensor:
    """Towards white by a positive amount, towards black by a negative one."""
    a = torch.as_tensor(amount, device=colour.device, dtype=torch.float32)
    return colour + (1 - colour) * a.clamp(min=0) + colour * a.clamp(max=0)
