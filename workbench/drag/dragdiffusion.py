"""DragDiffusion: optimise one latent until its features have moved (arXiv 2306.14435)."""

from __future__ import annotations

import torch

from workbench.core.record import Stop
from workbench.diffusion.unet import frozen
from workbench.drag.denoise import denoise, reference_for, stuck
from workbench.drag.loop import Dragged, Progress, drag
from workbench.drag.problem import (
    DragOutcome,
    DragProblem,
    DragState,
    DragStep,
    OnDragStep,
)

Tensor = torch.Tensor


def run(problem: DragProblem, on_step: OnDragStep) -> DragOutcome:
    """ALGORITHM 2.6 to 2.8; with `resume`, up to `config.steps` further updates.

    Raises:
        NotFinite: when the numbers became NaN; carries the last finite latent.
    """
    denoiser, config, earlier = problem.denoiser(), problem.config, problem.resume
    t = problem.timesteps[0]
    before = earlier.updates if earlier else 0

    def heard(now: Progress) -> None:
        on_step(
            DragStep(
                stage="drag",
                step=before + now.updates,
                total=before + config.steps,
                loss=now.loss,
                points=now.points,
                distances=now.distances,
                clean=now.clean,
            )
        )  # fmt: skip

    with frozen(problem.unet):
        reference = reference_for(problem, on_step)
        dragged = drag(
            denoiser,
            earlier.latent.to(denoiser.device) if earlier else problem.start.to(denoiser.device),
            t,
            handles=earlier.points if earlier else problem.handles,
            targets=problem.targets,
            origins=problem.handles,
            lattice=problem.lattice,
            reference=reference.feature(denoiser, t, 0),
            reference_previous=reference.latents[1].to(denoiser.device),
            mask=problem.used_mask(),
            settings=config,
            adam=earlier.adam if earlier else None,
            on_step=heard,
        )
        clean = denoise(problem, denoiser, reference, dragged.latent, problem.timesteps, on_step)
    return outcome(problem, dragged, clean, t)


def outcome(problem: DragProblem, dragged: Dragged, clean: Tensor, t: int) -> DragOutcome:
    """Put the loop's account in order; earlier updates of a continued run are counted in."""
    earlier = problem.resume
    trajectory = tuple(dragged.trajectory)
    losses = tuple(dragged.losses)
    updates = dragged.updates
    if earlier is not None:
        trajectory = earlier.trajectory + trajectory[1:]
        losses = earlier.losses + losses
        updates += earlier.updates
    state = DragState(
        latent=dragged.latent, t=t, points=trajectory[-1], trajectory=trajectory,
        losses=losses, updates=updates, adam=dragged.adam or (earlier.adam if earlier else None),
    )  # fmt: skip
    return DragOutcome(
        latent=clean,
        trajectory=trajectory,
        distances=tuple(dragged.distances.tolist()),
        losses=losses,
        iterations=updates,
        stop=_stop(problem, dragged, updates),
        state=state,
        costs=tuple(dragged.costs.tolist()),
    )


def _stop(problem: DragProblem, dragged: Dragged, updates: int) -> Stop:
    if dragged.reached:
        return Stop.REACHED if updates else Stop.NO_MOTION
    arrived = dragged.distances < problem.config.stop_distance
    return Stop.STUCK if stuck(dragged.trajectory, arrived) else Stop.STEP_LIMIT
