"""Input, settings and output of a drag method, and the state that continues it.

Positions are (row, col) on the feature grid (half the working image), float32, on the CPU. Latents are
float32 in the U-Net's scale, on the U-Net's device.

"Noise level" is a timestep of the model's 1000: the lower, the more of the moved picture is kept and
the fewer denoising steps follow; the higher, the more is drawn by the model. Where a picture was
inverted less deeply, its start is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.accel.cuda import Recorder
from workbench.core.config import DragConfig
from workbench.core.record import StopReason
from workbench.diffusion.ddim import Schedule
from workbench.diffusion.unet import Denoiser, Prompt, ReferenceKV
from workbench.drag.tracking import Size

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StopCriteria:
    """When motion supervision ends before its step limit.

    It ends when all points have arrived and, with `window`, the loss has settled as well; or without
    success, when the points are stuck.
    """

    doubt: float = math.inf  # match error over contrast above which a point has not been found
    window: int = 0  # updates whose mean loss is compared with that of as many before; 0: not asked
    least: int = 0  # updates before the loss counts as settled
    gain: float = 0.0  # share by which the loss must have fallen, to go on
    stall: int = 0  # updates in which the points must have come nearer, to go on; 0: not asked
    unmoved: int = 0  # trackings in a row in which some point must have moved; 0: not asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """Differences between the optimising methods; the loop is the same for all (`loop.DragLoop`).

    The defaults are DragDiffusion's: the patch is pulled to what is at the handle now, points that
    have arrived contribute nothing, tracking precedes every update, the drag happens at one timestep.
    """

    anchored: bool = False  # pull towards the original handle's patch (GoodDrag, arXiv 2404.07206)
    arrived_weight: float = 0.0  # in the loss, of a point within the stop distance; others count 1
    rounds: int = 0  # timesteps to drag at, with a denoise step after each; 0: only the first
    trackings: int = 0  # per round; 0: no limit
    updates_per_tracking: int = 0  # track after so many updates; 0: before each update
    stop: StopCriteria = field(default_factory=StopCriteria)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpOptions:
    """At which level the moved picture is put together with its noise, and how briefly denoised."""

    noise_level: int = 101  # timestep
    denoise_steps: int = 10  # at most; spread over the timesteps from there to the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoOptions:
    """`auto`: the draft, and the start and patience of the optimisation that refines it."""

    draft: WarpOptions = field(
        default_factory=lambda: WarpOptions(noise_level=401, denoise_steps=10)
    )
    doubted: float = 0.3  # doubt (0..1) of a pixel above which the model draws its latent cell
    start: WarpOptions = field(
        default_factory=lambda: WarpOptions(noise_level=481, denoise_steps=1000)
    )
    warp_start: bool = True  # False begins from the original latent, as the other methods do
    stop: StopCriteria = field(
        default_factory=lambda: StopCriteria(doubt=0.7, window=5, least=10, gain=0.05, stall=30)
    )


@dataclass(frozen=True, slots=True)
class Original:
    """The undragged picture at one timestep t."""

    feature: Tensor  # native map [1,C',fh,fw]
    previous: Tensor  # its latent [1,C,h,w] after the DDIM step from t


@dataclass(frozen=True, slots=True)
class Reference:
    """Features, latents and attention states of the original. No arrow changes them: cached per picture.

    It depends on picture, model, LoRA, prompt, inversion, guidance and on the two numbers that
    `facts` gives.
    """

    latents: Tensor  # [n+1,1,C,h,w]: plain DDIM from the start latent, at tail(n) and clean
    features: dict[int, Tensor]  # timestep -> native feature [1,C',fh,fw]
    kv: ReferenceKV | None  # None where it would have been too big: rows run in pairs then
    block: int  # feature block of `features`
    start_layer: int  # first layer of `kv`

    @staticmethod
    def facts(config: DragConfig) -> tuple[int, int]:
        """The settings of a drag that a reference depends on; part of its cache key."""
        return config.feature_block, config.sharing_start_layer

    def fits(self, config: DragConfig) -> bool:
        """True when it was made for these settings."""
        return (self.block, self.start_layer) == self.facts(config)

    def feature(self, denoiser: Denoiser, t: int, index: int) -> Tensor:
        """The original's feature at timestep t = tail[index]; computed when it was not kept."""
        if t in self.features:
            return self.features[t].to(denoiser.device, denoiser.dtype)
        with torch.no_grad():
            return denoiser.feature(self.latents[index].to(denoiser.device), t)

    def original(self, denoiser: Denoiser, t: int, index: int) -> Original:
        """The undragged picture at timestep t = tail[index]."""
        previous = self.latents[index + 1].to(denoiser.device)
        return Original(self.feature(denoiser, t, index), previous)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors, fit for safetensors."""
        out = {"latents": self.latents, "facts": torch.tensor([self.block, self.start_layer])}
        out |= {f"feature.{t}": f for t, f in self.features.items()}
        return out | (self.kv.to_tensors() if self.kv is not None else {})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Reference:
        """Read what `to_tensors` named."""
        features = {
            int(k.removeprefix("feature.")): v
            for k, v in tensors.items()
            if k.startswith("feature.")
        }
        kv = ReferenceKV.from_tensors(tensors)
        block, layer = (int(v) for v in tensors["facts"])
        return cls(tensors["latents"], features, kv if kv.states else None, block, layer)


@dataclass(frozen=True, slots=True)
class AdamState:
    """Moments and step count of Adam on one latent; what `run on` continues with."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DragState:
    """State of a drag, to continue it: `DragProblem.resume`."""

    latent: Tensor  # [1,C,h,w] being dragged
    t: int  # its timestep
    points: Tensor  # [P,2] now
    trajectory: tuple[Tensor, ...]
    losses: tuple[float, ...]
    updates: int
    adam: AdamState | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors, fit for safetensors."""
        out = {
            "latent": self.latent,
            "points": self.points,
            "trajectory": torch.stack(self.trajectory),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "counts": torch.tensor([self.t, self.updates, self.adam.step if self.adam else 0]),
        }
        if self.adam is not None:
            out |= {"exp_avg": self.adam.exp_avg, "exp_avg_sq": self.adam.exp_avg_sq}
        return {k: v.detach().cpu().contiguous() for k, v in out.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> DragState:
        """Read what `to_tensors` named."""
        t, updates, step = (int(v) for v in tensors["counts"])
        moments = tensors.get("exp_avg"), tensors.get("exp_avg_sq")
        adam = None
        if moments[0] is not None and moments[1] is not None:
            adam = AdamState(moments[0], moments[1], step)
        return cls(
            latent=tensors["latent"], t=t, points=tensors["points"],
            trajectory=tuple(tensors["trajectory"]), losses=tuple(tensors["losses"].tolist()),
            updates=updates, adam=adam,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pixels:
    """The working picture and the same moved along the arrows, for methods that move pixels."""

    picture: Tensor  # [1,3,H,W] in [-1,1]
    moved: Tensor  # [1,3,H,W]
    doubt: Tensor  # [H,W] in 0..1: how little the moved picture can be trusted
    encode: Callable[[Tensor], Tensor]  # picture -> clean latent [1,C,h,w] in the U-Net's scale


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DragProblem:
    """One drag on a prepared picture."""

    unet: Any  # diffusers U-Net, LoRA merged or active
    schedule: Schedule
    prompt: Prompt
    inversion_latents: Tensor  # [n+1,1,C,h,w] from the clean latent to the start of the drag
    handles: Tensor  # [P,2]; not changed
    targets: Tensor  # [P,2]
    feature_grid: Size  # (H // 2, W // 2) of the working image
    config: DragConfig
    mask: Tensor | None = None  # [1,1,h,w], 1 = may change; None or all 0: no mask term
    negative: Prompt | None = None  # of the unconditional row; with guidance above 1
    guidance: float = 1.0
    reference: Reference | None = None  # computed when missing or made for other settings
    resume: DragState | None = None
    graphs: Recorder | None = None  # records what is repeated; None records nothing
    pixels: Pixels | None = None  # for `warp` and `auto`; None where nothing moves
    auto: AutoOptions = field(default_factory=AutoOptions)
    warp: WarpOptions = field(default_factory=WarpOptions)

    @property
    def inverted(self) -> int:
        """n: number of denoising steps from the start latent to the picture."""
        return len(self.inversion_latents) - 1

    @property
    def start(self) -> Tensor:
        """The noisy latent [1,C,h,w] at which the drag begins."""
        return self.inversion_latents[-1].float()

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The n timesteps from the drag down to the picture."""
        return self.schedule.tail(self.inverted)

    def denoiser(self) -> Denoiser:
        """The U-Net under this problem's conditions."""
        return Denoiser(
            self.unet, self.schedule, self.prompt, negative=self.negative, guidance=self.guidance,
            block=self.config.feature_block, graphs=self.graphs,
        )  # fmt: skip

    def used_mask(self) -> Tensor | None:
        """The mask on the U-Net's device, float32; None when nothing is painted.

        In parity mode GoodDrag's empty mask freezes everything, as in its authors' program.
        """
        if self.mask is None or not bool(self.mask.any()):
            if self.config.parity and self.config.method == "gooddrag":
                return torch.zeros_like(self.start[:, :1])
            return None
        return self.mask.to(self.inversion_latents.device, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DragOutcome:
    """Result of a method."""

    latent: Tensor  # [1,C,h,w] clean, edited; decode it
    trajectory: tuple[Tensor, ...]  # [P,2] per tracking, the start first, the end last
    distances: tuple[float, ...]  # to the target after a last tracking, grid pixels
    losses: tuple[float, ...]
    iterations: int  # gradient steps
    stop: StopReason
    state: DragState | None = None  # to run on with; None where there is nothing to continue
