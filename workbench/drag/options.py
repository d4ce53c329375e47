"""Ingredients of our own methods, as numbers that a benchmark can vary.

"Noise level" is a timestep of the model's 1000: the lower, the more of the moved picture is kept and
the fewer denoising steps follow; the higher, the more is drawn by the model. Where a picture was
inverted less deeply, its start is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.drag.anchored import Patience


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpOptions:
    """At which level the moved picture is put together with its noise, and how briefly denoised."""

    noise_level: int = 101  # timestep
    denoise_steps: int = 10  # at most; spread over the timesteps from there to the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoOptions:
    """`auto`: the moved picture as start, then motion supervision anchored at the original."""

    start: WarpOptions = field(
        default_factory=lambda: WarpOptions(noise_level=481, denoise_steps=1000)
    )
    warp_start: bool = True  # False begins from the original latent, as the other methods do
    patience: Patience = field(default_factory=Patience)
