"""Where the handles' features are in a finished result, by the model's own features.

In the manner of DIFT (Tang et al. 2023, arXiv 2306.03881): original and result are noised alike to a
moderate level, the U-Net's features at that level are compared.
"""

from __future__ import annotations

import torch

from workbench.diffusion.unet import Denoiser
from workbench.drag.problem import DragProblem
from workbench.drag.tracking import samples, track

Tensor = torch.Tensor

_LEVEL = 261  # DIFT's timestep for semantic correspondence with Stable Diffusion
_REACH = 12  # lattice pixels beyond both ends of the arrow
_MOST = 64


@torch.no_grad()
def located(
    problem: DragProblem, denoiser: Denoiser, clean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Find each handle's feature in an edited clean latent.

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
