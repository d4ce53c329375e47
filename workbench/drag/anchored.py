"""Motion supervision anchored at the original, for a latent that may already have been warped.

The loss is GoodDrag's (arXiv 2404.07206): the patch at handle + shift is pulled to the *original*
handle's patch, so that errors of tracking do not add up in what is being moved. What differs is when
a point counts as done. A warped latent has the right feature at the target from the first step, and
a loop that stops there leaves a picture whose denoising undoes half of it; so points that have
arrived keep being supervised at their target, and the loop ends when all have arrived, beyond doubt,
and the loss has stopped falling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from workbench.accel.cuda_graphs import Recorded
from workbench.core.config import DragConfig
from workbench.diffusion.unet import Denoiser
from workbench.drag.loop import (
    Dragged,
    Progress,
    anchor_patches,
    kind_of,
    mask_loss,
    motion_loss,
    progress_of,
    read_turn,
)
from workbench.drag.optimizer import AdamState, LatentOptimiser
from workbench.drag.tracking import (
    Size,
    contrast,
    samples,
    track,
)

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Patience:
    """When an anchored drag is done."""

    arrived_weight: float = 1.0  # of a point within the stop distance; the others count 1
    doubt: float = 0.7  # cost over contrast above which a point has not been found
    least: int = 10  # updates before it may stop
    window: int = 5  # updates whose mean loss is compared with that of the same number before
    gain: float = 0.05  # share by which the loss must have fallen, to go on
    stall: int = 30  # updates in which the points must have come nearer, to go on


def anchored_drag(
    denoiser: Denoiser,
    latent: Tensor,
    t: int,
    *,
    handles: Tensor,
    targets: Tensor,
    origins: Tensor,
    lattice: Size,
    reference: Tensor,
    reference_previous: Tensor | None,
    mask: Tensor | None,
    settings: DragConfig,
    patience: Patience,
    adam: AdamState | None = None,
    losses: Sequence[float] = (),
    on_step: Callable[[Progress], None] = lambda _p: None,
) -> Dragged:
    """Optimise the latent, at most `settings.steps` updates.

    Each turn: one forward; track within `settings.track_radius` (but for the first turn); stop when
    done; loss of all points at handle + shift, where shift reaches at most to the target; the mask
    term; one Adam update.

    Args:
        denoiser: U-Net under fixed conditions.
        latent: start [1,C,h,w] at timestep t: the original's, or a warped one.
        t: timestep.
        handles: where the points are believed to be at the start [P,2]: the targets, if warped.
        targets: [P,2].
        origins: original handles [P,2], of which patches and templates are taken.
        lattice: (rows, cols).
        reference: the original's feature at t [1,C',fh,fw].
        reference_previous: its DDIM result [1,C,h,w]; needed with a mask.
        mask: [1,1,h,w], 1 = may change; None for no mask term.
        settings: steps, step size, radii, shift, mask weight, stop distance.
        patience: when to stop: all arrived and the loss settled, or no point comes nearer.
        adam: moments to continue with.
        losses: of a run that is continued; whether it has settled is judged on all of them.
        on_step: called once per turn, before its update; raises `Cancelled` to stop.

    Returns:
        As `drag`, `losses` with those given; `costs` are relative to the contrast: 0 is the same
        feature, 1 any place.

    Raises:
        NotFinite: when loss or features became NaN; carries the last finite latent.
    """
    device = latent.device
    held = settings.mask_weight if mask is not None and reference_previous is not None else 0.0
    optimiser = LatentOptimiser(
        latent, settings.learning_rate, half=denoiser.dtype == torch.float16, state=adam,
        graphs=denoiser.graphs,
    )  # fmt: skip
    points, goal = handles.to(device).clone(), targets.to(device)
    still = torch.equal(origins, targets)  # or there are none
    with torch.no_grad():
        templates = samples(reference, lattice, origins.to(device).floor())
        anchors = anchor_patches(reference, lattice, origins.to(device), settings.patch_radius)
        unit = contrast(reference, templates).clamp(min=1e-12)
    # the factor of GoodDrag's program, so that the mask weight means the same in all methods
    weight = float(max(1, 2 * settings.patch_radius) ** 2)

    def look(radius: int | None, last: bool) -> tuple[Tensor, ...]:
        """Forward, track (not if None), loss; reads `points` and the latent, changes neither."""
        eps: Tensor | None = None
        with torch.set_grad_enabled(not last):
            if held and not last:
                feature, eps = denoiser.both(optimiser.latent, t)
            else:
                feature = denoiser.feature(optimiser.latent, t)
            here, cost = points, torch.zeros_like(points[:, 0])
            if radius is not None:
                found = track(
                    feature.detach(), lattice, points, templates, radius, parity=settings.parity
                )
                here, cost = found.points, found.cost / unit
            distances = (goal - here).norm(dim=1)
            waiting = torch.where(distances < settings.stop_distance, patience.arrived_weight, 1.0)
            loss = motion_loss(
                feature, lattice, here, goal,
                radius=settings.patch_radius, max_shift=settings.max_shift, active=waiting,
                anchors=anchors, weight=weight,
            )  # fmt: skip
            if eps is not None and mask is not None and reference_previous is not None:
                previous = denoiser.schedule.step(optimiser.latent, eps, t)
                loss = loss + held * mask_loss(previous, reference_previous, mask)
        return here, distances, cost, loss, *(() if eps is None else (eps,))

    def turn(radius: int | None) -> tuple[Tensor, ...]:
        """The same with the gradient, which nobody may need: the device is not asked in between."""
        here, distances, cost, loss, *rest = look(radius, last=False)
        grad = optimiser.gradient(loss)
        return here, distances, cost, loss.detach(), *(r.detach() for r in rest), grad

    # a continued run was tracked on this very latent: only the doubt is needed once more
    at_first = 0 if losses else None
    first = Recorded(lambda: turn(at_first), denoiser.graphs)
    kind = ("anchored", latent.shape, len(points), held > 0, kind_of(denoiser, settings))
    later = Recorded(lambda: turn(settings.track_radius), denoiser.graphs, kind=kind)
    out = Dragged(latent.detach(), [handles.detach().cpu().clone()], losses=list(losses))
    if losses:
        out.trajectory.clear()  # the first turn below says where the points are
    pending: Tensor | None = None
    left: list[float] = []
    while True:
        last = out.updates >= settings.steps
        grad: Tensor | None = None
        if denoiser.graphs is None or still or settings.steps == 0:
            seen = look(settings.track_radius if out.updates else at_first, last)
        else:
            *parts, grad = later() if out.updates else first()
            seen = tuple(parts)
        here, distances, cost, loss, *rest = seen
        points.copy_(here)
        read_turn(
            out, points, distances, cost if out.losses or pending is not None else None, pending
        )
        out.latent = optimiser.latent.detach().clone()
        on_step(progress_of(out, denoiser, rest[0] if rest else None, t))
        arrived = out.distances < settings.stop_distance
        out.reached = bool((arrived & (out.costs < patience.doubt)).all())
        if out.updates > 0:
            left.append(float(out.distances.sum()))
        done = (out.reached and settled(out.losses, patience)) or stalled(left, patience)
        if last or done or still:
            break
        pending = loss.detach()
        optimiser.apply(optimiser.gradient(loss) if grad is None else grad)
        out.updates += 1
    out.adam = optimiser.state()
    return out


def stalled(left: Sequence[float], patience: Patience) -> bool:
    """Whether the last updates brought the points no nearer, half a lattice pixel in all.

    Further ones would only wear out the picture: the loss goes on falling a little for ever.

    Args:
        left: sum of all distances after each update of this run.
        patience: how many updates to wait.
    """
    n = patience.stall
    return len(left) > n and min(left[-n:]) > min(left[:-n]) - 0.5


def settled(losses: Sequence[float], patience: Patience) -> bool:
    """Whether the loss of the last updates is hardly below that of those before them."""
    n = patience.window
    if len(losses) < max(patience.least, 2 * n):
        return False
    now, before = sum(losses[-n:]), sum(losses[-2 * n : -n])
    return now > (1 - patience.gain) * before
