"""A U-Net under fixed conditions (text, guidance) as plain functions of (latent, timestep).

Features are read by a forward hook on `unet.up_blocks[i]`; nothing of the model is copied or
overridden. Latents and predictions are float32 here whatever the weights are, so that both sides
of every later difference come from the same precision.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workbench.accel.cuda_graphs import GraphedForward, Recorder
from workbench.diffusion.attention import MutualSelfAttention
from workbench.diffusion.ddim import Schedule

Tensor = torch.Tensor


class _Reached(BaseException):
    """Control flow, never seen outside: the feature is there, the rest of the U-Net is not needed.

    A BaseException, so that no `except Exception` inside a model can swallow it.
    """


class FeatureHook:
    """Output of a hooked block in the last forward."""

    def __init__(self) -> None:
        """Empty until the first forward."""
        self.output: Tensor | None = None

    def take(self) -> Tensor:
        """The output, released from the tap."""
        out, self.output = self.output, None
        if out is None:
            raise RuntimeError("the tapped block did not run")
        return out


def block_of(unet: Any, block: int) -> Any:
    """The up block whose output is feature `block` (1..4 as in the reference: 3 is up_blocks[2]).

    Counted from the output, so that models with three levels (XL) give the same depth.
    """
    blocks = unet.up_blocks
    return blocks[max(0, len(blocks) - 5 + block)]


@contextlib.contextmanager
def feature_hook(unet: Any, block: int, *, stop: bool = False) -> Iterator[FeatureHook]:
    """Read the output of an up block during forwards in this context; the hook is removed after.

    With `stop`, a forward ends at that block by an internal exception which the caller catches
    through `run_to_hook`.
    """
    found = FeatureHook()

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.output = output[0] if isinstance(output, tuple) else output
        if stop:
            raise _Reached

    handle = block_of(unet, block).register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def frozen(*modules: Any) -> Iterator[None]:
    """Switch weight gradients off, and put each parameter's switch back afterwards."""
    on = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in on:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in on:
            p.requires_grad_(True)


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded prompt: its embedding [1,L,C], and SDXL's added conditions, each [1,...]."""

    embedding: Tensor
    added: Mapping[str, Tensor] | None = None


