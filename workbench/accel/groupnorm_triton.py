"""Group normalisation of channels-last feature maps on CUDA, without turning them round first.

Half-precision convolutions want the channels of a cell side by side; torch's group norm wants the cells
of a channel side by side, so that between the two every feature map of a U-Net is rewritten twice, and
twice more in the backward pass: a fifth of the time of a step. These kernels read the map as it lies:
sums per channel over some of the cells, then mean and spread per group, then one pass over the map.
Sums are float32; the order of summation is fixed, so the same bits come each time.

Wu and He 2018, arXiv 1803.08494. Imports Triton, which comes with torch's CUDA builds on Linux.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

Tensor = torch.Tensor

_TILE = 4096  # elements that a program holds at once
_PARTS = 256  # most parts into which the cells of all pictures are divided
_FOLD = 8192  # sums that a program adds up at once


@triton.jit
def _sums(x, y, out, cells, channels, WITH: tl.constexpr, STEPS: tl.constexpr, R: tl.constexpr,
          C: tl.constexpr):  # fmt: skip
    """Over STEPS times R cells: sum and sum of squares of x, or (WITH) of y and x y, per channel."""
    n, part = tl.program_id(0), tl.program_id(1)
    col = tl.arange(0, C)
    good = col < channels
    first = tl.zeros((C,), tl.float32)
    second = tl.zeros((C,), tl.float32)
    for step in range(STEPS):
        row = (part * STEPS + step) * R + tl.arange(0, R)
        at = (n * cells + row)[:, None] * channels + col[None, :]
        inside = (row < cells)[:, None] & good[None, :]
        a = tl.load(x + at, inside, other=0.0).to(tl.float32)
        if WITH:
            b = tl.load(y + at, inside, other=0.0).to(tl.float32)
            first += tl.sum(b, 0)
            second += tl.sum(a * b, 0)
        else:
            first += tl.sum(a, 0)
            second += tl.sum(a * a, 0)
    to = (n * tl.num_programs(1) + part) * 2 * channels
    tl.store(out + to + col, first, good)
    tl.store(out + to + channels + col, second, good)


@triton.jit
def _spread(sums, weight, bias, mean, rstd, scale, shift, cells, channels, width, parts, eps,
            P: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """Mean and 1/deviation of a group; y = x scale + shift per channel."""
    n, group = tl.program_id(0), tl.program_id(1)
    groups = tl.num_programs(1)
    part, k = tl.arange(0, P), tl.arange(0, W)
    col = group * width + k
    good = k < width
    at = (n * parts + part)[:, None] * 2 * channels + col[None, :]
    inside = (part < parts)[:, None] & good[None, :]
    count = cells * width
    total = tl.sum(tl.sum(tl.load(sums + at, inside, other=0.0), 0), 0)
    squares = tl.sum(tl.sum(tl.load(sums + at + channels, inside, other=0.0), 0), 0)
    m = total / count
    r = 1.0 / tl.sqrt(tl.maximum(squares / count - m * m, 0.0) + eps)
    tl.store(mean + n * groups + group, m)
    tl.store(rstd + n * groups + group, r)
    w = tl.load(weight + col, good, other=0.0).to(tl.float32)
    b = tl.load(bias + col, good, other=0.0).to(tl.float32)
    tl.store(scale + n * channels + col, r * w, good)
    tl.store(shift + n * channels + col, b - m * r * w, good)


@triton.jit
def _slopes(sums, weight, mean, rstd, scale, slope, shift, cells, channels, width, parts,
            P: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """Gradient of a group: dx = dy scale + x slope + shift, per channel."""
    n, group = tl.program_id(0), tl.program_id(1)
    groups = tl.num_programs(1)
    part, k = tl.arange(0, P), tl.arange(0, W)
    col = group * width + k
    good = k < width
    at = (n * parts + part)[:, None] * 2 * channels + col[None, :]
    inside = (part < parts)[:, None] & good[None, :]
    w = tl.load(weight + col, good, other=0.0).to(tl.float32)
    dy = tl.sum(w * tl.sum(tl.load(sums + at, inside, other=0.0), 0), 0)
    dyx = tl.sum(w * tl.sum(tl.load(sums + at + channels, inside, other=0.0), 0), 0)
    m = tl.load(mean + n * groups + group)
    r = tl.load(rstd + n * groups + group)
    count = cells * width
    k1 = -r * r * r * (dyx - m * dy) / count
    k0 = -r * dy / count - m * k1
    zero = tl.zeros((W,), tl.float32)
    tl.store(scale + n * channels + col, r * w, good)
    tl.store(slope + n * channels + col, zero + k1, good)
    tl.store(shift + n * channels + col, zero + k0, good)


@triton.jit
def _apply(x, y, scale, slope, shift, out, cells, channels, WITH: tl.constexpr, R: tl.constexpr,
           C: tl.constexpr):  # fmt: skip
    """out = x scale + shift, or (WITH) y scale + x slope + shift, for R cells."""
    n = tl.program_id(0)
    row = tl.program_id(1) * R + tl.arange(0, R)
    col = tl.arange(0, C)
    good = col < channels
    at = (n * cells + row)[:, None] * channels + col[None, :]
    inside = (row < cells)[:, None] & good[None, :]
    a = tl.load(x + at, inside, other=0.0).to(tl.float32)
    s = tl.load(scale + n * channels + col, good, other=0.0)
    b = tl.load(shift + n * channels + col, good, other=0.0)
    if WITH:
        g = tl.load(y + at, inside, other=0.0).to(tl.float32)
        k = tl.load(slope + n * channels + col, good, other=0.0)
        value = g * s[None, :] + a * k[None, :] + b[None, :]
    else:
        value = a * s[None, :] + b[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def suits(x: Tensor, groups: int, *frozen: Tensor | None) -> bool:
    """True when the kernels apply: a channels-last map [N,C,H,W] and weights without gradients."""
    return (
        x.ndim == 4
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.shape[1] <= _TILE
        and x.shape[1] % groups == 0
        and all(w is not None and not w.requires_grad for w in frozen)
    )


class _GroupNorm(torch.autograd.Function):
    """Forward and the gradient to the map; weight and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        n, channels = x.shape[:2]
        cells, width = x.shape[2] * x.shape[3], channels // groups
        sums, parts = _summed(x, None, groups)
        mean, rstd = x.new_empty(2, n, groups, dtype=torch.float32)
        scale, shift = x.new_empty(2, n, channels, dtype=torch.float32)
        _spread[n, groups](
            sums, weight, bias, mean, rstd, scale, shift, cells, channels, width, parts, eps,
            P=_power(parts), W=_power(width),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, rstd)
        return _applied(x, None, scale, None, shift)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, rstd = ctx.saved_tensors
        n, channels = x.shape[:2]
        groups = mean.shape[1]
        cells, width = x.shape[2] * x.shape[3], channels // groups
        grad = grad.contiguous(memory_format=torch.channels_last)
        sums, parts = _summed(x, grad, groups)
        scale, slope, shift = x.new_empty(3, n, channels, dtype=torch.float32)
        _slopes[n, groups](
            sums, weight, mean, rstd, scale, slope, shift, cells, channels, width, parts,
            P=_power(parts), W=_power(width),
        )  # fmt: skip
        return _applied(x, grad, scale, slope, shift), None, None, None, None


