"""DDIM: noise schedule, deterministic step, inversion (Song et al. 2021, arXiv 2010.02502).

Everything takes a plain callable `denoise(z, t) -> eps`, so that a closed-form Gaussian denoiser
serves as well as a U-Net. `alpha` always means the cumulative product (the paper's alpha_t,
Stable Diffusion's alpha-bar): z_t = sqrt(alpha_t) x0 + sqrt(1 - alpha_t) noise.

Coefficients are Python floats: they neither promote half precision nor wait for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.core.errors import ModelError

Tensor = torch.Tensor
Denoise = Callable[[Tensor, int], Tensor]
"""(z [N,C,h,w], timestep) -> predicted noise, same shape."""
Tick = Callable[[int, int], None]
"""(steps finished, steps in all); raises `Cancelled` to stop."""

CLEAN = -1
"""The 'timestep' of a finished latent; its alpha is the schedule's final alpha, not 1."""


def no_tick(_done: int, _total: int) -> None:
    """The `Tick` that does nothing."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Noise levels of a model and the timesteps that are visited, noisiest first."""

    alphas: tuple[float, ...]  # alpha-bar per training timestep, falling
    final_alpha: float  # of a finished latent; Stable Diffusion: alphas[0], not 1
    timesteps: tuple[int, ...]  # falling
    prediction: str = "epsilon"  # or v_prediction

    # --- navigation -----------------------------------------------------------------------------

    def alpha(self, t: int) -> float:
        """alpha-bar at timestep t; `CLEAN` (any negative t) gives the final alpha."""
        return self.final_alpha if t < 0 else self.alphas[t]

    def previous(self, t: int) -> int:
        """The visited timestep with the next lower noise, or `CLEAN`."""
        i = self.timesteps.index(t)
        return self.timesteps[i + 1] if i + 1 < len(self.timesteps) else CLEAN

    def tail(self, n: int) -> tuple[int, ...]:
        """The last n timesteps, falling: where a picture inverted n steps is denoised again."""
        return self.timesteps[len(self.timesteps) - n :]

    def thinned(self, t: int, steps: int) -> tuple[int, ...]:
        """At most `steps` timesteps from t down to the last visited one, evenly spread, falling.

        Always begins with t itself; `step(..., to=next)` takes the wider strides.
        """
        rest = self.timesteps[self.timesteps.index(t) :]
        if steps >= len(rest):
            return rest
        gap = (len(rest) - 1) / max(steps - 1, 1)
        return tuple(rest[round(i * gap)] for i in range(steps))

    # --- arithmetic -----------------------------------------------------------------------------

    def noise_of(self, z: Tensor, out: Tensor, t: int) -> Tensor:
        """The predicted noise, given the model's output at (z, t).

        v = sqrt(a) eps - sqrt(1-a) x0, hence eps = sqrt(a) v + sqrt(1-a) z (arXiv 2202.00512).
        """
        if self.prediction == "epsilon":
            return out
        a = self.alpha(t)
        return math.sqrt(a) * out + math.sqrt(1 - a) * z

    def clean(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        """Predicted clean latent x0 = (z - sqrt(1-a) eps) / sqrt(a), not clipped."""
        a = self.alpha(t)
        return (z - math.sqrt(1 - a) * eps) / math.sqrt(a)

    def noised(self, x0: Tensor, eps: Tensor, t: int) -> Tensor:
        """sqrt(a) x0 + sqrt(1-a) eps."""
        a = self.alpha(t)
        return math.sqrt(a) * x0 + math.sqrt(1 - a) * eps

    def step(self, z: Tensor, eps: Tensor, t: int, to: int | None = None) -> Tensor:
        """Deterministic DDIM step (eta 0) from t to the next visited level, or to `to`."""
        goal = self.previous(t) if to is None else to
        return self.noised(self.clean(z, eps, t), eps, goal)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noise each item to its own level: x0, noise [N,...]; t [N] integers."""
        a = self._levels(t, x0)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    def training_target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Training target of the model at `add_noise(x0, noise, t)`: noise, or v."""
        if self.prediction == "epsilon":
            return noise
        a = self._levels(t, x0)
        return a.sqrt() * noise - (1 - a).sqrt() * x0

    def _levels(self, t: Tensor, like: Tensor) -> Tensor:
        table = torch.tensor(self.alphas, dtype=like.dtype)
        picked = table[t.cpu()].to(like.device, non_blocking=True)
        return picked.reshape(-1, *[1] * (like.ndim - 1))


def schedule_from(config: Mapping[str, Any], steps: int) -> Schedule:
    """Schedule of `steps` DDIM steps for a model's `scheduler_config.json`.

    Timesteps are spaced as DDIM was published with Stable Diffusion ("leading", plus
    `steps_offset`), unless the configuration asks for "trailing", which models with zero terminal
    signal need (arXiv 2305.08891).

    Raises:
        ModelError: for a beta schedule or prediction type that is not known.
    """
    alphas = _alphas(config)
    total = len(alphas)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"The model predicts {prediction!r}; only epsilon and v_prediction are known.",
            code="unknown-prediction",
        )
    if config.get("timestep_spacing") == "trailing":
        spaced = [round(total - i * total / steps) - 1 for i in range(steps)]
    else:
        offset = int(config.get("steps_offset", 1))
        spaced = [(total // steps) * i + offset for i in reversed(range(steps))]
    timesteps = tuple(min(max(t, 0), total - 1) for t in spaced)
    final = 1.0 if config.get("set_alpha_to_one", False) else alphas[0]
    return Schedule(alphas, final, timesteps, prediction)


def _alphas(config: Mapping[str, Any]) -> tuple[float, ...]:
    """alpha-bar per training timestep, in float32 as every Stable Diffusion trainer computed it."""
    total = int(config.get("num_train_timesteps", 1000))
    low, high = config.get("beta_start", 0.00085), config.get("beta_end", 0.012)
    kind = config.get("beta_schedule", "scaled_linear")
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(low**0.5, high**0.5, total, dtype=torch.float32) ** 2
    elif kind == "linear":
        betas = torch.linspace(low, high, total, dtype=torch.float32)
    elif kind == "squaredcos_cap_v2":
        bar = [math.cos((i / total + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(total + 1)]
        betas = torch.tensor([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(total)])
    else:
        raise ModelError(
            f"The model's noise schedule is {kind!r}; known are scaled_linear, linear and "
            "squaredcos_cap_v2.",
            code="unknown-schedule",
        )
    alphas = torch.cumprod(1.0 - betas, dim=0)
    if config.get("rescale_betas_zero_snr", False):
        root = alphas.sqrt()  # shift to end at 0, scale to keep the start (arXiv 2305.08891)
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return tuple(float(a) for a in alphas)


@torch.no_grad()
def invert(
    denoise: Denoise, z: Tensor, schedule: Schedule, n: int, on_step: Tick = no_tick
) -> Tensor:
    """Run DDIM backwards for the n least noisy timesteps (docs/algorithm.md 1.3).

    For each visited tau, from low to high, with s the level below: eps is asked at the *later* level
    tau on the earlier latent (z_s is close to z_tau), x0 follows from eps at s, and
    z <- sqrt(a_tau) x0 + sqrt(1 - a_tau) eps.

    Args:
        denoise: noise predictor.
        z: clean latent [1,C,h,w].
        schedule: noise levels.
        n: number of steps.
        on_step: progress.

    Returns:
        Latents [n+1,1,C,h,w], from the clean latent to the one at `schedule.tail(n)[0]`.
    """
    latents = [z]
    level = CLEAN
    for done, tau in enumerate(reversed(schedule.tail(n)), 1):
        eps = denoise(z, tau)
        z = schedule.noised(schedule.clean(z, eps, level), eps, tau)
        latents.append(z)
        level = tau
        on_step(done, n)
    return torch.stack(latents)


@torch.no_grad()
def sample(
    denoise: Denoise,
    z: Tensor,
    schedule: Schedule,
    timesteps: Sequence[int],
    on_step: Tick = no_tick,
) -> Tensor:
    """DDIM from `timesteps[0]` through each of `timesteps` to clean.

    Returns:
        All latents [len+1,N,C,h,w], the given one first, the clean one last.
    """
    latents = [z]
    for done, t in enumerate(timesteps, 1):
        to = timesteps[done] if done < len(timesteps) else CLEAN
        z = schedule.step(z, denoise(z, t), t, to)
        latents.append(z)
        on_step(done, len(timesteps))
    return torch.stack(latents)
