"""Denoise the original once per picture, and the edited latent with shared attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workbench.core.record import OnStep, StepInfo, ignore_steps
from workbench.diffusion.attention import MutualSelfAttention, ReferenceKV, sharing
from workbench.diffusion.ddim import CLEAN
from workbench.diffusion.unet import Denoiser
from workbench.drag.problem import DragProblem, Reference

Tensor = torch.Tensor

FEATURES_KEPT = 7  # timesteps whose feature a reference holds: GoodDrag drags at so many
KV_LIMIT = 640 << 20  # bytes; Stable Diffusion 1.5 at 512 x 512 in float16 needs 413 MB


@torch.no_grad()
def reference_of(
    problem: DragProblem, on_step: OnStep = ignore_steps, *, kv_limit: int = KV_LIMIT
) -> Reference:
    """Denoise the original once and keep what drags will ask for (arrows and mask play no part).

    Args:
        problem: picture, prompt and settings.
        on_step: progress, stage "reference".
        kv_limit: most bytes that the attention states may take; above it they are not kept.
    """
    denoiser = problem.denoiser()
    timesteps = problem.timesteps
    z = problem.start.to(denoiser.device)
    latents = [z]
    features: dict[int, Tensor] = {}
    kv: ReferenceKV | None = ReferenceKV()
    with (
        sharing(problem.unet, problem.config.sharing_start_layer, kv) as attention,
        denoiser.sharing(attention),
    ):
        attention.mode = "record" if kv_limit else "off"
        for i, t in enumerate(timesteps):
            attention.t = t
            if i < FEATURES_KEPT:
                features[t], eps = denoiser.both(z, t)
            else:
                eps = denoiser.eps(z, t)
            z = problem.schedule.step(z, eps, t)
            latents.append(z)
            if kv is not None and attention.kv.bytes / (i + 1) * len(timesteps) > kv_limit:
                attention.mode, kv = "off", None
                attention.kv.states.clear()
            on_step(StepInfo(stage="reference", step=i + 1, total=len(timesteps)))
    block, layer = Reference.facts(problem.config)
    kept = kv if kv is not None and kv.states else None
    return Reference(torch.stack(latents), features, kept, block, layer)


def reference_for(problem: DragProblem, on_step: OnStep) -> Reference:
    """The problem's own reference if it fits its settings, else a new one."""
    given = problem.reference
    if given is not None and given.fits(problem.config):
        return given
    return reference_of(problem, on_step)


@torch.no_grad()
def denoise(
    problem: DragProblem,
    denoiser: Denoiser,
    reference: Reference,
    edited: Tensor,
    timesteps: Sequence[int],
    on_step: OnStep = ignore_steps,
    *,
    share_from: int | None = None,
) -> Tensor:
    """DDIM from the edited latent at timesteps[0] to a clean one, reading the original's attention.

    Args:
        problem: settings.
        denoiser: U-Net under the problem's conditions.
        reference: of the original; its kept states are replayed, or, where there are none (or in
            parity mode), the original's row runs beside the edited one.
        edited: latent [1,C,h,w] at timesteps[0].
        timesteps: falling, each one of the problem's; none where GoodDrag's rounds took all of them,
            which leaves a latent that is clean already.
        on_step: progress, stage "denoise".
        share_from: index of the first of the problem's timesteps with shared attention;
            `sharing_start_step` of the settings when None.

    Returns:
        [1,C,h,w], float32.
    """
    config = problem.config
    if not timesteps:
        return edited
    first = config.sharing_start_step if share_from is None else share_from
    replay = reference.kv is not None and not config.parity
    z = edited
    indices = [problem.timesteps.index(t) for t in timesteps]
    ends = [*timesteps[1:], CLEAN]
    with (
        sharing(problem.unet, config.sharing_start_layer, reference.kv) as attention,
        denoiser.sharing(attention),
    ):
        for done, (i, (t, to)) in enumerate(
            zip(indices, zip(timesteps, ends, strict=True), strict=True), 1
        ):
            eps = _shared_eps(denoiser, attention, reference, z, t, i, first, replay)
            z = problem.schedule.step(z, eps, t, to)
            on_step(_step(problem, z, eps, t, done, len(timesteps)))
    return z


def _shared_eps(
    denoiser: Denoiser,
    attention: MutualSelfAttention,
    reference: Reference,
    z: Tensor,
    t: int,
    i: int,
    first: int,
    replay: bool,
) -> Tensor:
    attention.t = t
    if i < first:
        attention.mode = "off"
        return denoiser.eps(z, t)
    if replay:
        attention.mode = "replay"
        return denoiser.eps(z, t)
    attention.mode = "pairs"
    original = reference.latents[i].to(z)
    return denoiser.eps(torch.cat([original, z]), t)[1:]


def _step(problem: DragProblem, z: Tensor, eps: Tensor, t: int, done: int, total: int) -> StepInfo:
    return StepInfo(
        stage="denoise", step=done, total=total,
        clean=lambda: z if done == total else problem.schedule.clean(z, eps, t),
    )  # fmt: skip
