"""The drag methods: how each supervises motion, and the run from latent to edited latent.

| | DragDiffusion | GoodDrag | auto, refined |
|---|---|---|---|
| starts from | the inverted latent | the inverted latent | the moved picture at a medium level |
| pulls to | the patch at the handle now | the original's patch | the original's patch |
| points that arrived | rest | rest | stay supervised at the target |
| tracks | before each update | after every 3 updates | before each update |
| timesteps | the first | the first 7, one denoise step after each | that of the start |
| ends | all arrived | all arrived, or 10 trackings without motion | arrived and settled, or stalled |

`warp` and the draft of `auto` optimise nothing; see there.
"""

from __future__ import annotations

import torch

from workbench.core.config import SPECS
from workbench.core.record import OnStep, StopReason, ignore_steps
from workbench.diffusion.unet import frozen
from workbench.drag import auto, warp
from workbench.drag.denoise import denoise, reference_for
from workbench.drag.loop import DragLoop, stuck
from workbench.drag.problem import DragOutcome, DragProblem, DragState, StopCriteria, Supervision


def supervision(problem: DragProblem) -> Supervision:
    """The settings of the loop for the problem's method."""
    config = problem.config
    if config.method == "gooddrag":
        return Supervision(
            anchored=True,
            rounds=config.drag_rounds,
            trackings=config.trackings_per_round,
            updates_per_tracking=config.updates_per_tracking,
            stop=StopCriteria(unmoved=config.no_change_limit),
        )
    if config.method == "auto":
        return Supervision(anchored=True, arrived_weight=1.0, stop=problem.auto.stop)
    return Supervision()


def run(problem: DragProblem, on_step: OnStep = ignore_steps) -> DragOutcome:
    """Drag by the method of `problem.config`, then denoise; with `resume`, go on from there.

    GoodDrag's rounds differ from its authors' program in three points: outside parity mode an empty
    mask means no mask term (theirs freezes everything) and ties in tracking go to the nearest
    candidate; and the points are tracked once more at the end.

    Raises:
        NotFinite: when the numbers became NaN; carries the last finite latent.
        Cancelled: passed through from `on_step`.
    """
    if not SPECS[problem.config.method].optimises:
        return warp.run(problem, on_step)
    if problem.config.drafts:
        return auto.draft(problem, on_step)
    denoiser, rules, timesteps = problem.denoiser(), supervision(problem), problem.timesteps
    with frozen(problem.unet):
        reference = reference_for(problem, on_step)
        loop = DragLoop(denoiser, problem, rules, on_step)
        if problem.resume is not None:
            z, index = problem.resume.latent.to(denoiser.device), timesteps.index(problem.resume.t)
        elif problem.config.method == "auto":
            index, z, points = auto.start(problem, reference)
            loop.place(points)
        else:
            z, index = problem.start.to(denoiser.device), 0
        dragged, at = z, index
        end = min(index + max(1, rules.rounds), len(timesteps))
        while index < end and not loop.ended and loop.updates < loop.limit:
            at = index
            dragged = z = loop.drag(
                z, timesteps[at], reference.original(denoiser, timesteps[at], at)
            )
            if not rules.rounds:
                break
            with torch.no_grad():
                z = denoiser.schedule.step(z, denoiser.eps(z, timesteps[at]), timesteps[at])
            index += 1
        loop.finish(dragged, timesteps[at])
        share_from = index if rules.rounds else None
        clean = denoise(
            problem, denoiser, reference, z, timesteps[index:], on_step, share_from=share_from
        )
    state = DragState(
        latent=dragged, t=timesteps[at], points=loop.trajectory[-1],
        trajectory=tuple(loop.trajectory), losses=tuple(loop.losses),
        updates=loop.before + loop.updates, adam=None if rules.rounds else loop.adam,
    )  # fmt: skip
    return DragOutcome(
        latent=clean, trajectory=state.trajectory, distances=tuple(loop.distances.tolist()),
        losses=state.losses, iterations=state.updates, stop=_stop(problem, loop), state=state,
    )  # fmt: skip


def _stop(problem: DragProblem, loop: DragLoop) -> StopReason:
    """Why the drag ended."""
    least = problem.config.stop_distance
    away = (problem.targets - problem.handles).norm(dim=1)
    if not bool(away.any()) or (bool((away < least).all()) and not loop.before + loop.updates):
        return StopReason.NO_MOTION
    if loop.reached:
        return StopReason.REACHED
    resting = stuck(loop.trajectory, loop.distances < least)
    return StopReason.STUCK if loop.ended or resting else StopReason.STEP_LIMIT
