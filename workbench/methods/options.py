"""Ingredients of our own methods, as numbers that a benchmark can vary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpOptions:
    """How the latent is warped and how briefly it is denoised."""

    denoise_steps: int = 10  # of the inverted ones


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoOptions:
    """What `auto` is made of."""

    warp_start: bool = False  # begin from the warped latent
