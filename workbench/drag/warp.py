"""`warp`: the picture moved along the arrows in one step, then briefly denoised; no optimisation.

FastDrag's idea (arXiv 2405.15769) of one step without optimisation, but what is moved is the picture
(`numerics.pieces`), encoded anew and put together with its noise at a moderate level, which keeps
what was moved and leaves few steps to go. Where there is no picture to move, or on demand, the latent
is moved: clean part and noise separately, so that sub-cell positions are exact and the noise keeps
its variance; the arrow that is strongest at a place takes it (winner takes all).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workbench.core.record import Stop
from workbench.diffusion.unet import frozen
from workbench.drag.denoise import denoise, reference_for
from workbench.drag.locate import located
from workbench.drag.options import WarpOptions
from workbench.drag.problem import (
    DragOutcome,
    DragProblem,
    OnDragStep,
    Pixels,
    Reference,
)
from workbench.drag.warping import pixel_warp, warp

Tensor = torch.Tensor


@torch.no_grad()
def run(problem: DragProblem, on_step: OnDragStep) -> DragOutcome:
    """Move, denoise in `problem.warp.denoise_steps`, and look where the points came to lie."""
    denoiser, options = problem.denoiser(), problem.warp
    with frozen(problem.unet):
        reference = reference_for(problem, on_step)
        first = start_index(problem, options.noise_level)
        t = problem.timesteps[first]
        moved = moved_latent(problem, reference, first, options)
        steps = problem.schedule.thinned(t, options.denoise_steps)
        clean = denoise(problem, denoiser, reference, moved, steps, on_step)
        points, distances, costs = located(problem, denoiser, clean)
    still = not len(points) or torch.equal(problem.handles, problem.targets)
    return DragOutcome(
        latent=clean, trajectory=(problem.handles, points), distances=tuple(distances.tolist()),
        losses=(), iterations=0, stop=Stop.NO_MOTION if still else Stop.ONE_STEP,
        costs=tuple(costs.tolist()),
    )  # fmt: skip


def start_index(problem: DragProblem, noise_level: int) -> int:
    """Index of the first of the problem's timesteps that is not above a noise level."""
    return next(
        (i for i, t in enumerate(problem.timesteps) if t <= noise_level), problem.inverted - 1
    )


def field_of(problem: DragProblem, options: WarpOptions) -> warp.Field:
    """Where each latent cell of the result comes from, inside the mask or around the arrows."""
    size = (problem.trail.shape[-2], problem.trail.shape[-1])
    device = problem.trail.device
    handles = warp.to_cells(problem.handles.to(device), problem.lattice, size)
    targets = warp.to_cells(problem.targets.to(device), problem.lattice, size)
    mask = problem.used_mask()
    area = mask[0, 0] if mask is not None else warp.arrow_mask(handles, targets, size)
    shape = {"sharpness": options.sharpness, "rigid": options.rigid}
    if options.stretch:
        return warp.backward_field(handles, targets, area, **shape)
    travel, priority = warp.displacement(handles, targets, area, **shape)
    return warp.forward_field(travel, priority, area)


def moved_latent(
    problem: DragProblem, reference: Reference, index: int, options: WarpOptions
) -> Tensor:
    """The original's latent at timesteps[index] with its content moved along the arrows [1,C,h,w].

    z = sqrt(a) x0 + sqrt(1-a) eps, with x0 the picture's own clean latent, gives eps. x0 is moved;
    eps stays the place's own where the moved picture is encoded anew, and moves along with a moved
    latent.
    """
    if torch.equal(problem.handles, problem.targets):
        return reference.latents[index].to(problem.trail.device)
    schedule, t = problem.schedule, problem.timesteps[index]
    a = schedule.alpha(t)
    x0 = problem.trail[0].float()
    z = reference.latents[index].to(x0)
    eps = (z - a**0.5 * x0) / (1 - a) ** 0.5
    if problem.pixels is not None and options.pixels:
        return schedule.noised(_moved_pixels(problem.pixels, x0, options.pieces), eps, t)
    field = field_of(problem, options)
    clean = warp.pick(x0, field)
    if options.fill_holes:
        clean = warp.fill(clean, field)
    return schedule.noised(clean, warp.pick(eps, field, noise=True), t)


def _moved_pixels(given: Pixels, x0: Tensor, options: pixel_warp.Pieces) -> Tensor:
    """Clean latent of the picture with its pieces moved; where no pixel changed, x0 itself."""
    device = x0.device
    picture = given.picture.to(device)
    size = (picture.shape[-2], picture.shape[-1])
    handles, targets = given.handles.to(device), given.targets.to(device)
    if given.mask is None:
        mask = warp.arrow_mask(handles, targets, size, margin=size[1] * 3.0 / x0.shape[-1])
    else:
        mask = given.mask.to(device, torch.float32)
    moved = pixel_warp.move_pieces(picture, mask, handles, targets, options)
    cells = (x0.shape[-2], x0.shape[-1])
    changed = F.adaptive_max_pool2d(moved.changed.float()[None, None], cells) > 0
    return torch.where(changed, given.encode(moved.picture).to(x0), x0)
