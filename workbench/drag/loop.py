"""Motion supervision: the losses, and DragDiffusion's loop.

Shi et al. 2024, arXiv 2306.14435, Eq. 3 to 6, in the arithmetic of the authors' program
(ALGORITHM 2.6 and 2.7) where that differs from the paper. Positions are lattice (row, col).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from workbench.accel.cuda_graphs import Recorded
from workbench.core.config import DragConfig
from workbench.diffusion.unet import Denoiser
from workbench.drag.optimizer import AdamState, LatentOptimiser, NotFinite
from workbench.drag.tracking import (
    Size,
    Tracked,
    inside,
    patches,
    samples,
    track,
)

Tensor = torch.Tensor


def motion_loss(
    feature: Tensor,
    lattice: Size,
    handles: Tensor,
    targets: Tensor,
    *,
    radius: int,
    max_shift: float | Tensor,
    active: Tensor,
    anchors: Tensor | None = None,
    weight: float | None = None,
) -> Tensor:
    """Pull what is at each handle towards its target: weight * mean |anchor - patch(handle + shift)|.

    shift = (target - handle)/distance * min(max_shift, distance). The anchor is detached: the patch
    at the handle in this very feature (DragDiffusion, Eq. 3), or `anchors` from the original picture
    (GoodDrag, arXiv 2404.07206). The mean is over channels and those patch cells that lie on the
    lattice; positions of the moved patch are clamped to it.

    Args:
        feature: native map [1,C,fh,fw] with gradient.
        lattice: (rows, cols).
        handles, targets: [P,2], on the feature's device.
        radius: of the patch.
        max_shift: longest shift, one for all or [P].
        active: [P] 1 for points that still move, 0 for those that have arrived.
        anchors: [P,C,2r+1,2r+1] of the original handles, NaN where that is off the lattice.
        weight: per point; (2r+1)^2 when None, as in DragDiffusion.

    Returns:
        Sum over active points, float32 scalar.
    """
    side = 2 * radius + 1
    away = targets - handles
    distance = away.norm(dim=1)
    stride = torch.minimum(distance, distance.new_zeros(()) + max_shift)
    shift = away * (stride / distance.clamp(min=1e-12))[:, None]
    corner = handles.floor() - radius  # the reference truncates; its handles are whole numbers
    if anchors is None:
        anchors = patches(feature.detach(), lattice, corner, side)
        valid = inside(corner, side, lattice)
    else:
        valid = anchors[:, 0].isfinite()
        anchors = anchors.nan_to_num(nan=0.0)
    moved = patches(feature, lattice, corner + shift, side)
    gap = (anchors - moved).abs() * valid[:, None]
    mean = gap.sum((1, 2, 3)) / (valid.sum((1, 2)) * feature.shape[1])
    scale = float(side * side) if weight is None else weight
    return scale * (mean * active).sum()


def anchor_patches(feature: Tensor, lattice: Size, handles: Tensor, radius: int) -> Tensor:
    """Patches of the original feature round the original handles, NaN off the lattice."""
    corner = handles.floor() - radius
    side = 2 * radius + 1
    found = patches(feature, lattice, corner, side)
    return found.masked_fill(~inside(corner, side, lattice)[:, None], math.nan)


def mask_loss(previous: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Sum |(z_{t-1} - reference z_{t-1}) (1 - M)|: what lies outside the mask stays (Eq. 4).

    previous, reference: [1,C,h,w]; mask M [1,1,h,w], 1 = may change.
    """
    return ((previous - reference) * (1.0 - mask)).abs().sum()


