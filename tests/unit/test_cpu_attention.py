"""The CPU's way of computing attention, gated layers and adapters gives the same numbers."""

from __future__ import annotations

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from small_unet import TEXT, normal, small_unet, text
from torch import nn

from workbench.accel import cpu_attention
from workbench.diffusion import device, lora
from workbench.editing.memory import environment, expected_difference

pytestmark = pytest.mark.numerics

Tensor = torch.Tensor


def fused(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    parts = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def as_exact(mine: Tensor, exact: Tensor, allowed: float) -> None:
    """Equal to what float64 gives.

    This U-Net normalises groups of two channels, which lose up to three digits where the two are nearly
    equal: as processors without AVX, with AVX2 and with AVX-512 compute it, outputs are off by up to 2e-5
    of the largest and gradients by up to 3e-4, torch's own no less than ours.
    """
    assert (mine - exact).abs().max() <= allowed


def some(n: int, rows: int, keys: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    return [
        normal(n, length, width, seed=i).to(dtype).requires_grad_()
        for i, length in enumerate((rows, keys, keys))
    ]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize(("n", "rows", "keys"), [(1, 50, 50), (3, 33, 7), (2, 1, 5)])
def test_attention_and_its_gradients_are_those_of_the_definition(
    n: int, rows: int, keys: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "_rows", lambda _heads, queries, _keys: min(block, queries))
    given = some(n, rows, keys, 24, torch.float64)
    out, want = cpu_attention.narrow_attention(*given, 3), fused(*given, 3)
    torch.testing.assert_close(out, want)
    weight = normal(*want.shape, seed=9).double()
    mine = torch.autograd.grad((out * weight).sum(), given)
    torch.testing.assert_close(mine, torch.autograd.grad((want * weight).sum(), given))


def test_attention_passes_the_numerical_gradient_check() -> None:
    given = some(1, 6, 5, 4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k, v: cpu_attention.narrow_attention(q, k, v, 2), given
    )


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (x.detach() for x in some(1, 40, 40, 8, torch.float32))
    out = cpu_attention.narrow_attention(q * 1e3, k * 1e3, v, 1)
    assert out.isfinite().all()
    torch.testing.assert_close(out, fused(q * 1e3, k * 1e3, v, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_the_split_gate_is_geglu(bias: bool) -> None:
    layer = nn.Linear(6, 20, bias=bias)
    x = normal(2, 9, 6)
    value, gate = layer(x).chunk(2, dim=-1)
    torch.testing.assert_close(
        cpu_attention.split_gate(x, layer.weight, layer.bias), value * F.gelu(gate)
    )


def test_the_whole_unet_says_the_same_and_is_given_back_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet = small_unet()
    monkeypatch.setattr(cpu_attention, "_LEAST_ROWS", 1)
    z, t = normal(2, 4, 16, 16), torch.tensor([3, 700])
    states = normal(2, 5, TEXT, seed=3)
    before = dict(unet.attn_processors)
    calls: list[int] = []
    original = cpu_attention.narrow_attention
    monkeypatch.setattr(
        cpu_attention, "narrow_attention", lambda *given: (calls.append(1), original(*given))[1]
    )
    with torch.no_grad():
        want = unet(z, t, encoder_hidden_states=states).sample
        with cpu_attention.fast_cpu_layers(unet):
            got = unet(z, t, encoder_hidden_states=states).sample
        after = unet(z, t, encoder_hidden_states=states).sample
        exact = (
            copy.deepcopy(unet)
            .double()(z.double(), t, encoder_hidden_states=states.double())
            .sample
        )
    assert len(calls) == len(before)
    as_exact(got, exact, 1e-3 * float(exact.abs().max()))
    assert torch.equal(after, want)
    assert dict(unet.attn_processors) == before
    assert not any("forward" in vars(m) for m in unet.modules())


def test_it_is_given_back_after_an_error() -> None:
    unet = small_unet()
    before = dict(unet.attn_processors)
    with pytest.raises(RuntimeError, match="midway"), cpu_attention.fast_cpu_layers(unet):
        raise RuntimeError("midway")
    assert dict(unet.attn_processors) == before


def test_attention_is_left_to_torch_where_torch_is_faster() -> None:
    unet = small_unet()
    before = dict(unet.attn_processors)
    with cpu_attention.fast_cpu_layers(unet, narrow=False):
        assert dict(unet.attn_processors) == before
        assert any("forward" in vars(m) for m in unet.modules())  # the gates are still ours


@pytest.mark.parametrize(
    ("name", "fused"), [("Intel(R) Xeon(R) Processor", True), ("AMD EPYC 7763", False)]
)
def test_who_computes_attention_hangs_on_the_processor_and_is_told_to_records(
    monkeypatch: pytest.MonkeyPatch, name: str, fused: bool
) -> None:
    monkeypatch.setattr(device, "processor", lambda: name)
    assert device.fused_attention_wins() is fused
    kind = types.SimpleNamespace(type="cpu")
    told = environment(types.SimpleNamespace(device=kind, dtype_name="fp32"))  # type: ignore[arg-type]
    assert told["instructions"].endswith("fused") is fused
    other = {**told, "instructions": "of before"}
    assert expected_difference(other, told) != 0.0


def test_other_precisions_are_left_alone() -> None:
    unet = small_unet().to(torch.bfloat16)
    before = dict(unet.attn_processors)
    with cpu_attention.fast_cpu_layers(unet):
        assert dict(unet.attn_processors) == before


def test_an_attention_with_a_norm_of_its_own_keeps_its_processor() -> None:
    unet = small_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    assert cpu_attention.plain(attention)
    attention.norm_q = nn.LayerNorm(4)
    kept = attention.processor
    with cpu_attention.fast_cpu_layers(unet):
        assert attention.processor is kept


def test_folded_adapters_train_as_pefts_do(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = small_unet()
    start = lora.initial_state(unet, 4, seed=1)
    start = {k: v if "lora_A" in k else normal(*v.shape, seed=2) for k, v in start.items()}
    latents, states = normal(2, 4, 8, 8), text().expand(2, -1, -1)

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        with lora._adapters(unet, 4, start) as weights:
            out = unet(latents, 10, encoder_hidden_states=states).sample
            grads = torch.autograd.grad(out.square().mean(), list(weights.values()))
            return out.detach(), dict(zip(weights, grads, strict=True))

    def exactly() -> tuple[Tensor, dict[str, Tensor]]:
        """W + B A in float64, of a copy that knows nothing of adapters."""
        double = copy.deepcopy(unet).double()
        weights = {k: v.double().requires_grad_() for k, v in start.items()}
        sums = {}
        for name, module in lora._targets(double):
            down, up = (weights[f"unet.{name}.{part}.weight"] for part in ("lora_A", "lora_B"))
            sums[f"{name}.weight"] = module.weight.detach() + up @ down
        given = {"encoder_hidden_states": states.double()}
        out = torch.func.functional_call(double, sums, (latents.double(), 10), given).sample
        grads = torch.autograd.grad(out.square().mean(), list(weights.values()))
        return out.detach(), dict(zip(weights, grads, strict=True))

    assert cpu_attention.merges_lora(nn.Linear(8, 8), 4)
    out, mine = gradients()
    monkeypatch.setattr(lora, "merges_lora", lambda _layer, _rank: False)
    want, theirs = gradients()
    exact, true = exactly()
    for found in (out, want):
        as_exact(found, exact, 1e-3 * float(exact.abs().max()))
    assert mine.keys() == theirs.keys() == true.keys()
    largest = max(
        float(grad.abs().max()) for grad in true.values()
    )  # some are 0: one key has no rival
    for name, grad in true.items():
        as_exact(mine[name], grad, 1e-2 * largest)
        as_exact(theirs[name], grad, 1e-2 * largest)


def test_wide_layers_keep_the_two_step_way() -> None:
    assert not cpu_attention.merges_lora(nn.Linear(640, 640), 4)
    assert not cpu_attention.merges_lora(nn.Conv2d(8, 8, 1), 4)
