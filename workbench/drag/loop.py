"""Motion supervision: the losses, and the one optimisation loop of all methods.

Shi et al. 2024, arXiv 2306.14435, Eq. 3 to 6, and Zhang et al. 2024, arXiv 2404.07206, in the arithmetic
of their programs where that differs from the papers (docs/algorithm.md). Positions are (row, col) on the
feature grid. `methods.py` says how the methods use the loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from workbench.accel.cuda import GraphedCallable
from workbench.core.record import OnStep, StepInfo
from workbench.core.request import Point
from workbench.diffusion.unet import Denoiser
from workbench.drag.latents import LatentOptimiser, NotFinite
from workbench.drag.problem import DragProblem, Original, StopCriteria, Supervision
from workbench.drag.tracking import Size, Tracked, contrast, inside, patches, samples, track

Tensor = torch.Tensor


def motion_loss(
    feature: Tensor,
    feature_grid: Size,
    handles: Tensor,
    targets: Tensor,
    *,
    radius: int,
    max_shift: float | Tensor,
    active: Tensor,
    anchors: Tensor | None = None,
) -> Tensor:
    """Pull what is at each handle towards its target: weight * mean |anchor - patch(handle + shift)|.

    shift = (target - handle)/distance * min(max_shift, distance). The anchor is detached: the patch
    at the handle in this very feature (DragDiffusion, Eq. 3), or `anchors` from the original picture
    (GoodDrag, arXiv 2404.07206). The mean is over channels and those patch cells that lie on the
    feature grid; positions of the moved patch are clamped to it.

    Args:
        feature: native map [1,C,fh,fw] with gradient.
        feature_grid: (rows, cols).
        handles, targets: [P,2], on the feature's device.
        radius: of the patch.
        max_shift: longest shift, one for all or [P].
        active: [P] 1 for points that still move, 0 for those that have arrived.
        anchors: [P,C,2r+1,2r+1] of the original handles, NaN where that is off the feature grid.

    Returns:
        Sum over active points, float32 scalar. The weight of a point is the authors': (2r+1)^2, the
        number of cells, for DragDiffusion; (2r)^2 for GoodDrag.
    """
    side = 2 * radius + 1
    away = targets - handles
    distance = away.norm(dim=1)
    stride = torch.minimum(distance, distance.new_zeros(()) + max_shift)
    shift = away * (stride / distance.clamp(min=1e-12))[:, None]
    corner = handles.floor() - radius  # the reference truncates; its handles are whole numbers
    if anchors is None:
        anchors = patches(feature.detach(), feature_grid, corner, side)
        valid = inside(corner, side, feature_grid)
        weight = float(side * side)
    else:
        valid = anchors[:, 0].isfinite()
        anchors = anchors.nan_to_num(nan=0.0)
        weight = float(max(1, 2 * radius) ** 2)
    moved = patches(feature, feature_grid, corner + shift, side)
    gap = (anchors - moved).abs() * valid[:, None]
    mean = gap.sum((1, 2, 3)) / (valid.sum((1, 2)) * feature.shape[1])
    return weight * (mean * active).sum()


def anchor_patches(feature: Tensor, feature_grid: Size, handles: Tensor, radius: int) -> Tensor:
    """Patches [P,C,2r+1,2r+1] of the original feature around the original handles [P,2].

    Float32; NaN off the feature grid, whose size (rows, cols) is `feature_grid`.
    """
    corner = handles.floor() - radius
    side = 2 * radius + 1
    found = patches(feature, feature_grid, corner, side)
    return found.masked_fill(~inside(corner, side, feature_grid)[:, None], math.nan)


def mask_loss(previous: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Sum |(z_{t-1} - reference z_{t-1}) (1 - M)|: what lies outside the mask stays (Eq. 4).

    previous, reference: [1,C,h,w]; mask M [1,1,h,w], 1 = may change.
    """
    return ((previous - reference) * (1.0 - mask)).abs().sum()


