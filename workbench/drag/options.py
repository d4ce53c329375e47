"""Numbers that make the methods of this folder, which a benchmark can vary.

"Noise level" is a timestep of the model's 1000: the lower, the more of the moved picture is kept and
the fewer denoising steps follow; the higher, the more is drawn by the model. Where a picture was
inverted less deeply, its start is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


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
    """What distinguishes the optimising methods; the loop is the same for all (`loop.DragLoop`).

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
