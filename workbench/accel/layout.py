"""Feature maps that stay channels-last through a half-precision U-Net on CUDA.

fp16 convolutions are faster in channels_last (`diffusion/model.py` stores their weights in it). Two
layers would change it on the way: torch's group norm (see `groupnorm_triton.py`) and the end of
diffusers' transformers, which makes a contiguous copy of what is channels-last already. The numbers are
the same within the type's rounding.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
log = logging.getLogger(__name__)


class _Norm:
    """The forward of one group norm."""

    def __init__(self, module: Any, norms: Any) -> None:
        self.module, self.norms = module, norms

    def __call__(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> the same, in the same order."""
        m = self.module
        if self.norms.suits(x, m.num_groups, m.weight, m.bias):
            out: Tensor = self.norms.group_norm(x, m.num_groups, m.weight, m.bias, m.eps)
            return out
        return F.group_norm(x, m.num_groups, m.weight, m.bias, m.eps)


def transformer_output(
    module: Any,
    hidden_states: Tensor,
    residual: Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> Tensor:
    """Tokens [N,H W,C] of a diffusers transformer back to its map [N,C,H,W], plus the residual."""
    linear = module.use_linear_projection
    tokens = module.proj_out(hidden_states) if linear else hidden_states
    # a view of the tokens is a channels-last map
    out: Tensor = tokens.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
    return (out if linear else module.proj_out(out)) + residual


@functools.cache
def _norms(device: torch.device) -> Any:
    """The kernels, if they run on this device."""
    try:
        from workbench.accel import groupnorm_triton as norms

        x = torch.ones(1, 320, 8, 8, device=device, dtype=torch.float16)
        x = x.to(memory_format=torch.channels_last)
        ones = x.new_ones(320)
        norms.group_norm(x, 32, ones, ones, 1e-5)
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernels
    except Exception as exc:  # no Triton, no C compiler for it, a GPU too old: each has other words
        log.warning("group norm goes torch's way, which is slower: %s", str(exc)[:200])
        return None
    return norms


@contextlib.contextmanager
def channels_last(unet: Any, *, on: bool) -> Iterator[None]:
    """Keep a U-Net's maps channels-last during the block; what was found is put back, on an error too."""
    norms = _norms(unet.device) if on else None
    if norms is None:
        yield
        return
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    name = "_get_output_for_continuous_inputs"
    changed: list[tuple[Any, str]] = []
    try:
        for module in unet.modules():
            if type(module) is torch.nn.GroupNorm:
                setattr(module, "forward", _Norm(module, norms))  # noqa: B010
                changed.append((module, "forward"))
            elif isinstance(module, Transformer2DModel) and module.is_input_continuous:
                setattr(module, name, functools.partial(transformer_output, module))
                changed.append((module, name))
        yield
    finally:
        for module, what in changed:
            delattr(module, what)  # the class's own shows again
