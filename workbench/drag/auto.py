"""`auto`: a warped start, then motion supervision anchored at the original; our own method.

The warp (`methods/warp.py`) puts every handle where it belongs in one step, the anchored loop
(`numerics/anchored.py`) lets the model agree to it, and one denoise draws the picture. Each alone is
worse: the warp leaves seams that the denoise undoes, and the loop alone spends its updates on the way.
"""

from __future__ import annotations

import torch

from workbench.core.record import Stop
from workbench.diffusion.unet import frozen
from workbench.drag.anchored import anchored_drag
from workbench.drag.denoise import denoise, reference_for, stuck
from workbench.drag.loop import Dragged, Progress
from workbench.drag.problem import (
    DragOutcome,
    DragProblem,
    DragState,
    DragStep,
    OnDragStep,
    Reference,
)
from workbench.drag.warp import moved_latent, start_index

Tensor = torch.Tensor


def run(problem: DragProblem, on_step: OnDragStep) -> DragOutcome:
    """Warp, refine, denoise; with `resume`, up to `config.steps` further updates and no new warp.

    Raises:
        NotFinite: when the numbers became NaN; carries the last finite latent.
    """
    denoiser, config, earlier = problem.denoiser(), problem.config, problem.resume
    before = earlier.updates if earlier else 0

    def heard(now: Progress) -> None:
        on_step(
            DragStep(
                stage="drag", step=before + now.updates, total=before + config.steps,
                loss=now.loss, points=now.points, distances=now.distances,
                latent=now.latent, clean=now.clean,
            )
        )  # fmt: skip

    with frozen(problem.unet):
        reference = reference_for(problem, on_step)
        if earlier:
            t = earlier.t
            first = problem.timesteps.index(t)
            z, points = earlier.latent.to(denoiser.device), earlier.points
        else:
            first, z, points = _start(problem, reference)
            t = problem.timesteps[first]
        dragged = anchored_drag(
            denoiser,
            z,
            t,
            handles=points,
            targets=problem.targets,
            origins=problem.handles,
            lattice=problem.lattice,
            reference=reference.feature(denoiser, t, first),
            reference_previous=reference.latents[first + 1].to(denoiser.device),
            mask=problem.used_mask(),
            settings=config,
            patience=problem.auto.patience,
            adam=earlier.adam if earlier else None,
            losses=earlier.losses if earlier else (),
            on_step=heard,
        )
        timesteps = problem.timesteps[first:]
        clean = denoise(problem, denoiser, reference, dragged.latent, timesteps, on_step)
    return _outcome(problem, dragged, clean, t)


def _start(problem: DragProblem, reference: Reference) -> tuple[int, Tensor, Tensor]:
    """Index of the first timestep, the latent there, and where its handles are [P,2]."""
    options = problem.auto
    first = start_index(problem, options.start.noise_level)
    if options.warp_start and problem.pixels is not None:
        return first, moved_latent(problem, reference, first), problem.targets
    return first, reference.latents[first].to(problem.trail.device), problem.handles


def _outcome(problem: DragProblem, dragged: Dragged, clean: Tensor, t: int) -> DragOutcome:
    """Put the loop's account in order; earlier updates of a continued run are counted in."""
    earlier = problem.resume
    trajectory, losses = tuple(dragged.trajectory), tuple(dragged.losses)
    updates = dragged.updates
    if earlier is None:
        trajectory = (problem.handles.clone(), *trajectory)
    else:
        trajectory = earlier.trajectory + trajectory[1:]
        updates += earlier.updates
    state = DragState(
        latent=dragged.latent, t=t, points=trajectory[-1], trajectory=trajectory,
        losses=losses, updates=updates, adam=dragged.adam or (earlier.adam if earlier else None),
    )  # fmt: skip
    return DragOutcome(
        latent=clean, trajectory=trajectory, distances=tuple(dragged.distances.tolist()),
        losses=losses, iterations=updates, stop=_stop(problem, dragged, updates), state=state,
        costs=tuple(dragged.costs.tolist()),
    )  # fmt: skip


def _stop(problem: DragProblem, dragged: Dragged, updates: int) -> Stop:
    if torch.equal(problem.handles, problem.targets):
        return Stop.NO_MOTION
    if dragged.reached:
        return Stop.REACHED
    if dragged.updates < problem.config.steps:
        return Stop.STUCK
    arrived = dragged.distances < problem.config.stop_distance
    return Stop.STUCK if stuck(dragged.trajectory, arrived) else Stop.STEP_LIMIT
