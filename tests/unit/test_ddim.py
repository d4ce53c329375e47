"""DDIM against closed forms: a Gaussian's optimal denoiser, and diffusers' own scheduler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from refusals import refusal

from workbench.core.errors import ModelError
from workbench.diffusion.ddim import (
    CLEAN,
    Denoise,
    Schedule,
    invert,
    sample,
    schedule_from,
)

Tensor = torch.Tensor
SPREAD = 1.5  # standard deviation of the data: x0 ~ N(0, SPREAD^2)
SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def total_std(schedule: Schedule, t: int) -> float:
    a = schedule.alpha(t)
    return math.sqrt(a * SPREAD**2 + 1 - a)


def gaussian(schedule: Schedule) -> Denoise:
    """E[eps | z_t] for Gaussian data: sqrt(1-a) z / (a s^2 + 1 - a)."""

    def eps(z: Tensor, t: int) -> Tensor:
        a = schedule.alpha(t)
        return math.sqrt(1 - a) * z / (a * SPREAD**2 + 1 - a)

    return eps


def slope(steps: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log error over log steps."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def start() -> Tensor:
    return torch.tensor([[[[1.0, -0.5], [0.25, 2.0]]]], dtype=torch.float64)


STEPS = [25, 50, 100, 200]


def test_sampling_converges_to_the_flow_with_order_one() -> None:
    """The probability-flow solution scales with the total standard deviation (exactly)."""
    errors = []
    for steps in STEPS:
        schedule = schedule_from(SD, steps)
        t = schedule.timesteps[0]
        found = sample(gaussian(schedule), start(), schedule, schedule.timesteps)[-1]
        exact = start() * total_std(schedule, CLEAN) / total_std(schedule, t)
        errors.append(float((found / exact - 1).abs().max()))
    assert 0.85 < slope(STEPS, errors) < 1.3
    assert errors[-1] < 0.02


def test_inversion_converges_to_the_flow_with_order_one() -> None:
    errors = []
    for steps in STEPS:
        schedule = schedule_from(SD, steps)
        n = round(0.7 * steps)
        trail = invert(gaussian(schedule), start(), schedule, n)
        exact = start() * total_std(schedule, schedule.tail(n)[0]) / total_std(schedule, CLEAN)
        errors.append(float((trail[-1] / exact - 1).abs().max()))
        assert trail.shape == (n + 1, *start().shape)
        assert torch.equal(trail[0], start())
    assert 0.85 < slope(STEPS, errors) < 1.3
    assert errors[-1] < 0.02


def test_inverting_and_sampling_again_gives_the_start_as_steps_grow() -> None:
    errors = []
    for steps in STEPS:
        schedule = schedule_from(SD, steps)
        n = round(0.7 * steps)
        noisy = invert(gaussian(schedule), start(), schedule, n)[-1]
        back = sample(gaussian(schedule), noisy, schedule, schedule.tail(n))[-1]
        errors.append(float((back - start()).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert slope(STEPS, errors) > 0.85
    assert errors[-1] < 0.02


def test_an_exact_noise_prediction_is_undone_exactly() -> None:
    """If eps never changes, inversion and sampling are the same line walked twice."""
    schedule = schedule_from(SD, 20)
    fixed = torch.randn(start().shape, generator=torch.Generator().manual_seed(1)).double()
    trail = invert(lambda _z, _t: fixed, start(), schedule, 14)
    back = sample(lambda _z, _t: fixed, trail[-1], schedule, schedule.tail(14))
    assert torch.allclose(back.flip(0), trail, atol=1e-12)


def test_step_clean_and_noised_agree() -> None:
    schedule = schedule_from(SD, 50)
    x0, eps = start(), start().flip(-1)
    z = schedule.noised(x0, eps, 681)
    assert torch.allclose(schedule.clean(z, eps, 681), x0)
    assert torch.allclose(schedule.step(z, eps, 681), schedule.noised(x0, eps, 661))
    assert torch.allclose(schedule.step(z, eps, 681, to=301), schedule.noised(x0, eps, 301))
    z = schedule.noised(x0, eps, 1)
    assert torch.allclose(schedule.step(z, eps, 1), schedule.noised(x0, eps, CLEAN))


def test_velocity_prediction_is_read_as_noise() -> None:
    schedule = schedule_from(SD | {"prediction_type": "v_prediction"}, 50)
    x0, eps = start(), start().flip(-1)
    for t in schedule.timesteps:
        v = schedule.training_target(x0, eps, torch.tensor([t]))
        z = schedule.add_noise(x0, eps, torch.tensor([t]))
        assert torch.allclose(schedule.noise_of(z, v, t), eps, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [7, 50])
def test_agrees_with_diffusers(prediction: str, steps: int) -> None:
    theirs = DDIMScheduler(**SD, clip_sample=False, prediction_type=prediction)
    theirs.set_timesteps(steps)
    ours = schedule_from(dict(theirs.config), steps)
    assert list(ours.timesteps) == theirs.timesteps.tolist()
    z, out = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for t in ours.timesteps:
        expected = theirs.step(out, t, z).prev_sample
        assert torch.allclose(ours.step(z, ours.noise_of(z, out, t), t), expected, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"trained_betas": [0.01, 0.02, 0.03, 0.04]},
    ],
    ids=["linear", "cosine", "zero-snr", "trained"],
)
def test_noise_levels_agree_with_diffusers(config: dict[str, object]) -> None:
    theirs = DDIMScheduler(**{"num_train_timesteps": 1000, **config})
    ours = schedule_from(dict(theirs.config), 4)
    assert torch.allclose(torch.tensor(ours.alphas), theirs.alphas_cumprod, atol=1e-6)
    theirs.set_timesteps(4)
    if config.get("timestep_spacing") == "trailing":
        assert list(ours.timesteps) == theirs.timesteps.tolist()


def test_add_noise_agrees_with_diffusers_and_has_the_right_variance() -> None:
    theirs = DDIMScheduler(**SD)
    ours = schedule_from(SD, 50)
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 4, 64, 64, generator=g)
    t = torch.tensor([0, 100, 681, 999])
    found = ours.add_noise(x0, noise, t)
    assert torch.allclose(found, theirs.add_noise(x0, noise, t), atol=1e-6)
    assert torch.allclose(found.var(dim=(1, 2, 3)), torch.ones(4), atol=0.05)


def test_navigation() -> None:
    schedule = schedule_from(SD, 50)
    assert schedule.timesteps[0] == 981
    assert schedule.tail(35)[0] == 681
    assert schedule.previous(681) == 661
    assert schedule.previous(1) == CLEAN
    assert schedule.alpha(CLEAN) == schedule.alphas[0] == pytest.approx(0.99915, abs=1e-5)
    assert schedule.alpha(681) == pytest.approx(0.09464, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 35, 100])
def test_a_thinned_schedule_keeps_its_ends(steps: int) -> None:
    schedule = schedule_from(SD, 50)
    found = schedule.thinned(681, steps)
    assert len(found) == min(steps, 35)
    assert found[0] == 681
    assert steps == 1 or found[-1] == 1
    assert list(found) == sorted(set(found), reverse=True)
    assert set(found) <= set(schedule.timesteps)


def test_unknown_schedules_are_refused() -> None:
    with refusal("unknown-schedule", kind=ModelError):
        schedule_from({"beta_schedule": "sigmoid"}, 10)
    with refusal("unknown-prediction", kind=ModelError):
        schedule_from({"prediction_type": "sample"}, 10)
