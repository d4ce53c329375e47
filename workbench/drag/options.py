"""Ingredients of our own methods, as numbers that a benchmark can vary.

"Noise level" is a timestep of the model's 1000: the lower, the more of the warped picture is kept
and the fewer denoising steps follow; the higher, the more is drawn anew. Where a picture was
inverted less deeply, its start is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.drag.anchored import Patience
from workbench.drag.warping.pixel_warp import Pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpOptions:
    """How a picture is moved along the arrows in one step, and how briefly it is denoised."""

    noise_level: int = 101  # timestep at which the moved latent is put together again
    denoise_steps: int = 10  # at most; spread over the timesteps from there to the picture
    pixels: bool = True  # move the picture and encode it; False moves the latent, as FastDrag does
    pieces: Pieces = field(default_factory=Pieces)  # how pixels are moved; the rest is for latents
    stretch: bool = False  # pull like rubber (no holes) instead of moving pieces
    sharpness: float = 2.0  # between arrows: small blends them, large lets the nearest win
    rigid: float = 0.75  # latent cells round a handle that move as one piece
    # holes: True draws clean content in from around and keeps the place's own noise
    fill_holes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoOptions:
    """What `auto` is made of: a warped start, then motion supervision anchored at the original."""

    start: WarpOptions = field(
        default_factory=lambda: WarpOptions(noise_level=481, denoise_steps=1000)
    )
    warp_start: bool = True  # False begins from the original latent, as the other methods do
    patience: Patience = field(default_factory=Patience)