def _summed(x: Tensor, y: Tensor | None, groups: int) -> tuple[Tensor, int]:
    """Sums [N,parts,2,C] float32 (see `_sums`), and parts."""
    n, channels = x.shape[:2]
    cells = x.shape[2] * x.shape[3]
    wide = _power(channels)
    tall = max(1, _TILE // wide)
    most = min(_PARTS // n, _FOLD // _power(channels // groups))
    steps = _power(-(-cells // (max(1, most) * tall)))
    parts = -(-cells // (steps * tall))
    sums = x.new_empty(n, parts, 2, channels, dtype=torch.float32)
    _sums[n, parts](
        x, x if y is None else y, sums, cells, channels, WITH=y is not None, STEPS=steps, R=tall,
        C=wide,
    )  # fmt: skip
    return sums, parts


def _applied(
    x: Tensor, y: Tensor | None, scale: Tensor, slope: Tensor | None, shift: Tensor
) -> Tensor:
    n, channels = x.shape[:2]
    cells = x.shape[2] * x.shape[3]
    wide = _power(channels)
    tall = max(1, _TILE // wide)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    _apply[n, -(-cells // tall)](
        x, x if y is None else y, scale, scale if slope is None else slope, shift, out, cells,
        channels, WITH=y is not None, R=tall, C=wide,
    )  # fmt: skip
    return out


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group norm of a channels-last map [N,C,H,W] that `suits`; same layout and type.

    Equals torch's within the rounding of the type.
    """
    out: Tensor = _GroupNorm.apply(x, weight, bias, groups, eps)  # type: ignore[no-untyped-call]
    return out
