"""Steps on a latent outside the loop: guarded Adam, the moved picture, denoising with shared attention."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from workbench.accel.cuda import GraphedCallable, Recorder
from workbench.core.errors import ModelError
from workbench.core.record import OnStep, StepInfo, StopReason, ignore_steps
from workbench.diffusion.ddim import CLEAN
from workbench.diffusion.unet import (
    Denoiser,
    MutualSelfAttention,
    ReferenceKV,
    frozen,
    mutual_self_attention,
)
from workbench.drag.problem import (
    AdamState,
    DragOutcome,
    DragProblem,
    Reference,
)
from workbench.drag.tracking import samples, track

Tensor = torch.Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


class NotFinite(ModelError):
    """Numbers became NaN or infinite; `latent` is the last finite one [1,C,h,w], at timestep `t`."""

    def __init__(self, message: str, latent: Tensor, t: int) -> None:
        """Keep the last finite latent beside the sentence."""
        super().__init__(message, code="not-finite")
        self.latent, self.t = latent, t


class LatentOptimiser:
    """Adam on one latent (betas 0.9/0.999, eps 1e-8, no decay), without touching the weights.

    Half-precision U-Nets: the loss is scaled before the backward pass so that small gradients do not
    vanish in float16; an update whose gradient overflowed counts but moves nothing, and the scale is
    halved (GradScaler's rule, without its wait for the device).
    """

    def __init__(
        self,
        latent: Tensor,
        lr: float,
        *,
        half: bool = False,
        state: AdamState | None = None,
        graphs: Recorder | None = None,
    ) -> None:
        """Start from `latent` [1,C,h,w], float32, with learning rate `lr`; `state` continues a run.

        With `graphs` the update is recorded on CUDA, where its step count then lives, too.
        """
        self.latent = latent.detach().float().clone().requires_grad_(True)
        recorded = graphs is not None and graphs.records
        self.adam = torch.optim.Adam(
            [self.latent], lr=lr, betas=(0.9, 0.999), eps=1e-8, capturable=recorded
        )
        self.scale = torch.tensor(65536.0 if half else 1.0, device=latent.device)
        self.half = half
        if state is not None:
            counted = latent.device if recorded else torch.device("cpu")
            self.adam.state[self.latent] = {
                "step": torch.tensor(float(state.step), device=counted),
                "exp_avg": state.exp_avg.to(latent.device).clone(),
                "exp_avg_sq": state.exp_avg_sq.to(latent.device).clone(),
            }
        self._grad = torch.zeros_like(self.latent)
        work = functools.partial(LatentOptimiser._apply, weakref.proxy(self))
        self._recorded = GraphedCallable(work, graphs, kind=("adam", latent.shape, half))

    def gradient(self, loss: Tensor) -> Tensor:
        """d loss / d latent [1,C,h,w] float32; weights get none."""
        (grad,) = torch.autograd.grad(loss * self.scale if self.half else loss, [self.latent])
        return grad / self.scale if self.half else grad

    @torch.no_grad()
    def apply(self, grad: Tensor) -> None:
        """One Adam step with a given gradient [1,C,h,w], float32."""
        self._grad.copy_(grad)
        if self.adam.state.get(self.latent):
            self._recorded()
        else:
            self._apply()  # makes the moments, which must not be part of a recording

    def _apply(self) -> tuple[Tensor, ...]:
        if not self.half:
            self.latent.grad = self._grad
            self.adam.step()
            self.latent.grad = None
            return ()
        good = self._grad.isfinite().all()
        kept = self.adam.state.get(self.latent, {})
        before = [self.latent.clone(), *(kept[n].clone() for n in _MOMENTS if n in kept)]
        self.latent.grad = self._grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.adam.step()
        self.latent.grad = None
        after = [self.latent, *(kept[n] for n in _MOMENTS if n in kept)]
        for now, old in zip(after, before, strict=True):
            now.copy_(torch.where(good, now, old))
        self.scale.mul_(torch.where(good, 1.0, 0.5))
        return ()

    def state(self) -> AdamState | None:
        """A copy of the moments, or None before the first update."""
        now = self.adam.state.get(self.latent)
        if not now:
            return None
        return AdamState(now["exp_avg"].clone(), now["exp_avg_sq"].clone(), int(now["step"]))


_LEVEL = 261  # DIFT's timestep for semantic correspondence with Stable Diffusion
_REACH = 12  # grid pixels beyond both ends of the arrow
_MOST = 64


@torch.no_grad()
def run_warp(problem: DragProblem, on_step: OnStep) -> DragOutcome:
    """Move the pixels, denoise in at most `problem.warp.denoise_steps`, and locate the points.

    Raises:
        Cancelled: passed through from `on_step`.
    """
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
    templates = samples(before, problem.feature_grid, handles)
    span = float((targets - handles).abs().amax())
    radius = min(_MOST, int(span / 2 + 0.5) + _REACH)
    found = track(after, problem.feature_grid, (handles + targets) / 2, templates, radius)
    distances = (targets - found.points).norm(dim=1)
    return found.points.cpu(), distances.cpu(), found.cost.cpu()


FEATURES_KEPT = 7  # timesteps whose feature a reference holds: GoodDrag drags at so many
KV_LIMIT = 640 << 20  # bytes; Stable Diffusion 1.5 at 512 x 512 in float16 needs 413 MB


@torch.no_grad()
def reference_of(
    problem: DragProblem, on_step: OnStep = ignore_steps, *, kv_limit: int = KV_LIMIT
) -> Reference:
    """Denoise the original once and keep what drags will ask for (arrows and mask play no part).

    Args:
        problem: picture, prompt and settings.
        on_step: progress, stage "reference".
        kv_limit: most bytes that the attention states may take; above it they are not kept.

    Raises:
        Cancelled: passed through from `on_step`.
    """
    denoiser = problem.denoiser()
    timesteps = problem.timesteps
    z = problem.start.to(denoiser.device)
    latents = [z]
    features: dict[int, Tensor] = {}
    kv: ReferenceKV | None = ReferenceKV()
    with (
        mutual_self_attention(problem.unet, problem.config.sharing_start_layer, kv) as attention,
        denoiser.with_attention(attention),
    ):
        attention.mode = "record" if kv_limit else "off"
        for i, t in enumerate(timesteps):
            attention.t = t
            if i < FEATURES_KEPT:
                features[t], eps = denoiser.both(z, t)
            else:
                eps = denoiser.eps(z, t)
            z = problem.schedule.step(z, eps, t)
            latents.append(z)
            if kv is not None and attention.kv.bytes / (i + 1) * len(timesteps) > kv_limit:
                attention.mode, kv = "off", None
                attention.kv.states.clear()
            on_step(StepInfo(stage="reference", step=i + 1, total=len(timesteps)))
    block, layer = Reference.facts(problem.config)
    kept = kv if kv is not None and kv.states else None
    return Reference(torch.stack(latents), features, kept, block, layer)


def reference_for(problem: DragProblem, on_step: OnStep) -> Reference:
    """The problem's own reference if it fits its settings, else a new one; raises as `reference_of`."""
    given = problem.reference
    if given is not None and given.fits(problem.config):
        return given
    return reference_of(problem, on_step)


@torch.no_grad()
def denoise(
    problem: DragProblem,
    denoiser: Denoiser,
    reference: Reference,
    edited: Tensor,
    timesteps: Sequence[int],
    on_step: OnStep = ignore_steps,
    *,
    share_from: int | None = None,
) -> Tensor:
    """DDIM from the edited latent at timesteps[0] to a clean one, reading the original's attention.

    Args:
        problem: settings.
        denoiser: U-Net under the problem's conditions.
        reference: of the original; its kept states are replayed, or, where there are none (or in
            parity mode), the original's row runs beside the edited one.
        edited: latent [1,C,h,w] at timesteps[0].
        timesteps: falling, each one of the problem's; none where GoodDrag's rounds took all of them,
            which leaves a latent that is clean already.
        on_step: progress, stage "denoise".
        share_from: index of the first of the problem's timesteps with shared attention;
            `sharing_start_step` of the settings when None.

    Returns:
        [1,C,h,w], float32.
    """
    config = problem.config
    if not timesteps:
        return edited
    first = config.sharing_start_step if share_from is None else share_from
    replay = reference.kv is not None and not config.parity
    z = edited
    indices = [problem.timesteps.index(t) for t in timesteps]
    ends = [*timesteps[1:], CLEAN]
    with (
        mutual_self_attention(problem.unet, config.sharing_start_layer, reference.kv) as attention,
        denoiser.with_attention(attention),
    ):
        for done, (i, (t, to)) in enumerate(
            zip(indices, zip(timesteps, ends, strict=True), strict=True), 1
        ):
            eps = _shared_eps(denoiser, attention, reference, z, t, i, first, replay)
            z = problem.schedule.step(z, eps, t, to)
            on_step(_step(problem, z, eps, t, done, len(timesteps)))
    return z


def _shared_eps(
    denoiser: Denoiser,
    attention: MutualSelfAttention,
    reference: Reference,
    z: Tensor,
    t: int,
    i: int,
    first: int,
    replay: bool,
) -> Tensor:
    attention.t = t
    if i < first:
        attention.mode = "off"
        return denoiser.eps(z, t)
    if replay:
        attention.mode = "replay"
        return denoiser.eps(z, t)
    attention.mode = "pairs"
    original = reference.latents[i].to(z)
    return denoiser.eps(torch.cat([original, z]), t)[1:]


def _step(problem: DragProblem, z: Tensor, eps: Tensor, t: int, done: int, total: int) -> StepInfo:
    return StepInfo(
        stage="denoise", step=done, total=total,
        clean=lambda: z if done == total else problem.schedule.clean(z, eps, t),
    )  # fmt: skip