class Denoiser:
    """eps(z, t) and features of a U-Net for one prompt, with classifier-free guidance if above 1."""

    def __init__(
        self,
        unet: Any,
        schedule: Schedule,
        prompt: Prompt,
        *,
        negative: Prompt | None = None,
        guidance: float = 1.0,
        block: int = 3,
        graphs: Recorder | None = None,
    ) -> None:
        """Fix the conditions.

        Args:
            unet: a diffusers UNet2DConditionModel.
            schedule: noise levels and what the model predicts.
            prompt: what the picture shows.
            negative: of the unconditional row; needed when guidance > 1.
            guidance: s in eps = u + s (c - u); 1 runs no unconditional row.
            block: which feature, see `block_of`.
            graphs: records forwards and loops over this denoiser; None records nothing.
        """
        self.unet = unet
        self.schedule = schedule
        self.block = block
        self.guidance = guidance
        self.guided = guidance > 1.0 and negative is not None
        weight = next(unet.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.graphs = graphs
        self._attention: MutualSelfAttention | None = None
        self._recorded: dict[tuple[torch.Size, str], GraphedForward] = {}
        other = negative or prompt
        self._text = self._rows(prompt.embedding, other.embedding)
        own, others = prompt.added or {}, other.added or prompt.added or {}
        self._added = {k: self._rows(v, others.get(k)) for k, v in own.items()}
        self._times: dict[int, Tensor] = {}

    def _rows(self, cond: Tensor, uncond: Tensor | None) -> Tensor:
        rows = [uncond, cond] if self.guided and uncond is not None else [cond]
        return torch.cat([r.to(self.device, self.dtype) for r in rows])

    @property
    def rows(self) -> int:
        """U-Net rows per latent: 2 under guidance (unconditional first), else 1."""
        return 2 if self.guided else 1

    def eps(self, z: Tensor, t: int) -> Tensor:
        """Predicted noise float32 [N,C,h,w] of latents z [N,C,h,w] at timestep t."""
        if self.graphs is not None and not torch.is_grad_enabled():
            return self._noise(z, self._replayed(z, t, self.graphs)[1], t)
        return self._noise(z, self._forward(z, self._time(t)), t)

    def feature(self, z: Tensor, t: int) -> Tensor:
        """Feature [1,C',fh,fw] of one latent; the U-Net runs only as far as needed."""
        with feature_hook(self.unet, self.block, stop=True) as found, contextlib.suppress(_Reached):
            self._forward(z, self._time(t))
        return self._weighted(found.take())

    def both(self, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """(feature [1,C',fh,fw], predicted noise [1,C,h,w]) of one latent, in one forward."""
        if self.graphs is not None and not torch.is_grad_enabled():
            feature, out = self._replayed(z, t, self.graphs)
        else:
            feature, out = self._tapped(z, self._time(t))
        return self._weighted(feature), self._noise(z, out, t)

    @contextlib.contextmanager
    def sharing(self, attention: MutualSelfAttention) -> Iterator[None]:
        """Tell it of the attention control that is on the U-Net during the block.

        Recorded forwards need to know: what they exchange with it has to keep its address.
        """
        self._attention = attention
        attention.still = self.graphs is not None
        try:
            yield
        finally:
            self._attention, attention.still = None, False
            # they were recorded through this attention's processors
            self._recorded = {k: v for k, v in self._recorded.items() if k[1] == "off"}

    def _replayed(self, z: Tensor, t: int, recorder: Recorder) -> tuple[Tensor, Tensor]:
        """Feature and output of a recorded forward; one recording per shape and attention mode."""
        attention = self._attention
        key = (z.shape, attention.mode if attention is not None else "off")
        if key not in self._recorded:
            # a proxy: a cycle would keep the device memory of both alive
            work = functools.partial(Denoiser._tapped, weakref.proxy(self))
            kind = ("forward", *key, self._text.shape, self.block)
            self._recorded[key] = GraphedForward(work, z, recorder, kind=kind)
        if attention is not None:
            attention.fill()
        feature, out = self._recorded[key](z, t)
        if attention is not None:
            attention.keep()
        return feature, out

    def _tapped(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with feature_hook(self.unet, self.block) as found:
            out = self._forward(z, t)
        return found.take(), out

    def _time(self, t: int) -> Tensor:
        if t not in self._times:  # once per timestep: a host-to-device copy waits for the device
            self._times[t] = torch.tensor(t, device=self.device)
        return self._times[t]

    def _forward(self, z: Tensor, t: Tensor) -> Tensor:
        n = len(z)
        rows = z.to(self.dtype).repeat(self.rows, 1, 1, 1)
        given: dict[str, Any] = {"encoder_hidden_states": self._text.repeat_interleave(n, 0)}
        if self._added:
            given["added_cond_kwargs"] = {
                k: v.repeat_interleave(n, 0) for k, v in self._added.items()
            }
        out: Tensor = self.unet(rows, t, return_dict=False, **given)[0]
        return out

    def _noise(self, z: Tensor, out: Tensor, t: int) -> Tensor:
        out = out.float()
        if self.guided:
            u, c = out.chunk(2)
            out = u + self.guidance * (c - u)
        return self.schedule.noise_of(z, out, t)

    def _weighted(self, feature: Tensor) -> Tensor:
        """Under guidance, both rows side by side in channels: (1-c) u and c v, c = s/(2s-1)."""
        if not self.guided:
            return feature
        c = self.guidance / (2 * self.guidance - 1)
        u, v = feature.chunk(2)
        return torch.cat([(1 - c) * u, c * v], dim=1)
