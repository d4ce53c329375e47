"""GoodDrag: drag and denoise in turns, anchored at the original's features (arXiv 2404.07206)."""

from __future__ import annotations

import torch

from workbench.core.record import Stop
from workbench.diffusion.unet import Denoiser, frozen
from workbench.drag.alternating import (
    Handles,
    Original,
    drag_round,
    locate,
)
from workbench.drag.denoise import denoise, reference_for
from workbench.drag.problem import (
    DragOutcome,
    DragProblem,
    DragState,
    DragStep,
    OnDragStep,
    Reference,
)

Tensor = torch.Tensor


def run(problem: DragProblem, on_step: OnDragStep) -> DragOutcome:
    """GOODDRAG 2 to 6; with `resume`, up to `drag_rounds` further rounds from where it ended.

    Two things differ outside parity mode: an empty mask means no mask term (the authors' program
    freezes everything), and ties in tracking go to the nearest candidate. In both modes windows and
    patches are clamped to the picture, where the authors' program fails, and the points are tracked
    once more at the end.

    Raises:
        NotFinite: when the numbers became NaN; carries the last finite latent.
    """
    denoiser, config, earlier = problem.denoiser(), problem.config, problem.resume
    timesteps = problem.timesteps
    first = timesteps.index(earlier.t) if earlier else 0
    z = (earlier.latent if earlier else problem.start).to(denoiser.device)
    points = earlier.points if earlier else problem.handles
    handles = Handles.at(problem.handles, problem.targets, points, denoiser.device)
    mask = problem.used_mask()
    if mask is None and config.parity:
        mask = torch.zeros_like(z[:, :1])
    total = min(
        config.steps,
        config.drag_rounds * config.trackings_per_round * config.updates_per_tracking,
    )
    limit = min(first + config.drag_rounds, len(timesteps))
    dragged, index = z, first
    with frozen(problem.unet):
        reference = reference_for(problem, on_step)
        while index < limit and not handles.stopped and handles.updates < config.steps:
            t = timesteps[index]

            def heard(account: Handles, now: Tensor, eps: Tensor | None, t: int = t) -> None:
                on_step(_step(problem, denoiser, account, now, eps, t, total))

            dragged = drag_round(
                denoiser, z, t, handles, _original(reference, denoiser, t, index),
                lattice=problem.lattice, mask=mask, settings=config, on_update=heard,
            )  # fmt: skip
            with torch.no_grad():
                z = denoiser.schedule.step(dragged, denoiser.eps(dragged, t), t)
            index += 1
        last = max(first, index - 1)
        if not handles.stopped:
            original = _original(reference, denoiser, timesteps[last], last)
            locate(denoiser, dragged, timesteps[last], handles, original, problem.lattice, config)
        rest = timesteps[index:]
        clean = denoise(problem, denoiser, reference, z, rest, on_step, share_from=index)
    return _outcome(problem, handles, dragged, timesteps[last], clean)


def _original(reference: Reference, denoiser: Denoiser, t: int, index: int) -> Original:
    previous = reference.latents[index + 1].to(denoiser.device)
    return Original(reference.feature(denoiser, t, index), previous)


def _step(
    problem: DragProblem,
    denoiser: Denoiser,
    handles: Handles,
    z: Tensor,
    eps: Tensor | None,
    t: int,
    total: int,
) -> DragStep:
    kept, noise = z.clone(), eps

    @torch.no_grad()
    def clean() -> Tensor:
        found = denoiser.eps(kept, t) if noise is None else noise
        return problem.schedule.clean(kept, found, t)

    before = problem.resume.updates if problem.resume else 0
    return DragStep(
        stage="drag", step=before + handles.updates, total=before + total,
        loss=handles.losses[-1] if handles.losses else None,
        points=handles.trajectory[-1], distances=handles.distances,
        latent=kept, clean=clean,
    )  # fmt: skip


def _outcome(
    problem: DragProblem, handles: Handles, dragged: Tensor, t: int, clean: Tensor
) -> DragOutcome:
    earlier = problem.resume
    trajectory, losses, updates = tuple(handles.trajectory), tuple(handles.losses), handles.updates
    if earlier is not None:
        trajectory = earlier.trajectory + trajectory[1:]
        losses = earlier.losses + losses
        updates += earlier.updates
    stop = Stop.STUCK if handles.stuck else Stop.STEP_LIMIT
    if handles.reached:
        stop = Stop.REACHED if updates else Stop.NO_MOTION
    state = DragState(
        latent=dragged, t=t, points=trajectory[-1], trajectory=trajectory, losses=losses,
        updates=updates,
    )  # fmt: skip
    return DragOutcome(
        latent=clean, trajectory=trajectory, distances=tuple(handles.distances.tolist()),
        losses=losses, iterations=updates, stop=stop, state=state,
        costs=tuple(handles.costs.tolist()),
    )  # fmt: skip
