"""Adam on a latent: the weights get no gradient, half precision is guarded, NaN keeps the last good."""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass

import torch

from workbench.accel.cuda_graphs import GraphedCallable, Recorder
from workbench.core.errors import ModelError

Tensor = torch.Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


class NotFinite(ModelError):
    """Numbers became NaN or infinite; `latent` is the last finite one [1,C,h,w], at timestep `t`."""

    def __init__(self, message: str, latent: Tensor, t: int) -> None:
        """Keep the last finite latent beside the sentence."""
        super().__init__(message)
        self.latent, self.t = latent, t


@dataclass(frozen=True, slots=True)
class AdamState:
    """Moments and step count of Adam on one latent; what `run on` continues with."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int


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
        """Start from `latent` [1,C,h,w], float32; `state` continues an earlier run.

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
        """One Adam step with a given gradient."""
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
