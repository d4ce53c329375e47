"""The drag methods, from latent to edited latent: their parameters, moved pixels first, denoising last.

| | DragDiffusion | GoodDrag | auto, refined |
|---|---|---|---|
| starts from | the inverted latent | the inverted latent | the moved picture at a medium level |
| pulls to | the patch at the handle now | the original's patch | the original's patch |
| points that arrived | rest | rest | stay supervised at the target |
| tracks | before each update | after every 3 updates | before each update |
| timesteps | the first | the first 7, one denoise step after each | that of the start |
| ends | all arrived | all arrived, or 10 trackings without motion | arrived and settled, or stalled |

`warp` (`latents.run_warp`) and the draft of `auto` (`draft`) optimise nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workbench.core.config import SPECS
from workbench.core.record import OnStep, StepInfo, StopReason, ignore_steps
from workbench.diffusion.ddim import CLEAN
from workbench.diffusion.unet import frozen
from workbench.drag.latents import (
    denoise,
    moved_clean,
    moved_latent,
    reference_for,
    run_warp,
    start_index,
)
from workbench.drag.loop import DragLoop, stuck
from workbench.drag.problem import (
    DragOutcome,
    DragProblem,
    DragState,
    Reference,
    StopCriteria,
    Supervision,
)

Tensor = torch.Tensor


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
        return run_warp(problem, on_step)
    if problem.config.drafts:
        return draft(problem, on_step)
    denoiser, rules, timesteps = problem.denoiser(), supervision(problem), problem.timesteps
    with frozen(problem.unet):
        reference = reference_for(problem, on_step)
        loop = DragLoop(denoiser, problem, rules, on_step)
        if problem.resume is not None:
            z, index = problem.resume.latent.to(denoiser.device), timesteps.index(problem.resume.t)
        elif problem.config.method == "auto":
            index, z, points = start(problem, reference)
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


def start(problem: DragProblem, reference: Reference) -> tuple[int, Tensor, Tensor]:
    """Index of the timestep to start at, the latent there [1,C,h,w], and where its handles are [P,2]."""
    options = problem.auto
    first = start_index(problem, options.start.noise_level)
    if options.warp_start and problem.pixels is not None:
        return first, moved_latent(problem, reference, first), problem.targets
    return first, reference.latents[first].to(problem.inversion_latents.device), problem.handles


@torch.no_grad()
def draft(problem: DragProblem, on_step: OnStep) -> DragOutcome:
    """Draw what the moved picture leaves open; the problem's `inversion_latents` are plainly noised.

    The result is the moved picture's own latent in every cell that can be trusted.

    Raises:
        Cancelled: passed through from `on_step`.
    """
    options, schedule = problem.auto.draft, problem.schedule
    clean = moved_clean(problem)
    cells = doubtful_cells(problem)
    if cells is not None and bool(cells.any()):
        with frozen(problem.unet):
            denoiser = problem.denoiser()
            first = start_index(problem, options.noise_level)
            steps = schedule.thinned(problem.timesteps[first], options.denoise_steps)
            noise = noise_of(problem)
            z = schedule.noised(clean, noise, steps[0])
            ends = [*steps[1:], CLEAN]
            for done, (t, to) in enumerate(zip(steps, ends, strict=True), 1):
                z = schedule.step(z, denoiser.eps(z, t), t, to)
                held = clean if to == CLEAN else schedule.noised(clean, noise, to)
                z = torch.where(cells, z, held)
                on_step(StepInfo(stage="denoise", step=done, total=len(steps)))
            clean = z
    still = problem.pixels is None
    points = problem.handles if still else problem.targets
    return DragOutcome(
        latent=clean, trajectory=(problem.handles, points),
        distances=tuple((problem.targets - points).norm(dim=1).tolist()), losses=(), iterations=0,
        stop=StopReason.NO_MOTION if still else StopReason.ONE_STEP,
    )  # fmt: skip


def doubtful_cells(problem: DragProblem) -> Tensor | None:
    """Latent cells [1,1,h,w] that hold a pixel which cannot be trusted; None where nothing moved."""
    if problem.pixels is None:
        return None
    size = (problem.inversion_latents.shape[-2], problem.inversion_latents.shape[-1])
    doubt = problem.pixels.doubt.to(problem.inversion_latents.device, torch.float32)
    found: Tensor = F.adaptive_max_pool2d(doubt[None, None], size) > problem.auto.doubted
    return found


def noise_of(problem: DragProblem) -> Tensor:
    """The noise [1,C,h,w] in the noisiest latent, which is sqrt(a) x0 + sqrt(1-a) noise."""
    a = problem.schedule.alpha(problem.timesteps[0])
    x0 = problem.inversion_latents[0].float()
    noise: Tensor = (problem.start.to(x0) - a**0.5 * x0) / (1 - a) ** 0.5
    return noise