class DragLoop:
    """Motion supervision with the points and figures that it keeps, at one timestep or several.

    After `drag` and `finish`: `trajectory` [P,2] per tracking (the start first, grid pixels, CPU),
    `distances` [P] to the targets, `losses` per update, `updates` of this run (those of the run that
    `problem.resume` continues are `before`), `adam`, and whether the points `reached` their targets.
    `ended` says that a stop criterion ended it; else the step limit did.
    """

    def __init__(
        self, denoiser: Denoiser, problem: DragProblem, rules: Supervision, on_step: OnStep
    ) -> None:
        """Begin at the handles, or where `problem.resume` ended; `on_step` may raise `Cancelled`."""
        config, earlier, device = problem.config, problem.resume, denoiser.device
        self.denoiser, self.problem, self.rules, self.on_step = denoiser, problem, rules, on_step
        self.mask = problem.used_mask()
        self._held = config.mask_weight if self.mask is not None else 0.0
        self.origins, self.targets = problem.handles.to(device), problem.targets.to(device)
        self.points = (earlier.points if earlier else problem.handles).to(device).clone()
        self.trajectory = list(earlier.trajectory if earlier else [problem.handles.cpu().clone()])
        self.losses = list(earlier.losses if earlier else ())
        self.adam = earlier.adam if earlier else None
        self.before = earlier.updates if earlier else 0
        self.distances = (problem.targets - self.points.cpu()).norm(dim=1)
        self.match_error = torch.zeros_like(self.distances)
        self.updates = 0
        self.limit = config.steps
        if rules.rounds:
            most = rules.rounds * rules.trackings * rules.updates_per_tracking
            self.limit = min(config.steps, most)
        self.reached = self.ended = False
        self._still = torch.equal(problem.handles, problem.targets)
        self._left: list[float] = []  # sum of all distances after each update of this run
        self._unmoved = 0  # trackings in a row in which no point moved
        self._pending: list[Tensor] = []  # losses that were not read from the device yet
        self._finite: tuple[Tensor, int] | None = None  # last latent with finite features, timestep

    def place(self, points: Tensor) -> None:
        """Put the points [P,2] elsewhere before the first update: where a warp has moved them."""
        self.points.copy_(points)
        self.trajectory.append(points.detach().cpu().clone())

    def drag(self, latent: Tensor, t: int, original: Original) -> Tensor:
        """Optimise a latent at timestep t until a stop criterion or a limit ends it.

        Each turn: one forward; tracking, where the rules say so; the check whether to stop; one Adam
        update down the motion loss and the mask term. Without a mask term the U-Net runs only up to
        the feature's block. The gradient is computed before it is known whether to stop: that costs
        one backward at the end, but avoids waiting for the device in every turn.

        Args:
            latent: [1,C,h,w] at t; not changed.
            t: timestep.
            original: the undragged picture at t.

        Returns:
            The dragged latent [1,C,h,w] float32.

        Raises:
            NotFinite: when loss or features became NaN; carries the last finite latent.
            Cancelled: passed through from `on_step`.
        """
        denoiser, config, rules = self.denoiser, self.problem.config, self.rules
        self._aim(original)
        optimiser = LatentOptimiser(
            latent, config.learning_rate, half=denoiser.dtype == torch.float16, state=self.adam,
            graphs=denoiser.graphs,
        )  # fmt: skip
        if self._finite is None:
            self._finite = latent.detach().float(), t
        # a continued run was tracked on this very latent: only the match error is missing
        entry = config.track_radius if rules.rounds else 0 if self.before else None
        radius = None if rules.updates_per_tracking else config.track_radius
        turn = self._turn(optimiser, t, original)
        first = GraphedCallable(lambda: turn(entry), denoiser.graphs)
        kind = (
            "drag", rules, latent.shape, len(self.points), self._held > 0, denoiser.rows,
            denoiser.block, config.patch_radius, config.track_radius, config.parity,
        )  # fmt: skip
        later = GraphedCallable(lambda: turn(radius), denoiser.graphs, kind=kind)
        done = trackings = 0  # at this timestep
        while self.updates < self.limit and (not rules.trackings or trackings < rules.trackings):
            feature, here, distances, cost, loss, grad, *eps = later() if done else first()
            self.points.copy_(here)
            seen = optimiser.latent.detach().clone()
            if done == 0 or radius is not None:
                tracked = (radius if done else entry) is not None
                self._read(distances, cost, seen, t, tracked=tracked)
            self._report(seen, t, eps)
            if self._stops():
                break
            self._pending.append(loss)
            optimiser.apply(grad)
            self.updates, done = self.updates + 1, done + 1
            if rules.updates_per_tracking and done % rules.updates_per_tracking == 0:
                found = self._track(feature, config.track_radius)
                self.points.copy_(found.points)
                distances = (self.targets - self.points).norm(dim=1)
                self._read(distances, found.cost, seen, t, tracked=True, counted=True)
                trackings += 1
        self.adam = None if rules.rounds else optimiser.state()
        return optimiser.latent.detach().clone()

    def finish(self, latent: Tensor, t: int) -> None:
        """Unless a criterion ended the drag, track once more: where the last update left the points."""
        if self.ended:
            return
        cost = None
        if self.updates:
            with torch.no_grad():
                found = self._track(
                    self.denoiser.feature(latent, t), self.problem.config.track_radius
                )
            self.points.copy_(found.points)
            cost = found.cost
        distances = (self.targets - self.points).norm(dim=1)
        self._read(distances, cost, latent, t, tracked=cost is not None)
        self.reached = self._arrived()
        self._report(latent, t, [])

    # --- the parts of a turn --------------------------------------------------------------------------

    def _turn(
        self, optimiser: LatentOptimiser, t: int, original: Original
    ) -> Callable[[int | None], tuple[Tensor, ...]]:
        """One turn's arithmetic, fit to be recorded: reads points and latent in place, changes neither."""
        denoiser, config, rules, mask = self.denoiser, self.problem.config, self.rules, self.mask

        def turn(radius: int | None) -> tuple[Tensor, ...]:
            """Forward, tracking (not if `radius` is None), loss and its gradient."""
            eps: Tensor | None = None
            with torch.enable_grad():
                if self._held:
                    feature, eps = denoiser.both(optimiser.latent, t)
                else:
                    feature = denoiser.feature(optimiser.latent, t)
                here, cost = self.points, torch.zeros_like(self.points[:, 0])
                if radius is not None:
                    found = self._track(feature, radius)
                    here, cost = found.points, found.cost
                distances = (self.targets - here).norm(dim=1)
                loss = motion_loss(
                    feature, self.problem.feature_grid, here, self.targets,
                    radius=config.patch_radius, max_shift=config.max_shift,
                    active=torch.where(distances < config.stop_distance, rules.arrived_weight, 1.0),
                    anchors=self._anchors,
                )  # fmt: skip
                if eps is not None and mask is not None:
                    previous = denoiser.schedule.step(optimiser.latent, eps, t)
                    loss = loss + self._held * mask_loss(previous, original.previous, mask)
                grad = optimiser.gradient(loss)
            noise = () if eps is None else (eps.detach(),)
            return feature.detach(), here, distances, cost, loss.detach(), grad, *noise

        return turn

    @torch.no_grad()
    def _aim(self, original: Original) -> None:
        """Take templates, and the patches to pull to, from the original at this timestep."""
        feature, feature_grid, rules = original.feature, self.problem.feature_grid, self.rules
        self._templates = samples(feature, feature_grid, self.origins.floor())
        self._anchors: Tensor | None = None
        if rules.anchored:
            radius = self.problem.config.patch_radius
            self._anchors = anchor_patches(feature, feature_grid, self.origins, radius)
        self._unit: Tensor | float = 1.0
        if rules.stop.doubt < math.inf:
            self._unit = contrast(feature, self._templates).clamp(min=1e-12)

    def _track(self, feature: Tensor, radius: int) -> Tracked:
        """Find the handles' features; the cost is relative to the contrast where that is asked for."""
        found = track(
            feature.detach(), self.problem.feature_grid, self.points, self._templates, radius,
            parity=self.problem.config.parity,
        )  # fmt: skip
        return (
            found
            if isinstance(self._unit, float)
            else Tracked(found.points, found.cost / self._unit)
        )

    def _read(
        self,
        distances: Tensor,
        cost: Tensor | None,
        latent: Tensor,
        t: int,
        *,
        tracked: bool,
        counted: bool = False,
    ) -> None:
        """Wait for the device, once: points, distances, match errors and the losses since the last time.

        Raises:
            NotFinite: with the last finite latent, perhaps of an earlier timestep.
        """
        n = len(self.points)
        errors = torch.zeros_like(distances) if cost is None else cost
        parts = [self.points.flatten(), distances, errors, *(v.reshape(1) for v in self._pending)]
        flat = torch.cat([p.float() for p in parts]).cpu()
        if not bool(flat.isfinite().all()):
            assert self._finite is not None
            raise NotFinite(
                f"The numbers of the drag became infinite after {self.updates} steps; use a lower "
                "learning rate, or full precision.",
                *self._finite,
            )
        self._finite = latent, t
        self.distances, self.match_error = flat[2 * n : 3 * n], flat[3 * n : 4 * n]
        self.losses += flat[4 * n :].tolist()
        self._pending.clear()
        now = flat[: 2 * n].reshape(n, 2)
        if counted:
            moved = bool((now != self.trajectory[-1]).any())
            self._unmoved = 0 if moved else self._unmoved + 1
        continued = self.before and not self.updates and not self.rules.rounds
        if tracked and not continued:
            self.trajectory.append(now)
        if self.updates:
            self._left.append(float(self.distances.sum()))

    def _arrived(self) -> bool:
        """True when every point is within the stop distance, and found beyond doubt."""
        near = self.distances < self.problem.config.stop_distance
        return bool((near & (self.match_error < self.rules.stop.doubt)).all())

    def _stops(self) -> bool:
        """Check the stop criteria on what was read last; no wait for the device."""
        stop = self.rules.stop
        self.reached = self._arrived()
        stuck = stalled(self._left, stop) or 0 < stop.unmoved <= self._unmoved
        self.ended = self._still or (self.reached and settled(self.losses, stop)) or stuck
        return self.ended

    def _report(self, latent: Tensor, t: int, eps: Sequence[Tensor]) -> None:
        """Tell where the drag stands; the clean picture is only predicted when asked for."""

        @torch.no_grad()
        def clean() -> Tensor:
            noise = eps[0] if eps else self.denoiser.eps(latent, t)
            return self.denoiser.schedule.clean(latent, noise, t)

        self.on_step(
            StepInfo(
                stage="drag",
                step=self.before + self.updates,
                total=self.before + self.limit,
                loss=self.losses[-1] if self.losses else None,
                points=tuple(Point(col, row) for row, col in self.trajectory[-1].tolist()),
                distances=tuple(self.distances.tolist()),
                clean=clean,
            )
        )


