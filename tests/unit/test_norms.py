"""The GPU's group norm, its kernels interpreted on the CPU (Linux, where there is a Triton)."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from small_unet import TEXT, normal, small_unet
from torch import nn

from workbench.accel import cuda

Tensor = torch.Tensor
HERE = importlib.util.find_spec("triton") is not None
TYPES = [torch.float16, torch.bfloat16] if HERE else []
ROUNDING = {torch.float16: 4e-4, torch.bfloat16: 6e-3}
SHAPES = [
    (1, 320, 16, 16, 32),  # several parts, several steps
    (2, 64, 9, 7, 8),  # nothing is a power of two
    (1, 1920, 4, 4, 32),  # a row is wider than half a tile
    (3, 32, 1, 1, 32),  # a group of one number
    (1, 96, 40, 40, 3),
]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach()).norm() / b.detach().norm().clamp(min=1e-12))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("n", "channels", "height", "width", "groups"), SHAPES)
def test_output_and_gradient_are_those_of_the_definition(
    n: int, channels: int, height: int, width: int, groups: int, dtype: torch.dtype
) -> None:
    from workbench.accel import groupnorm_triton

    x = (normal(n, channels, height, width, seed=1) * 2 + 1.5).to(dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_(True)
    weight, bias = (normal(channels, seed=2) + 1).to(dtype), normal(channels, seed=3).to(dtype)
    assert groupnorm_triton.suits(x, groups, weight, bias)
    out = groupnorm_triton.group_norm(x, groups, weight, bias, 1e-5)
    exact = x.detach().double().requires_grad_(True)
    want = F.group_norm(exact, groups, weight.double(), bias.double(), 1e-5)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    assert relative(out, want) < ROUNDING[dtype]
    upstream = normal(*out.shape, seed=4).to(dtype)
    (mine,) = torch.autograd.grad(out, [x], upstream)
    (true,) = torch.autograd.grad(want, [exact], upstream.double())
    # of a group of one number nothing is left but rounding
    assert (
        relative(mine, true) < ROUNDING[dtype]
        or float((mine.double() - true.double()).abs().max()) < 1e-2
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_what_it_does_not_suit(dtype: torch.dtype) -> None:
    from workbench.accel import groupnorm_triton

    x = normal(1, 64, 4, 4).to(dtype)
    frozen, trained = torch.ones(64, dtype=dtype), torch.ones(64, dtype=dtype, requires_grad=True)
    turned = x.to(memory_format=torch.channels_last)
    assert groupnorm_triton.suits(turned, 32, frozen, frozen)
    assert not groupnorm_triton.suits(x, 32, frozen, frozen)
    assert not groupnorm_triton.suits(turned.float(), 32, frozen, frozen)
    assert not groupnorm_triton.suits(turned, 32, trained, frozen)
    assert not groupnorm_triton.suits(turned, 32, frozen, None)
    assert not groupnorm_triton.suits(turned[0], 32, frozen, frozen)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_unet_keeps_its_maps_in_that_order_and_says_the_same(dtype: torch.dtype) -> None:
    unet = small_unet().to(dtype).requires_grad_(False).to(memory_format=torch.channels_last)
    z, t = normal(1, 4, 16, 16).to(dtype), torch.tensor(501)
    text = normal(1, 7, TEXT).to(dtype)
    seen: list[bool] = []

    def look(_module: nn.Module, given: tuple[Tensor, ...], _out: Tensor) -> None:
        seen.append(given[0].is_contiguous(memory_format=torch.channels_last))

    hooks = [m.register_forward_hook(look) for m in unet.modules() if isinstance(m, nn.GroupNorm)]
    with torch.no_grad():
        exact = small_unet().double()(z.double(), t, text.double(), return_dict=False)[0]
        before = dict(unet.__dict__)
        with cuda.channels_last(unet, on=True):
            out = unet(z, t, text, return_dict=False)[0]
        assert seen and all(seen)
        assert not any("forward" in vars(m) for m in unet.modules())
        assert before.keys() == unet.__dict__.keys()
    for hook in hooks:
        hook.remove()
    assert relative(out, exact) < 5 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_where_the_kernels_do_not_run_torch_does_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from workbench.accel import groupnorm_triton

    def broken(*_given: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(groupnorm_triton, "group_norm", broken)
    cuda._norms.cache_clear()
    unet = small_unet().to(dtype)
    with cuda.channels_last(unet, on=True):
        assert not any("forward" in vars(m) for m in unet.modules())
    assert "C compiler" in caplog.text
    cuda._norms.cache_clear()
