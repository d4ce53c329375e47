"""`warp`: the picture moved along the arrows in one step, then briefly denoised; no optimisation.

FastDrag's idea (arXiv 2405.15769) of one step without optimisation, but the picture itself is moved
(`workbench.warping`), encoded again and put together with its noise at a moderate level, which keeps
what was moved and leaves few steps to go.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workbench.core.record import OnStep, StopReason
from workbench.diffusion.unet import Denoiser, frozen
from workbench.drag.denoise import denoise, reference_for
from workbench.drag.problem import DragOutcome, DragProblem, Reference
from workbench.drag.tracking import samples, track

Tensor = torch.Tensor

_LEVEL = 261  # DIFT's timestep for semantic correspondence with Stable Diffusion
_REACH = 12  # lattice pixels beyond both ends of the arrow
_MOST = 64


@torch.no_grad()
def run(problem: DragProblem, on_step: OnStep) -> DragOutcome:
    """Move, denoise in `problem.warp.denoise_steps`, and look where the points came to lie."""
    denoiser, options = problem.denoiser(), problem.warp
    with frozen(problem.unet):
        reference = reference_for(problem, on_step)
        first = start_index(problem, options.noise_level)
        t = problem.timesteps[first]
        moved = moved_latent(problem, reference, first)
        steps = problem.schedule.thinned(t, options.denoise_steps)
        clean = denoise(problem, denoiser, reference, moved, steps, on_step)
        points, distances, _ = located(problem, denoiser, clean)
    still = not len(points) or torch.equal(problem.handles, problem.targets)
    return DragOutcome(
        latent=clean, trajectory=(problem.handles, points), distances=tuple(distances.tolist()),
        losses=(), iterations=0, stop=StopReason.NO_MOTION if still else StopReason.ONE_STEP,
    )  # fmt: skip


def start_index(problem: DragProblem, noise_level: int) -> int:
    """Index of the first of the problem's timesteps that is not above a noise level."""
    return next(
        (i for i, t in enumerate(problem.timesteps) if t <= noise_level), problem.inverted - 1
    )


def moved_latent(problem: DragProblem, reference: Reference, index: int) -> Tensor:
    """The latent of the moved picture at timesteps[index], [1,C,h,w], with each place's own noise.

    z = sqrt(a) x0 + sqrt(1-a) eps, with x0 the original's clean latent, gives eps.
    """
    if problem.pixels is None:
        return reference.latents[index].to(problem.inversion_latents.device)
    schedule, t = problem.schedule, problem.timesteps[index]
    a = schedule.alpha(t)
    x0 = problem.inversion_latents[0].float()
    z = reference.latents[index].to(x0)
    eps = (z - a**0.5 * x0) / (1 - a) ** 0.5
    return schedule.noised(moved_clean(problem), eps, t)


def moved_clean(problem: DragProblem) -> Tensor:
    """Clean latent [1,C,h,w] of the moved picture; the original's own where no pixel changed."""
    x0, given = problem.inversion_latents[0].float(), problem.pixels
    if given is None:
        return x0
    moved = given.moved.to(x0.device)
    changed = (moved - given.picture.to(x0.device)).abs().amax(1, keepdim=True) > 1e-3
    cells = F.adaptive_max_pool2d(changed.float(), (x0.shape[-2], x0.shape[-1])) > 0
    return torch.where(cells, given.encode(moved).to(x0), x0)


@torch.no_grad()
def located(
    problem: DragProblem, denoiser: Denoiser, clean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Find each handle's feature in an edited clean latent, in the manner of DIFT.

    Original and result are noised alike to a moderate level, and the U-Net's features at that level are
    compared (Tang et al. 2023, arXiv 2306.03881).

    The search window is a square around the middle of the arrow that covers both its ends and
    `_REACH` beyond. The noise is drawn from a fixed seed, so that the answer is always the same.

    Returns:
        points [P,2], distances to the targets [P], mean feature difference at the points [P], CPU.
    """
    handles, targets = problem.handles.to(clean.device), problem.targets.to(clean.device)
    if not len(handles):
        return problem.handles.clone(), torch.zeros(0), torch.zeros(0)
    level = min(problem.schedule.timesteps, key=lambda t: abs(t - _LEVEL))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
    original = problem.inversion_latents[0].to(clean)
    before, after = (
        denoiser.feature(problem.schedule.noised(x0, noise, level), level)
        for x0 in (original, clean)
    )
    templates = samples(before, problem.lattice, handles)
    span = float((targets - handles).abs().amax())
    radius = min(_MOST, int(span / 2 + 0.5) + _REACH)
    found = track(after, problem.lattice, (handles + targets) / 2, templates, radius)
    distances = (targets - found.points).norm(dim=1)
    return found.points.cpu(), distances.cpu(), found.cost.cpu()