def settled(losses: Sequence[float], stop: StopCriteria) -> bool:
    """True when the mean loss of the last updates is hardly below that of those before them."""
    n = stop.window
    if not n:
        return True
    if len(losses) < max(stop.least, 2 * n):
        return False
    now, before = sum(losses[-n:]), sum(losses[-2 * n : -n])
    return now > (1 - stop.gain) * before


def stalled(left: Sequence[float], stop: StopCriteria) -> bool:
    """True when the last updates brought the points no nearer, half a grid pixel in all.

    More updates would only degrade the picture: the loss keeps falling slightly.

    Args:
        left: sum of all distances after each update of this run.
        stop: how many updates to wait.
    """
    n = stop.stall
    return n > 0 and len(left) > n and min(left[-n:]) > min(left[:-n]) - 0.5


def stuck(trajectory: Sequence[Tensor], arrived: Tensor, turns: int = 20) -> bool:
    """True when no point that has not arrived moved in the last `turns` trackings.

    Args:
        trajectory: positions [P,2] after each tracking, grid pixels.
        arrived: [P], nonzero for points that have reached their targets.
        turns: number of trackings without motion.
    """
    last = list(trajectory[-turns - 1 :])
    if len(last) <= turns or bool(arrived.all()):
        return False
    return not any(bool((b != a)[~arrived].any()) for a, b in itertools.pairwise(last))
