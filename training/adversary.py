"""A patch discriminator that makes the autoencoder's pictures sharp.

It tells true patches from decoded ones (PatchGAN, Isola et al. 2017, with the hinge loss; used for
autoencoders by Esser et al. 2021). Its gradient is scaled to a share of the reconstruction's
gradient, and that share is steered so that the decoded pictures hold `DETAIL_GOAL` of the fine
detail of the true ones: no more sharpness is bought with decibels than was asked for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.team import Team

DETAIL_GOAL = 0.88  # of the true pictures' energy in fine detail
FIRST_SHARE, SMALLEST_SHARE, LARGEST_SHARE = 0.2, 0.02, 1.0
STEER = 1.04  # factor by which the share changes at most, each time it is steered
ALONE_STEPS = 200  # the discriminator learns alone at first, then its gradient fades in
RATE = 2e-4


def detail_energy(pictures: Tensor) -> Tensor:
    """Mean square of pictures [B,3,H,W] minus their 3x3 binomial blur, in the pictures' unit squared."""
    kernel = torch.tensor([0.25, 0.5, 0.25], device=pictures.device)
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    blurred = F.conv2d(pictures.float(), kernel, groups=3)
    return (pictures[..., 1:-1, 1:-1].float() - blurred).square().mean()


def build_discriminator(width: int = 64) -> nn.Module:
    """[B,3,H,W] in [-1,1] -> one logit per patch, [B,1,H/8,W/8]; a patch sees 46x46 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 4, 1)):
        layers += [
            nn.Conv2d(before * width, after * width, 4 if stride == 2 else 3, stride, 1),
            nn.GroupNorm(16, after * width),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))


class Adversary:
    """The discriminator, its optimiser, and the share of the gradient that it is given."""

    def __init__(self, team: Team, device: torch.device, bf16: bool) -> None:
        """Fresh; every process begins with the same weights."""
        net: Any = build_discriminator()
        self.net = net.to(device, memory_format=torch.channels_last)
        self._parameters = list(self.net.parameters())
        with torch.no_grad():
            team.share(self._parameters)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=RATE, betas=(0.5, 0.95), weight_decay=0.0
        )
        self._team, self._bf16 = team, bf16
        self.share = FIRST_SHARE
        self.steps = 0
        self._seen = torch.zeros(2, device=device)  # detail of the decoded and of the true ones

    def _logits(self, pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            logits: Tensor = self.net(pictures)
        return logits.float()

    def gradient(self, made: Tensor, of_loss: Tensor) -> Tensor:
        """The gradient to add at the decoded pictures: `of_loss` is the reconstruction's there."""
        fade = min(1.0, max(0.0, self.steps / ALONE_STEPS - 1))
        if fade == 0:
            return torch.zeros_like(of_loss)
        leaf = made.detach().requires_grad_()
        (grad,) = torch.autograd.grad(-self._logits(leaf).mean(), leaf)
        size = of_loss.square().mean().sqrt() / grad.square().mean().sqrt().clamp_min(1e-20)
        return fade * self.share * size * grad

    def learn(self, true: Tensor, made: Tensor) -> None:
        """One step of telling `true` from `made` (both [B,3,H,W] in [-1,1])."""
        real, fake = self._logits(true), self._logits(made.detach())
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self._team.average([p.grad for p in self._parameters if p.grad is not None])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self._seen += torch.stack([detail_energy(made.detach()), detail_energy(true)])

    def steer(self) -> dict[str, Any]:
        """Change the share towards the goal; called every few steps. Returns what it saw."""
        self._team.average([self._seen])
        made, true = self._seen.tolist()
        self._seen.zero_()
        ratio = made / max(true, 1e-12)
        if self.steps > 2 * ALONE_STEPS:
            step = STEER ** max(-1.0, min(1.0, (DETAIL_GOAL - ratio) / 0.05))
            self.share = min(LARGEST_SHARE, max(SMALLEST_SHARE, self.share * step))
        return {"detail": round(ratio, 3), "share": round(self.share, 3)}
