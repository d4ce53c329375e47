"""The training loop's arithmetic against its definitions."""

import math

import pytest
import torch
from refusals import refusal
from torch import nn

from training.loop import (
    Clock,
    Ema,
    Learner,
    averaged_weights,
    learning_rate_factor,
    read_tensors,
)
from workbench.core.errors import ModelError


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))


def learner_of(module: nn.Module, lr: float = 1e-2) -> Learner:
    return Learner({"net": module}, lr=lr, ema_decay=0.99)


def take_steps(learner: Learner, module: nn.Module, count: int, start: int = 0) -> None:
    for index in range(start, start + count):
        generator = torch.Generator().manual_seed(index)
        picture = torch.randn(2, 3, 8, 8, generator=generator)
        module(picture).square().mean().backward()
        learner.step(0.5, 2)


def test_rate_warms_up_linearly_then_follows_a_half_cosine():
    assert learning_rate_factor(0.0, 0) == pytest.approx(1 / 200)
    assert learning_rate_factor(0.0, 99) == pytest.approx(0.5)
    for fraction in (0.25, 0.5, 0.75):
        expected = 0.5 * (1 + math.cos(math.pi * fraction))
        assert learning_rate_factor(fraction, 10_000) == pytest.approx(expected)
    assert learning_rate_factor(1.0, 10_000) == pytest.approx(0.0, abs=1e-12)


def test_rate_warms_up_by_time_where_steps_are_slow():
    half_way = 0.025
    cosine = 0.5 * (1 + math.cos(math.pi * half_way))
    assert learning_rate_factor(half_way, 1) == pytest.approx(0.5 * cosine)
    # Time that was spent on compiling, before the first step, is no warm-up.
    late = learning_rate_factor(0.2, 0, begun=0.2)
    assert late == pytest.approx(0.5 * (1 + math.cos(0.2 * math.pi)) / 200)


def test_any_budget_ends_annealed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("training.loop.time.monotonic", lambda: now[0])
    for budget in (1.0, 60.0, 36_000.0):
        clock = Clock(budget, budget)
        assert clock.fraction == 0
        now[0] += budget / 2
        assert clock.fraction == pytest.approx(0.5)
        assert not clock.over
        now[0] += budget / 2
        assert clock.over
        assert learning_rate_factor(clock.fraction, 10**6) == pytest.approx(0, abs=1e-12)


def test_a_schedule_spans_two_runs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("training.loop.time.monotonic", lambda: now[0])
    first = Clock(60, 100)
    now[0] = 60
    assert first.over
    assert first.fraction == pytest.approx(0.6)
    second = Clock(60, 100, spent=first.total)
    now[0] = 80
    assert second.fraction == pytest.approx(0.8)
    assert not second.over
    now[0] = 100.5
    assert second.over
    assert second.fraction == 1


def test_ema_is_the_recursion_of_its_definition():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    ema = Ema([parameter], decay=0.5)
    expected = parameter.detach().clone()
    for count in range(1, 8):
        with torch.no_grad():
            parameter.add_(count)
        ema.update()
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(ema.shadow[0], expected)
    live = parameter.detach().clone()
    with ema.applied():
        torch.testing.assert_close(parameter.detach(), expected)
    torch.testing.assert_close(parameter.detach(), live)


def test_ema_comes_back_after_an_error():
    parameter = nn.Parameter(torch.zeros(2))
    ema = Ema([parameter], decay=0.9)
    with torch.no_grad():
        parameter.fill_(3)
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError("stop")
    assert parameter.tolist() == [3, 3]


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = small().to(memory_format=torch.channels_last)
    uninterrupted = learner_of(whole)
    take_steps(uninterrupted, whole, 6)

    part = small().to(memory_format=torch.channels_last)
    before = learner_of(part)
    take_steps(before, part, 3)
    path = tmp_path / "net.safetensors"
    before.save(path, {"spent": 12.5})

    other = small(seed=9).to(memory_format=torch.channels_last)
    after = learner_of(other)
    facts = after.restore(path)
    assert facts["spent"] == 12.5
    assert (after.steps, after.seen, after.ema.count, after.optimizer_steps) == (3, 6, 3, 3)
    take_steps(after, other, 3, start=3)
    for name, tensor in uninterrupted.tensors().items():
        torch.testing.assert_close(after.tensors()[name], tensor, rtol=0, atol=0)
    assert after.steps == uninterrupted.steps


def test_a_checkpoint_holds_everything_and_leaves_no_part(tmp_path):
    module = small()
    learner = learner_of(module)
    take_steps(learner, module, 2)
    path = tmp_path / "net.safetensors"
    learner.save(path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    tensors, facts = read_tensors(path)
    assert facts["steps"] == 2
    for name, tensor in learner.tensors().items():
        assert torch.equal(tensors[name], tensor)
    averaged = averaged_weights(path, "net")
    assert averaged.keys() == module.state_dict().keys()
    assert torch.equal(averaged["0.weight"], learner.ema.shadow[0])


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    module = small()
    learner = learner_of(module)
    learner.save(tmp_path / "a.safetensors", {})
    other = nn.Sequential(nn.Conv2d(3, 8, 3))
    with refusal("other-model", kind=ModelError):
        learner_of(other).restore(tmp_path / "a.safetensors")


def test_a_loss_that_is_not_finite_goes_back_to_the_last_good_state():
    module = small()
    learner = learner_of(module)
    take_steps(learner, module, 2)
    learner.guard(0.5)
    good = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    with torch.no_grad():
        module[0].weight.fill_(float("nan"))
    learner.guard(float("nan"))
    for name, tensor in learner.tensors().items():
        assert torch.equal(tensor, good[name])
    assert learner.lr == pytest.approx(5e-3)


def test_a_loss_that_is_not_finite_from_the_start_is_an_error():
    with refusal("not-finite", kind=ModelError):
        learner_of(small()).guard(float("inf"))
