"""GoodDrag's drag round: updates anchored at the original's features, tracked every few of them.

Zhang et al. 2024, arXiv 2404.07206, in the arithmetic of the authors' program (GOODDRAG 4). Rounds
alternate with denoising steps; that is put together in `workbench.drag.gooddrag`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from workbench.core.config import DragConfig
from workbench.diffusion.unet import Denoiser
from workbench.drag.loop import anchor_patches, mask_loss, motion_loss
from workbench.drag.optimizer import LatentOptimiser, NotFinite
from workbench.drag.tracking import Size, samples, track

Tensor = torch.Tensor


@dataclass(slots=True)
class Handles:
    """The points of a drag and its account, across rounds. Positions are lattice (row, col)."""

    origins: Tensor  # [P,2] original handles, on the device
    targets: Tensor  # [P,2], on the device
    points: Tensor  # [P,2] now, on the device
    trajectory: list[Tensor]  # [P,2] on the CPU, the start first
    distances: Tensor  # [P] on the CPU
    costs: Tensor  # [P] on the CPU: of the last tracking
    losses: list[float] = field(default_factory=list)
    updates: int = 0
    unmoved: int = 0  # trackings in a row in which no point moved
    reached: bool = False
    stuck: bool = False
    good: tuple[Tensor, int] | None = (
        None  # last latent whose features were finite, and its timestep
    )

    @classmethod
    def at(cls, origins: Tensor, targets: Tensor, points: Tensor, device: torch.device) -> Handles:
        """Points before the first tracking."""
        distances = (targets - points).norm(dim=1).cpu()
        return cls(
            origins.to(device), targets.to(device), points.to(device).clone(),
            [points.detach().cpu().clone()], distances, torch.zeros_like(distances),
        )  # fmt: skip

    @property
    def stopped(self) -> bool:
        """No further round."""
        return self.reached or self.stuck


@dataclass(frozen=True, slots=True)
class Original:
    """The undragged picture at the round's timestep."""

    feature: Tensor  # F0[t] [1,C',fh,fw]
    previous: Tensor  # O[t]: its latent [1,C,h,w] after the DDIM step


OnUpdate = Callable[[Handles, Tensor, Tensor | None], None]
"""(account, latent now, noise predicted for the latent before, if it was)."""


