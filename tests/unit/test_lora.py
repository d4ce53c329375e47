"""LoRA: training fits, gives the model back, merging equals the adapter, names convert."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from refusals import refusal
from small_unet import normal, schedule, small_unet, text

from workbench.core.config import LoraConfig
from workbench.core.errors import Cancelled, ModelError
from workbench.diffusion.lora import (
    TrainBatch,
    TrainedLora,
    initial_state,
    merged,
    random_draws,
    train,
)
from workbench.diffusion.lora_files import to_kohya_keys
from workbench.diffusion.lora_format import parse, rank_of
from workbench.diffusion.model import snapshot
from workbench.diffusion.unet import Prompt

Tensor = torch.Tensor
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def unet() -> Any:
    return small_unet()


def draws(seed: int = 0, batch: int = 4, crop: int = 0) -> Any:
    mean, std = normal(1, 4, 8, 12), normal(1, 4, 8, 12, seed=1).abs() * 0.1
    return random_draws(mean, std, batch=batch, seed=seed, crop=crop)


def fit(unet: Any, **changes: Any) -> TrainedLora:
    given: dict[str, Any] = {
        "config": LoraConfig(steps=6, rank=4, learning_rate=2e-3, batch_size=4),
        "draws": draws(),
        "schedule": schedule(),
    }
    given |= changes
    config, seed = given.pop("config"), given.pop("seed", 0)
    given.setdefault("start", initial_state(unet, config.rank, seed))
    return train(unet, given.pop("schedule"), Prompt(text()), config, given.pop("draws"), **given)


def adapter(unet: Any, rank: int = 4, seed: int = 0) -> State:
    """A LoRA whose B is not zero."""
    state = initial_state(unet, rank, seed)
    return {k: normal(*v.shape, seed=i) * 0.3 for i, (k, v) in enumerate(state.items())}


def output(unet: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = unet(normal(1, 4, 8, 8, seed=3), 101, encoder_hidden_states=text()).sample
    return found


# --- training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_training_on_one_batch_lowers_its_loss(unet: Any, prediction: str) -> None:
    one = draws()(0)
    config = LoraConfig(steps=30, rank=4, learning_rate=1e-2)
    done = fit(unet, config=config, draws=lambda _k: one, schedule=schedule(10, prediction))
    assert len(done.losses) == 30
    assert done.losses[-1] < 0.97 * done.losses[0]
    assert all(b <= a * 1.01 for a, b in zip(done.losses, done.losses[1:], strict=False))


def test_the_first_loss_is_the_models_own_error(unet: Any) -> None:
    """B = 0, so the adapters say nothing at first."""
    batch = draws()(0)
    noisy = schedule().add_noise(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        out = unet(noisy, batch.timesteps, encoder_hidden_states=text().expand(4, -1, -1)).sample
    expected = torch.nn.functional.mse_loss(out, batch.noise).item()
    assert fit(unet).losses[0] == pytest.approx(expected, rel=1e-5)


def test_the_same_seed_gives_the_same_lora(unet: Any) -> None:
    a, b, c = fit(unet), fit(unet), fit(unet, draws=draws(seed=1))
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
    assert a.losses == b.losses != c.losses


def test_accumulated_batches_equal_one_big_batch(unet: Any) -> None:
    big = draws(batch=4)(0)
    halves = [
        TrainBatch(big.latents[i : i + 2], big.noise[i : i + 2], big.timesteps[i : i + 2])
        for i in (0, 2)
    ]
    config = LoraConfig(steps=1, rank=4, learning_rate=1e-3)
    whole = fit(unet, config=config, draws=lambda _k: big)
    split = fit(
        unet,
        config=LoraConfig(steps=1, rank=4, learning_rate=1e-3, accumulation=2),
        draws=lambda k: halves[k],
    )
    assert whole.losses[0] == pytest.approx(split.losses[0], rel=1e-5)
    for key in whole.state:
        assert torch.allclose(whole.state[key], split.state[key], atol=5e-5), key


def test_keys_shapes_and_size(unet: Any) -> None:
    state = fit(unet).state
    assert len(state) == 2 * 4 * 2 * 10  # A and B, q k v out, self and cross, 10 blocks
    pattern = r"unet\.(down|mid|up)_block.*\.attn[12]\.(to_[qkv]|to_out\.0)\.lora_[AB]\.weight"
    assert all(re.fullmatch(pattern, k) for k in state)
    assert all(v.dtype == torch.float32 and v.device.type == "cpu" for v in state.values())
    assert rank_of(state) == 4


def test_the_initial_adapters_are_the_recipes() -> None:
    """A ~ N(0, 1/r^2), B = 0 (docs/algorithm.md 1.2)."""
    state = initial_state(small_unet(), 16, 0)
    down = torch.cat([v.flatten() for k, v in state.items() if ".lora_A." in k])
    assert down.std().item() == pytest.approx(1 / 16, rel=0.03)
    assert abs(down.mean().item()) < 0.003
    assert not any(v.any() for k, v in state.items() if ".lora_B." in k)


@pytest.mark.parametrize("error", [None, Cancelled, ModelError])
def test_the_model_comes_back_untouched(unet: Any, error: type[Exception] | None) -> None:
    """docs/faults.md 37: modules, weights, hooks, switches, adapters; success, cancel, NaN."""
    before, picture = snapshot(unet), output(unet)

    def hook(step: int, _total: int, _loss: float | None) -> None:
        if error is Cancelled and step == 3:
            raise Cancelled

    def broken(k: int) -> TrainBatch:
        made = draws()(k)
        return TrainBatch(made.latents * float("nan"), made.noise, made.timesteps)

    if error is None:
        fit(unet, on_step=hook)
    else:
        with pytest.raises(error):
            fit(unet, on_step=hook, draws=broken if error is ModelError else draws())
    assert snapshot(unet) == before
    assert torch.equal(output(unet), picture)


def test_progress_is_heard_each_step(unet: Any) -> None:
    heard: list[tuple[int, int, float | None]] = []
    done = fit(unet, on_step=lambda *now: heard.append(now))
    assert [(k, n) for k, n, _ in heard] == [(k, 6) for k in range(1, 7)]
    assert tuple(loss for *_, loss in heard) == done.losses


def test_a_second_adapter_is_refused(unet: Any) -> None:
    from peft import LoraConfig as PeftConfig

    other = small_unet()
    other.add_adapter(PeftConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(RuntimeError, match="already carries"):
        fit(other)


# --- draws ------------------------------------------------------------------------------------------


def test_draws_follow_the_posterior() -> None:
    mean, std = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1).abs()
    draw = random_draws(mean, std, batch=2000, seed=0)(0)
    assert torch.allclose(draw.latents.mean(0), mean[0], atol=0.25)
    assert torch.allclose(draw.latents.std(0), std[0], rtol=0.1, atol=0.01)
    assert draw.noise.mean().abs() < 0.01
    assert draw.timesteps.min() < 10
    assert draw.timesteps.max() > 989
    assert draw.timesteps.dtype == torch.int64


def test_crops_are_windows_of_the_latent() -> None:
    mean = torch.arange(8 * 12).float().reshape(1, 1, 8, 12).repeat(1, 4, 1, 1)
    draw = random_draws(mean, torch.zeros_like(mean), batch=40, seed=0, crop=5)(0)
    assert draw.latents.shape == draw.noise.shape == (40, 4, 5, 5)
    corners = {divmod(int(item[0, 0, 0]), 12) for item in draw.latents}
    assert len(corners) > 10
    for item in draw.latents:
        r, c = divmod(int(item[0, 0, 0]), 12)
        assert torch.equal(item, mean[0, :, r : r + 5, c : c + 5])
    whole = random_draws(mean, torch.zeros_like(mean), batch=2, seed=0, crop=99)(0)
    assert whole.latents.shape == (2, 4, 8, 12)


# --- merging ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.5, -1.0, 0.0])
def test_merged_weights_equal_the_active_adapter(unet: Any, weight: float) -> None:
    state = adapter(unet)
    with merged(unet, state, weight):
        found = output(unet)
    theirs = small_unet()
    theirs.load_lora_adapter(
        {k.removeprefix("unet."): v for k, v in state.items()}, prefix=None, adapter_name="a"
    )
    theirs.set_adapters(["a"], [weight])
    assert torch.allclose(found, output(theirs), atol=1e-5)
    assert weight == 0 or not torch.allclose(found, output(unet), atol=1e-3)


@pytest.mark.parametrize("error", [None, Cancelled])
def test_merging_is_undone_to_the_bit(unet: Any, error: type[Exception] | None) -> None:
    before = snapshot(unet)
    storage = {n: (p.data_ptr(), p.detach().clone()) for n, p in unet.named_parameters()}

    def work() -> None:
        with merged(unet, adapter(unet)):
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert snapshot(unet) == before
    for name, p in unet.named_parameters():
        assert p.data_ptr() == storage[name][0]
        assert torch.equal(p, storage[name][1])


def test_nothing_to_merge(unet: Any) -> None:
    plain = output(unet)
    for state in (None, {}):
        with merged(unet, state):
            assert torch.equal(output(unet), plain)


def test_convolution_adapters_are_merged() -> None:
    unet = small_unet()
    conv = unet.up_blocks[2].resnets[0].conv1
    down, up = normal(3, conv.in_channels, 3, 3), normal(conv.out_channels, 3, 1, 1, seed=1)
    name = "unet.up_blocks.2.resnets.0.conv1"
    x = normal(1, conv.in_channels, 6, 6, seed=2)
    with torch.no_grad():
        low = torch.nn.functional.conv2d(x, down, padding=1)
        expected = conv(x) + torch.nn.functional.conv2d(low, up)
        with merged(unet, {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}):
            assert torch.allclose(conv(x), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["module", "shape", "half"])
def test_a_lora_for_another_model_is_refused(unet: Any, kind: str) -> None:
    before, state = snapshot(unet), adapter(unet)
    key = next(k for k in reversed(state) if k.endswith("lora_A.weight"))
    if kind == "module":
        state["unet.up_blocks.9.to_q.lora_A.weight"] = torch.zeros(4, 8)
    elif kind == "shape":
        state[key] = torch.zeros(4, 999)
    else:
        del state[key.replace("lora_A", "lora_B")]
    with refusal("misfit", kind=ModelError), merged(unet, state):
        pass
    assert snapshot(unet) == before


# --- names ------------------------------------------------------------------------------------------


def renamed(state: State, form: str) -> State:
    """The same LoRA as other programs write it."""
    out: State = {}
    for key, value in state.items():
        module, part = re.fullmatch(r"unet\.(.*)\.lora_(A|B)\.weight", key).groups()  # type: ignore[union-attr]
        old = "down" if part == "A" else "up"
        attention, _, kind = module.partition(".to_")
        out[
            {
                "doubled": f"unet.unet.{module}.lora.{old}.weight",
                "processor": f"unet.{attention}.processor.to_{kind.split('.')[0]}_lora.{old}.weight",
                "bare": f"{module}.lora_{part}.weight",
                "peft": f"base_model.model.{module}.lora_{part}.default.weight",
                "diffusers": f"unet.{module}.lora.{old}.weight",
                "kohya": f"lora_unet_{module.replace('.', '_')}.lora_{old}.weight",
            }[form]
        ] = value
    return out


@pytest.mark.parametrize("form", ["doubled", "processor", "bare", "peft", "diffusers", "kohya"])
def test_every_naming_is_read(unet: Any, form: str) -> None:
    state = adapter(unet)
    found = parse(renamed(state, form), {})
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[k], state[k]) for k in state)


def test_alpha_becomes_part_of_b(unet: Any) -> None:
    state = adapter(unet, rank=4)
    kohya = renamed(state, "kohya")
    kohya |= {
        k.replace("lora_down.weight", "alpha"): torch.tensor(1.0) for k in kohya if "down." in k
    }
    found = parse(kohya, {}).state
    for key, value in state.items():
        expected = value / 4 if ".lora_B." in key else value
        assert torch.equal(found[key], expected)


def test_kohya_and_back(unet: Any) -> None:
    state = adapter(unet)
    kohya = to_kohya_keys(state)
    assert len(kohya) == 3 * len(state) // 2
    back = parse(kohya, {})
    assert back.state.keys() == state.keys()
    assert all(torch.equal(back.state[k], state[k]) for k in state)
