"""A method run on a recorded case, each of its updates done from the recorded latent.

A drag follows signs: of every |difference| in its loss only the sign reaches the gradient, so that a
difference of 1e-7 may turn an update by 0.4, and two correct programs (or one program on two
processors) part for good after some dozens of updates. Nothing in a single update is chaotic. So the
method runs whole, with its own loop, tracking, losses and denoising, but whenever it applies an update
the recorded gradient and the recorded latent take the place of its own, which are kept for comparison.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from golden import Case, Micro, worst

from workbench.core.record import StepInfo
from workbench.drag import methods
from workbench.drag.latents import LatentOptimiser
from workbench.drag.problem import DragOutcome, Reference
from workbench.drag.tracking import patches

Tensor = torch.Tensor

NEAR = 4e-6
"""|difference| below which two correct programs may disagree about its sign.

Differences are of numbers around 1 that each program computes to about 1e-6 (see noise_floor.py).
"""


@dataclass
class Forced:
    """What the method computed of its own, while it was led along the recorded run."""

    starts: list[Tensor] = field(default_factory=list)  # of each optimiser: one, or one per round
    grads: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)  # our Adam's, fed with recorded gradients
    points: dict[int, Tensor] = field(default_factory=dict)  # [P,2] known after so many updates
    outcome: DragOutcome | None = None  # None when the run was ended after some updates


@contextlib.contextmanager
def led(case: Case) -> Iterator[Forced]:
    """Lead the optimiser of any drag in this block along the case's recorded run."""
    seen = Forced()
    begin, apply = LatentOptimiser.__init__, LatentOptimiser.apply

    def init(self: LatentOptimiser, latent: Tensor, *given: object, **more: object) -> None:
        seen.starts.append(latent.detach().clone())
        begin(self, case.start_of_round(len(seen.starts) - 1), *given, **more)

    @torch.no_grad()
    def applied(self: LatentOptimiser, grad: Tensor) -> None:
        k = len(seen.grads)
        seen.grads.append(grad.detach().clone())
        apply(self, case.tensors["drag_grads"][k])
        seen.latents.append(self.latent.detach().clone())
        self.latent.copy_(case.tensors["drag_latents"][k])

    with (
        mock.patch.object(LatentOptimiser, "__init__", init),
        mock.patch.object(LatentOptimiser, "apply", applied),
    ):
        yield seen


class _Enough(BaseException):
    """The drag is over, and its denoising is not wanted."""


def forced(
    case: Case, micro: Micro, updates: int | None = None, reference: Reference | None = None
) -> Forced:
    """Run the case's method, led along; with `updates`, only that many, and no denoising."""
    changes = {} if updates is None else {"steps": updates}
    problem = dataclasses.replace(case.problem(micro, **changes), reference=reference)

    with led(case) as seen, contextlib.suppress(_Enough):

        def heard(step: StepInfo) -> None:
            if step.stage == "denoise" and updates is not None:
                raise _Enough
            if step.stage == "drag" and step.points is not None:
                seen.points[step.step] = torch.tensor([[p.y, p.x] for p in step.points])

        seen.outcome = methods.run(problem, heard)
    return seen


Terms = list[tuple[Tensor, float]]
"""[(differences, weight)]: a loss is the sum of weight * |differences|."""


def terms(case: Case, micro: Micro, k: int) -> tuple[Tensor, Terms]:
    """The latent before update k, and the terms of its loss from there.

    Written down here a second time, from the papers, for what `forced` computes by the method's own
    loop. Points and anchors are the recorded ones.
    """
    z = case.before(k).clone().requires_grad_(True)
    config, points = case.config(), case.points_at(k)
    feature, eps = case.denoiser(micro).both(z, case.timestep(k))
    away = case.targets - points
    distance = away.norm(dim=1, keepdim=True)
    shift = away / distance.clamp(min=1e-9) * distance.clamp(max=config.max_shift)
    corner, side = points - config.patch_radius, 2 * config.patch_radius + 1
    if case.gooddrag:
        anchors = case.tensors["anchor_patch"][case.round_of(k)]
        scale = float((side - 1) ** 2)  # as their program has it
    else:
        anchors = patches(feature.detach(), case.feature_grid, corner, side)
        scale = float(side**2)
    moved = patches(feature, case.feature_grid, corner + shift, side)
    motion = (anchors - moved)[distance[:, 0] >= config.stop_distance]
    found = [(motion, scale / moved[0].numel())]
    if case.held and k > 0:  # before the first update it is exactly 0, in both programs
        previous = micro.schedule.step(z, eps, case.timestep(k))
        outside = (case.mask == 0).expand_as(z)
        gap = (previous - case.original_after(k))[outside]
        found.append((gap, config.mask_weight))
    return z, found


def without_flips(grad: Tensor, golden: Tensor, z: Tensor, found: Terms) -> tuple[float, list[int]]:
    """What is left of grad - golden when terms within `NEAR` of 0 may have had any sign in either.

    A term whose sign is s contributes s * d(weight * term), s in -1, 0, 1; so two programs differ by a
    whole number from -2 to 2 of these per near term. The numbers come from least squares (some
    unknowns, hundreds of equations) and are rounded, so that nothing else can hide in them.

    Returns:
        the largest difference left, and the number found for each near term.
    """
    gap = (grad - golden).flatten().double()
    parts: list[Tensor] = []
    for values, weight in found:
        flat = values.flatten()
        for i in (flat.detach().abs() < NEAR).nonzero()[:, 0].tolist():
            (part,) = torch.autograd.grad(weight * flat[i], z, retain_graph=True)
            parts.append(part.flatten().double())
    if not parts:
        return float(gap.abs().max()), []
    assert len(parts) <= 0.02 * sum(values.numel() for values, _ in found), "they are no exception"
    basis = torch.stack(parts, dim=1)
    turns = torch.linalg.lstsq(basis, gap[:, None], driver="gelsd").solution[:, 0]
    turns = turns.round().clamp(-2, 2)
    return float((gap - basis @ turns).abs().max()), [int(n) for n in turns]


def difference(case: Case, micro: Micro, k: int, grad: Tensor) -> float:
    """Largest difference of a gradient from the recorded one of update k, turned signs apart."""
    golden = case.tensors["drag_grads"][k]
    plain = worst(grad, golden)
    if plain < 1e-5:
        return plain
    return without_flips(grad, golden, *terms(case, micro, k))[0]
