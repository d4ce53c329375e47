"""`auto`: a warped start, then motion supervision anchored at the original; our own method.

The warp (`warp.py`) puts every handle where it belongs in one step, the loop (`loop.py`, with the
settings of `methods.py`) lets the model agree to it, and one denoise draws the picture. Each alone is
worse: the warp leaves seams that the denoise undoes, and the loop alone spends its updates on the way.
A warped latent has the right feature at the target from the first step, and a loop that stopped there
would leave a picture whose denoising undoes half of it. So points that have arrived stay supervised at
their target, and the loop ends when all have arrived, beyond doubt, and the loss has stopped falling.
"""

from __future__ import annotations

import torch

from workbench.drag.problem import DragProblem, Reference
from workbench.drag.warp import moved_latent, start_index

Tensor = torch.Tensor


def start(problem: DragProblem, reference: Reference) -> tuple[int, Tensor, Tensor]:
    """Index of the timestep to start at, the latent there [1,C,h,w], and where its handles are [P,2]."""
    options = problem.auto
    first = start_index(problem, options.start.noise_level)
    if options.warp_start and problem.pixels is not None:
        return first, moved_latent(problem, reference, first), problem.targets
    return first, reference.latents[first].to(problem.trail.device), problem.handles