def drag_round(
    denoiser: Denoiser,
    latent: Tensor,
    t: int,
    handles: Handles,
    original: Original,
    *,
    lattice: Size,
    mask: Tensor | None,
    settings: DragConfig,
    on_update: OnUpdate = lambda _h, _z, _e: None,
    on_gradient: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Drag at one timestep: at most trackings_per_round x updates_per_tracking updates.

    The points are tracked on entering and after every `updates_per_tracking` updates, then with the
    feature of the forward before the last of them. Ends for good when all points have arrived, or
    none has moved for `no_change_limit` trackings; Adam's moments live for one round.

    Args:
        denoiser: U-Net under fixed conditions.
        latent: [1,C,h,w] at t.
        t: timestep.
        handles: changed in place.
        original: the undragged picture at t.
        lattice: (rows, cols).
        mask: [1,1,h,w], 1 = may change; None for no mask term.
        settings: rates, radii and limits; `steps` bounds all rounds together.
        on_update: called after each update; raises `Cancelled` to stop.
        on_gradient: sees every gradient.

    Returns:
        The dragged latent [1,C,h,w].

    Raises:
        NotFinite: when loss or features became NaN; carries the last finite latent.
    """
    optimiser = LatentOptimiser(
        latent, settings.learning_rate, half=denoiser.dtype == torch.float16
    )
    with torch.no_grad():
        templates = samples(original.feature, lattice, handles.origins.floor())
        anchors = anchor_patches(original.feature, lattice, handles.origins, settings.patch_radius)
    held = settings.mask_weight if mask is not None else 0.0
    # the authors' factor is (2 r)^2, though the patch has (2 r + 1)^2 cells
    weight = float(max(1, 2 * settings.patch_radius) ** 2)
    trackings, since, entered = 0, 0, False
    pending: list[Tensor] = []
    active = torch.ones_like(handles.points[:, 0])
    while trackings < settings.trackings_per_round and handles.updates < settings.steps:
        with torch.enable_grad():
            eps: Tensor | None = None
            if held:
                feature, eps = denoiser.both(optimiser.latent, t)
            else:
                feature = denoiser.feature(optimiser.latent, t)
            if not entered:
                active = _follow(handles, feature, lattice, templates, settings, [])
                handles.good = latent.detach().float(), t
                entered = True
            # arrival can only change where points were tracked, so this asks no device
            handles.reached = bool((handles.distances < settings.stop_distance).all())
            handles.stuck = not handles.reached and handles.unmoved >= settings.no_change_limit
            if handles.stopped:
                break
            loss = motion_loss(
                feature, lattice, handles.points, handles.targets,
                radius=settings.patch_radius, max_shift=settings.max_shift, active=active,
                anchors=anchors, weight=weight,
            )  # fmt: skip
            if eps is not None and mask is not None:
                previous = denoiser.schedule.step(optimiser.latent, eps, t)
                loss = loss + held * mask_loss(previous, original.previous, mask)
            forward_of = optimiser.latent.detach().clone()
            grad = optimiser.update(loss)
        if on_gradient is not None:
            on_gradient(grad)
        handles.updates += 1
        since += 1
        pending.append(loss.detach())
        if since == settings.updates_per_tracking:
            active = _follow(handles, feature, lattice, templates, settings, pending, counted=True)
            pending.clear()
            handles.good = forward_of, t
            trackings, since = trackings + 1, 0
        on_update(handles, optimiser.latent.detach(), None if eps is None else eps.detach())
    if pending:
        handles.losses += [float(v) for v in torch.stack(pending).cpu()]
    return optimiser.latent.detach().clone()


@torch.no_grad()
def locate(
    denoiser: Denoiser,
    latent: Tensor,
    t: int,
    handles: Handles,
    original: Original,
    lattice: Size,
    settings: DragConfig,
) -> None:
    """Track once more, for the report: where the last update of the last round left the points."""
    templates = samples(original.feature, lattice, handles.origins.floor())
    feature = denoiser.feature(latent, t)
    _follow(handles, feature, lattice, templates, settings, [])
    handles.reached = bool((handles.distances < settings.stop_distance).all())


def _follow(
    handles: Handles,
    feature: Tensor,
    lattice: Size,
    templates: Tensor,
    settings: DragConfig,
    losses: list[Tensor],
    *,
    counted: bool = False,
) -> Tensor:
    """Track all points and read everything from the device at once; returns who is still moving.

    When `counted`, a tracking in which no point moved raises `unmoved`, any other resets it.

    Raises:
        NotFinite: with the last latent that was found finite, perhaps of an earlier round.
    """
    found = track(
        feature.detach(), lattice, handles.points, templates, settings.track_radius,
        parity=settings.parity,
    )  # fmt: skip
    distances = (handles.targets - found.points).norm(dim=1)
    n = len(distances)
    parts = [found.points.flatten(), distances, found.cost, *(v.reshape(1) for v in losses)]
    flat = torch.cat([p.float() for p in parts]).cpu()
    if not bool(flat.isfinite().all()):
        # before the first tracking nothing is known to be finite, and nothing can be shown
        latent, t = handles.good or (feature.new_full((1, 4, 1, 1), torch.nan), None)
        raise NotFinite(
            f"The numbers of the drag became infinite after {handles.updates} steps; use a lower "
            "learning rate, or full precision.",
            latent,
            t,
        )
    now = flat[: 2 * n].reshape(n, 2)
    if counted:
        moved = bool((now != handles.trajectory[-1]).any())
        handles.unmoved = 0 if moved else handles.unmoved + 1
    handles.points = found.points
    handles.trajectory.append(now)
    handles.distances, handles.costs = flat[2 * n : 3 * n], flat[3 * n : 4 * n]
    handles.losses += flat[4 * n :].tolist()
    moving: Tensor = (distances >= settings.stop_distance).float()
    return moving
