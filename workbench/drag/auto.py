"""`auto`: the picture's own pixels moved, and the model only where that leaves something open.

The draft lets the model draw the cells that the move cannot vouch for (`workbench.warping.layers`),
with all others held at the moved picture on every noise level (RePaint, arXiv 2201.09865, without its
resampling). It needs neither LoRA nor inversion. Both it and the refined result are put together with
the moved pixels afterwards (`workbench.warping.compose`).

Refined, the moved picture is the start, the loop (`loop.py`, with the settings of `methods.py`) lets the
model agree to it, and one denoise draws the picture. A moved latent has the right feature at the target
from the first step, and a loop that stopped there would leave a picture whose denoising undoes half of
it. So points that have arrived stay supervised at their target, and the loop ends when all have arrived,
beyond doubt, and the loss has stopped falling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workbench.core.record import OnStep, StepInfo, StopReason
from workbench.diffusion.ddim import CLEAN
from workbench.diffusion.unet import frozen
from workbench.drag.problem import DragOutcome, DragProblem, Reference
from workbench.drag.warp import moved_clean, moved_latent, start_index

Tensor = torch.Tensor


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
    """The noise in the noisiest latent, which is sqrt(a) x0 + sqrt(1-a) noise."""
    a = problem.schedule.alpha(problem.timesteps[0])
    x0 = problem.inversion_latents[0].float()
    noise: Tensor = (problem.start.to(x0) - a**0.5 * x0) / (1 - a) ** 0.5
    return noise