def latent_mask(mask: Tensor, size: Size) -> Tensor:
    """Mask of the working image on the latent: nearest to half the image, nearest again to `size`.

    mask: [1,1,H,W], painted > 0. Returns [1,1,h,w] float32 of 0 and 1.
    """
    half = (mask.shape[-2] // 2, mask.shape[-1] // 2)
    painted = (mask > 0).float()
    return F.interpolate(F.interpolate(painted, half, mode="nearest"), size, mode="nearest")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the loop stands after `updates` updates, tracked on the latent that these made."""

    updates: int
    points: Tensor  # [P,2] on the CPU
    distances: Tensor  # [P] on the CPU
    loss: float | None  # of the last update
    latent: Tensor  # [1,C,h,w] now
    clean: Callable[[], Tensor]  # predicted clean latent [1,C,h,w], computed only when called


@dataclass(slots=True)
class Dragged:
    """What the loop leaves behind."""

    latent: Tensor  # [1,C,h,w] float32
    trajectory: list[Tensor] = field(default_factory=list)  # [P,2] on the CPU; the start first
    distances: Tensor = field(default_factory=lambda: torch.zeros(0))
    costs: Tensor = field(default_factory=lambda: torch.zeros(0))  # of the last tracking, see there
    losses: list[float] = field(default_factory=list)
    updates: int = 0
    reached: bool = False
    adam: AdamState | None = None


def drag(
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
    adam: AdamState | None = None,
    on_step: Callable[[Progress], None] = lambda _p: None,
    on_gradient: Callable[[int, Tensor], None] | None = None,
) -> Dragged:
    """Optimise the latent until every handle is within `stop_distance`, at most `steps` updates.

    Each turn: one forward; track (but for the first turn: a fresh run has not moved, a continued one
    was tracked on this very latent, so that running on equals having run at once); stop if all arrived;
    loss of those that have not, plus the mask term; one Adam update. After the last update the
    points are tracked once more. Without a mask term the U-Net runs only up to the feature's block.

    Args:
        denoiser: U-Net under fixed conditions.
        latent: start [1,C,h,w] at timestep t.
        t: timestep.
        handles, targets: [P,2] lattice positions; not changed.
        origins: [P,2] original handles, whose reference features are the tracking templates.
        lattice: (rows, cols).
        reference: feature of the original latent [1,C',fh,fw].
        reference_previous: the original's DDIM result [1,C,h,w]; needed with a mask.
        mask: [1,1,h,w], 1 = may change; None for no mask term.
        settings: steps, step size, radii, mask weight, stop distance, tie rule.
        adam: moments to continue with.
        on_step: called once per turn, before its update; raises `Cancelled` to stop.
        on_gradient: sees (updates so far, gradient) of every update.

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
    with torch.no_grad():
        templates = samples(reference, lattice, origins.to(device).floor())

    def follow(feature: Tensor) -> Tracked:
        return track(
            feature.detach(), lattice, points, templates, settings.track_radius,
            parity=settings.parity,
        )  # fmt: skip

    def turn(tracking: bool) -> tuple[Tensor, ...]:
        """Forward, track, loss, gradient; reads `points` and the latent, changes neither."""
        eps: Tensor | None = None
        with torch.enable_grad():
            if held:
                feature, eps = denoiser.both(optimiser.latent, t)
            else:
                feature = denoiser.feature(optimiser.latent, t)
            here, cost = points, torch.zeros_like(points[:, 0])
            if tracking:
                found = follow(feature)
                here, cost = found.points, found.cost
            distances = (goal - here).norm(dim=1)
            loss = motion_loss(
                feature, lattice, here, goal,
                radius=settings.patch_radius, max_shift=settings.max_shift,
                active=(distances >= settings.stop_distance).float(),
            )  # fmt: skip
            if eps is not None and mask is not None and reference_previous is not None:
                previous = denoiser.schedule.step(optimiser.latent, eps, t)
                loss = loss + held * mask_loss(previous, reference_previous, mask)
            grad = optimiser.gradient(loss)
        kept = () if eps is None else (eps.detach(),)
        return here, distances, cost, loss.detach(), grad, *kept

    first = Recorded(lambda: turn(False), denoiser.graphs)
    kind = ("drag", latent.shape, len(points), held > 0, kind_of(denoiser, settings))
    later = Recorded(lambda: turn(True), denoiser.graphs, kind=kind)
    out = Dragged(latent.detach(), [handles.detach().cpu().clone()])
    pending: Tensor | None = None
    while out.updates < settings.steps:
        tracking = out.updates > 0
        # the gradient comes before it is known whether all have arrived: one backward too many at the
        # end, and no wait for the device in between
        here, distances, cost, loss, grad, *rest = later() if tracking else first()
        points.copy_(here)
        read_turn(out, points, distances, cost if tracking else None, pending)
        out.latent = optimiser.latent.detach().clone()  # its features are finite: worth keeping
        on_step(progress_of(out, denoiser, rest[0] if rest else None, t))
        out.reached = bool((out.distances < settings.stop_distance).all())
        if out.reached:
            break
        pending = loss
        optimiser.apply(grad)
        if on_gradient is not None:
            on_gradient(out.updates, grad)
        out.updates += 1
    else:  # where the last update has left the points
        cost = None
        if later.replays:  # with a gradient that nobody needs, yet sooner than kernel by kernel
            here, _, cost, *_ = later()
            points.copy_(here)
        elif out.updates:
            with torch.no_grad():
                found = follow(denoiser.feature(optimiser.latent, t))
            points.copy_(found.points)
            cost = found.cost
        distances = (goal - points).norm(dim=1)
        read_turn(out, points, distances, cost, pending)
        out.latent = optimiser.latent.detach().clone()
        on_step(progress_of(out, denoiser, None, t))
        out.reached = bool((out.distances < settings.stop_distance).all())
    out.adam = optimiser.state()
    return out


def kind_of(denoiser: Denoiser, settings: DragConfig) -> tuple[object, ...]:
    """What of a drag decides which kernels its turns run, beside shapes and number of points."""
    radii = settings.patch_radius, settings.track_radius
    return denoiser.rows, denoiser.block, *radii, settings.parity


def read_turn(
    out: Dragged,
    points: Tensor,
    distances: Tensor,
    cost: Tensor | None,
    loss: Tensor | None,
) -> None:
    """The turn's only wait for the device: points, distances, costs and the last loss at once."""
    n = len(points)
    costs = torch.zeros_like(distances) if cost is None else cost
    tail = [loss.reshape(1).float()] if loss is not None else []
    flat = torch.cat([points.flatten(), distances, costs, *tail]).cpu()
    if not bool(flat.isfinite().all()):
        raise NotFinite(
            f"The numbers of the drag became infinite after {out.updates} steps; use a lower "
            "learning rate, or full precision.",
            out.latent,
        )
    out.distances, out.costs = flat[2 * n : 3 * n], flat[3 * n : 4 * n]
    if loss is not None:
        out.losses.append(float(flat[-1]))
    if cost is not None:
        out.trajectory.append(flat[: 2 * n].reshape(n, 2))


def progress_of(out: Dragged, denoiser: Denoiser, eps: Tensor | None, t: int) -> Progress:
    """The account as it stands, for `on_step`; `eps` is the latent's noise, if it was predicted."""
    kept, latent = None if eps is None else eps.detach(), out.latent

    @torch.no_grad()
    def clean() -> Tensor:
        noise = denoiser.eps(latent, t) if kept is None else kept
        return denoiser.schedule.clean(latent, noise, t)

    points, loss = out.trajectory[-1], out.losses[-1] if out.losses else None
    return Progress(out.updates, points, out.distances, loss, latent, clean)
