"""Mutual self-attention: who reads whom, replay equals pairs, and everything is put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_unet import denoiser, normal, small_unet

from workbench.core.errors import Cancelled
from workbench.diffusion.unet import (
    MutualSelfAttention,
    Prompt,
    ReferenceKV,
    mutual_self_attention,
    self_attentions,
    shared_layers,
)

Tensor = torch.Tensor


@pytest.fixture(scope="module")
def unet() -> Any:
    return small_unet()


@pytest.fixture(scope="module")
def sd_unet() -> Any:
    return small_unet(layers=2)


def eps(unet: Any, z: Tensor, mode: str, kv: ReferenceKV | None = None, **changes: Any) -> Tensor:
    d = denoiser(unet, **changes)
    with torch.no_grad(), mutual_self_attention(unet, 10, kv) as board:
        board.mode, board.t = mode, 101
        return d.eps(z, 101)


def test_sixteen_blocks_are_counted_in_forward_order(sd_unet: Any) -> None:
    """The order in which a forward really runs them, not that of named_modules."""
    layers = self_attentions(sd_unet)
    ran: list[int] = []
    hooks = [
        attn.register_forward_hook(lambda *_a, i=i: ran.append(i))
        for i, (_, attn) in enumerate(layers)
    ]
    with torch.no_grad():
        denoiser(sd_unet).eps(normal(1, 4, 8, 8), 101)
    for hook in hooks:
        hook.remove()
    assert ran == list(range(16))
    assert [name for name, _ in layers] == [
        n for n in sorted(sd_unet.attn_processors, key=_order) if ".attn1." in n
    ]


def _order(name: str) -> tuple[int, str]:
    return ("down", "mid_", "up_b").index(name[:4]), name


def test_layer_ten_is_the_last_two_up_blocks(sd_unet: Any, unet: Any) -> None:
    assert shared_layers(sd_unet, 10) == [10, 11, 12, 13, 14, 15]
    names = [self_attentions(sd_unet)[i][0] for i in shared_layers(sd_unet, 10)]
    assert all(n.startswith(("up_blocks.2", "up_blocks.3")) for n in names)
    small = [self_attentions(unet)[i][0] for i in shared_layers(unet, 10)]
    assert len(self_attentions(unet)) == 10
    assert len(small) == 4
    assert all(n.startswith(("up_blocks.2", "up_blocks.3")) for n in small)


def test_other_start_layers_on_other_models(unet: Any) -> None:
    """0 is everything, 6 from the middle, 7 the up blocks, 16 nothing; never growing."""
    counts = [len(shared_layers(unet, layer)) for layer in range(17)]
    assert (counts[0], counts[6], counts[7], counts[10], counts[16]) == (10, 7, 6, 4, 0)
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("guided", [False, True])
def test_replay_equals_the_pair_in_one_batch(unet: Any, guided: bool) -> None:
    changes = {"negative": Prompt(normal(1, 4, 8, seed=9)), "guidance": 5.0} if guided else {}
    original, edited = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
    pair = eps(unet, torch.cat([original, edited]), "pairs", **changes)
    kv = ReferenceKV()
    alone = eps(unet, original, "record", kv, **changes)
    replayed = eps(unet, edited, "replay", kv, **changes)
    assert torch.allclose(pair[:1], alone, atol=1e-5)
    assert torch.allclose(pair[1:], replayed, atol=1e-5)
    plain = eps(unet, edited, "off", **changes)
    assert not torch.allclose(replayed, plain, atol=1e-3)
    assert {k[0] for k in kv.states} == {101}
    assert {len(s) for s in kv.states.values()} == {2 if guided else 1}


def test_the_original_row_is_not_changed_by_sharing(unet: Any) -> None:
    rows = torch.cat([normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)])
    assert torch.allclose(eps(unet, rows, "pairs")[:1], eps(unet, rows[:1], "off"), atol=1e-5)


def test_reading_oneself_changes_nothing(unet: Any) -> None:
    z = normal(1, 4, 8, 8)
    kv = ReferenceKV()
    plain = eps(unet, z, "record", kv)
    assert torch.allclose(eps(unet, z, "replay", kv), plain, atol=1e-6)
    assert torch.allclose(eps(unet, torch.cat([z, z]), "pairs")[1:], plain, atol=1e-5)


def test_keys_and_values_are_the_originals_projections(unet: Any) -> None:
    """In one attention layer, the long way: softmax(q_edit k_orig^T) v_orig."""
    _, attn = self_attentions(unet)[-1]
    states = normal(2, 16, attn.to_q.in_features)
    board = MutualSelfAttention()
    with torch.no_grad():
        with mutual_self_attention(unet, 10) as board:
            board.mode = "pairs"
            found = attn(states)
        q, k, v = attn.to_q(states), attn.to_k(states[:1]), attn.to_v(states[:1])

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        weights = (heads(q) @ heads(k).transpose(-1, -2) * attn.scale).softmax(-1)
        expected = attn.to_out[0]((weights @ heads(v)).transpose(1, 2).flatten(-2))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("error", [None, Cancelled, ValueError])
def test_processors_are_put_back(unet: Any, error: type[Exception] | None) -> None:
    """docs/faults.md 37: success, cancel, failure."""
    before = {n: id(p) for n, p in unet.attn_processors.items()}

    def work() -> None:
        with mutual_self_attention(unet, 0):
            assert {n: id(p) for n, p in unet.attn_processors.items()} != before
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert {n: id(p) for n, p in unet.attn_processors.items()} == before


def test_states_survive_being_named(unet: Any) -> None:
    kv = ReferenceKV()
    eps(unet, normal(1, 4, 8, 8), "record", kv)
    back = ReferenceKV.from_tensors({**kv.to_tensors(), "latents": torch.zeros(1)})
    assert back.states.keys() == kv.states.keys()
    assert all(torch.equal(back.states[k], kv.states[k]) for k in kv.states)
    assert back.bytes == kv.bytes == sum(s.numel() * 4 for s in kv.states.values())
