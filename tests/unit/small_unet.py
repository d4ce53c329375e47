"""A random U-Net of Stable Diffusion's kind, small enough for unit tests, and a schedule."""

from __future__ import annotations

from typing import Any

import torch

from workbench.diffusion.ddim import Schedule, schedule_from
from workbench.diffusion.unet import Denoiser, Prompt

Tensor = torch.Tensor
TEXT = 8


def small_unet(seed: int = 0, layers: int = 1, **changes: Any) -> Any:
    """10 transformer blocks (16 with layers=2): down 3, middle 1, up 6."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": layers,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT,
    }
    unet = UNet2DConditionModel(**{**given, **changes})
    return unet.eval().requires_grad_(False)


def schedule(steps: int = 10, prediction: str = "epsilon") -> Schedule:
    return schedule_from({"prediction_type": prediction}, steps)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int = 5) -> Tensor:
    return normal(1, 4, TEXT, seed=seed)


def denoiser(unet: Any, **changes: Any) -> Denoiser:
    return Denoiser(unet, schedule(), Prompt(text()), **changes)
