"""Where a picture's latents and a LoRA may come from besides inversion and training. Stdlib only."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core.errors import BadInput
from workbench.core.options import check, option

SCHEDULERS = ("ddim", "dpm++2m", "dpm++2m-karras")
MAX_NEGATIVE = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRef:
    """A LoRA file: `id` is the hash of its bytes in the history's blobs; `name` is for people."""

    id: str
    name: str = ""
    weight: float = option(1.0, "Strength of the LoRA; 0 is off.", low=-4.0, high=4.0)

    def __post_init__(self) -> None:
        """Check the types and the weight's range.

        Raises:
            BadInput: naming what is wrong.
        """
        if not isinstance(self.id, str) or not isinstance(self.name, str):
            raise BadInput("A LoRA is named by text.")
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """How a picture is made from a prompt. An edit of it takes its latents from here: making it
    again gives them exactly, so nothing is inverted (ALGORITHM 2.9).
    """  # fmt: skip

    negative_prompt: str = option("", "What the picture should not show.")
    steps: int = option(50, "Denoising steps.", low=2, high=500)
    guidance: float = option(
        7.5, "Classifier-free guidance: how closely the prompt is followed.", low=1.0, high=30.0
    )
    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)
    width: int = option(0, "Width; 0 takes the model's native size.", low=0, high=4096, unit="px")
    height: int = option(0, "Height; 0 takes the model's native size.", low=0, high=4096, unit="px")
    scheduler: str = option("ddim", "Sampler.", choices=SCHEDULERS)
    freeu_b1: float = option(
        1.0, "FreeU: backbone factor, first up block; 1 is off.", low=0.0, high=3.0, advanced=True
    )
    freeu_b2: float = option(
        1.0, "FreeU: backbone factor, second up block.", low=0.0, high=3.0, advanced=True
    )
    freeu_s1: float = option(
        1.0, "FreeU: skip factor, first up block.", low=0.0, high=3.0, advanced=True
    )
    freeu_s2: float = option(
        1.0, "FreeU: skip factor, second up block.", low=0.0, high=3.0, advanced=True
    )

    def __post_init__(self) -> None:
        """Check all ranges.

        Raises:
            BadInput: naming the field, the value and the range.
        """
        check(self)
        if len(self.negative_prompt) > MAX_NEGATIVE:
            raise BadInput(
                f"The negative prompt has {len(self.negative_prompt)} characters; the limit is "
                f"{MAX_NEGATIVE}."
            )
        for name in ("width", "height"):
            size = getattr(self, name)
            if size and (size < 64 or size % 8):
                raise BadInput(
                    f"GenerationConfig.{name} is {size}; it must be 0 or a multiple of 8 from 64."
                )

    @property
    def freeu(self) -> tuple[float, float, float, float] | None:
        """(s1, s2, b1, b2) as diffusers takes them, or None when all are 1."""
        values = (self.freeu_s1, self.freeu_s2, self.freeu_b1, self.freeu_b2)
        return None if values == (1.0, 1.0, 1.0, 1.0) else values
