"""Settings of an edit: drag methods with their defaults, LoRA training, inversion, drag, generation.

Each field describes itself (range, unit, effect); `--help` and the pages are built from that. `SPECS`
is the one table of drag methods: pages, command line, sweeps, batch and benchmarks read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.options import check, option

SCHEDULERS = ("ddim", "dpm++2m", "dpm++2m-karras")
MAX_NEGATIVE = 2000
STRENGTHS = {"gentle": 0.5, "normal": 1.0, "strong": 2.5}  # factor on the method's own steps
_ROUNDS = ("drag_rounds", "trackings_per_round", "updates_per_tracking", "no_change_limit")
_OF_PICTURE = ("composite", "feather", "parity")  # kept when the method changes
_SHARING = ("sharing_start_layer", "sharing_start_step")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """A drag method: how it is called, its own defaults, and which options it reads.

    `drag` and `inversion` hold what differs from the defaults of `DragConfig` and `InversionConfig`.
    `own` names options that only this method reads; `only`, where it is given, all that it reads.
    """

    name: str
    label: str
    description: str
    drag: Mapping[str, Any] = field(default_factory=dict)
    inversion: Mapping[str, Any] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    optimises: bool = True  # runs motion supervision: has steps, losses and tracked points
    moves_pixels: bool = False  # begins by moving the picture's pixels; needs them
    keeps_pixels: bool = False  # what was moved keeps the picture's own pixels in the result

    def reads(self, option: str) -> bool:
        """True when the method looks at this field of `DragConfig`."""
        if self.only is not None:
            return option in self.only
        return not any(option in s.own for s in SPECS.values() if s.name != self.name)

    def drag_config(self, strength: str = "normal") -> DragConfig:
        """The method's defaults; `strength` (gentle, normal, strong) scales its steps.

        Raises:
            BadInput: for an unknown strength.
        """
        if strength not in STRENGTHS:
            raise BadInput(
                f"There is no preset {strength!r}; choose one of: {', '.join(STRENGTHS)}.",
                code="unknown-name",
                field="preset",
            )
        base = DragConfig(method=self.name, **self.drag)
        return dataclasses.replace(base, steps=max(1, round(base.steps * STRENGTHS[strength])))

    def inversion_config(self, **given: Any) -> InversionConfig:
        """The method's inversion, with the fields of `given` in place of its own."""
        return InversionConfig(**{**self.inversion, **given})


SPECS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec(
            name="dragdiffusion",
            label="DragDiffusion",
            description="the authors' method, step by step",
        ),
        MethodSpec(
            name="gooddrag",
            label="GoodDrag",
            description="drags and denoises in turn; arrives more often, takes longer",
            drag={
                "steps": 210, "learning_rate": 0.02, "mask_weight": 0.2, "patch_radius": 4,
                "track_radius": 12, "max_shift": 4.0,
            },
            inversion={"strength": 0.75},
            own=_ROUNDS,
        ),
        MethodSpec(
            name="warp",
            label="Warp",
            description="one move without optimisation, in a fraction of the time",
            drag={"steps": 0},
            only=(*_OF_PICTURE, *_SHARING),
            optimises=False,
            moves_pixels=True,
        ),
        MethodSpec(
            name="auto",
            label="Auto",
            description="moves the picture's own pixels; the model draws only what that leaves open",
            drag={
                "steps": 30, "learning_rate": 0.04, "patch_radius": 4, "track_radius": 12,
                "max_shift": 4.0,
            },
            own=("refine",),
            moves_pixels=True,
            keeps_pixels=True,
        )
    )
}  # fmt: skip
METHODS = tuple(SPECS)


def method_spec(name: str) -> MethodSpec:
    """The entry of a method.

    Raises:
        BadInput: for an unknown name.
    """
    if name not in SPECS:
        raise BadInput(
            f"There is no drag method {name!r}; choose one of: {', '.join(METHODS)}.",
            code="unknown-name",
            field="drag.method",
        )
    return SPECS[name]


def method_label(name: str) -> str:
    """A method's label; its name where a newer version wrote it."""
    return SPECS[name].label if name in SPECS else name


def with_method(
    drag: DragConfig, inversion: InversionConfig, method: str
) -> tuple[DragConfig, InversionConfig]:
    """Both configurations for another method.

    The drag takes the method's defaults at the same strength, but keeps compositing, feather and
    parity. Of the inversion, fields at the old method's default take the new one's.

    Raises:
        BadInput: for an unknown name.
    """
    old, new = method_spec(drag.method), method_spec(method)
    # normal first: a method without steps has the same number at every strength
    order = sorted(STRENGTHS, key=lambda s: s != "normal")
    strength = next((s for s in order if old.drag_config(s).steps == drag.steps), "normal")
    kept = {name: getattr(drag, name) for name in _OF_PICTURE}
    usual, now = dataclasses.asdict(old.inversion_config()), dataclasses.asdict(inversion)
    by_hand = {name: value for name, value in now.items() if value != usual[name]}
    made = dataclasses.replace(new.drag_config(strength), **kept)
    return made, new.inversion_config(**by_hand)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Training of the picture's LoRA (docs/algorithm.md 1.2; defaults are DragDiffusion's)."""

    steps: int = option(
        80,
        "Training steps; 0 trains none. More keeps the picture's identity better.",
        low=0,
        high=2000,
    )
    learning_rate: float = option(
        5e-4, "Step size of AdamW on the LoRA weights.", low=1e-6, high=1e-1
    )
    rank: int = option(16, "LoRA rank: capacity of the adapter.", low=1, high=128)
    batch_size: int = option(4, "Noised copies of the picture per step.", low=1, high=64)
    accumulation: int = option(
        1, "Gradient accumulation: batches per optimiser step.", low=1, high=64, advanced=True
    )
    resolution: int = option(
        0,
        "Training crop (short side); 0 takes the working size.",
        low=0,
        high=2048,
        unit="px",
        advanced=True,
    )
    weight_decay: float = option(1e-2, "AdamW weight decay.", low=0.0, high=1.0, advanced=True)

    def __post_init__(self) -> None:
        """Check all ranges."""
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPreset:
    """A named choice of LoRA training options."""

    label: str
    description: str
    values: Mapping[str, Any]

    @property
    def config(self) -> LoraConfig:
        """The training options."""
        return LoraConfig(**self.values)


LORA_PRESETS: dict[str, LoraPreset] = {
    "quick": LoraPreset(
        label="Quick", description="40 steps, for a first look", values={"steps": 40}
    ),
    "standard": LoraPreset(label="Standard", description="80 steps, recommended", values={}),
    "thorough": LoraPreset(
        label="Thorough", description="200 steps, keeps small details", values={"steps": 200}
    ),
    # the values of the DragDiffusion authors' tutorial
    "tutorial": LoraPreset(
        label="Tutorial",
        description="100 steps with batch size 1 and learning rate 0.0002",
        values={"steps": 100, "learning_rate": 2e-4, "batch_size": 1},
    ),
}


def lora_preset(name: str) -> LoraConfig:
    """Training options of a preset.

    Raises:
        BadInput: for an unknown name.
    """
    if name not in LORA_PRESETS:
        raise BadInput(
            f"There is no preset {name!r}; choose one of: {', '.join(LORA_PRESETS)}.",
            code="unknown-name",
            field="lora_preset",
        )
    return LORA_PRESETS[name].config


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionConfig:
    """Inversion of the picture into a noisy latent (DDIM, docs/algorithm.md 1.3)."""

    steps: int = option(50, "DDIM steps of the whole schedule.", low=2, high=500)
    strength: float = option(
        0.7,
        "How deep the picture is inverted (share of the steps): deeper moves more, keeps less.",
        low=0.02,
        high=1.0,
    )
    guidance: float = option(
        1.0,
        "Classifier-free guidance; above 1 only for generated pictures.",
        low=1.0,
        high=30.0,
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Check all ranges."""
        check(self)

    @property
    def inverted_steps(self) -> int:
        """Number of steps that are inverted (Python's round-half-even, at least 1)."""
        return max(1, min(self.steps, round(self.strength * self.steps)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DragConfig:
    """Options of a drag. Radii and shifts are in feature grid pixels (half the image).

    Use `DragConfig.preset(method, strength)`: each method has its own defaults.
    """

    method: str = option("dragdiffusion", "Drag method.", choices=METHODS)
    steps: int = option(
        80,
        "Most motion-supervision steps (n_pix_steps); lower it if things moved too far.",
        low=0,
        high=2000,
    )
    learning_rate: float = option(0.01, "Step size of Adam on the latent.", low=1e-5, high=1.0)
    mask_weight: float = option(
        0.1, "Lambda: how strongly the unpainted part is held.", low=0.0, high=100.0
    )
    patch_radius: int = option(
        1,
        "Motion-supervision patch: (2r+1) x (2r+1) grid pixels.",
        low=0,
        high=32,
        advanced=True,
    )
    track_radius: int = option(
        3, "Point-tracking window: (2r+1) x (2r+1) grid pixels.", low=1, high=64, advanced=True
    )
    max_shift: float = option(
        1.0,
        "Longest shift of the patch per step (grid pixels).",
        low=0.1,
        high=32.0,
        advanced=True,
    )
    stop_distance: float = option(
        2.0,
        "A handle closer than this to its target has arrived (grid pixels).",
        low=0.0,
        high=64.0,
        advanced=True,
    )
    feature_block: int = option(
        3, "Feature after up block (index - 1): 3 is up_blocks[2].", low=1, high=4, advanced=True
    )
    drag_rounds: int = option(
        7,
        "gooddrag: denoise steps that are preceded by a drag round.",
        low=1,
        high=200,
        advanced=True,
    )
    trackings_per_round: int = option(
        10, "gooddrag: point trackings per round.", low=1, high=200, advanced=True
    )
    updates_per_tracking: int = option(
        3, "gooddrag: gradient steps between two trackings.", low=1, high=100, advanced=True
    )
    no_change_limit: int = option(
        10,
        "gooddrag: stop after so many trackings without motion.",
        low=1,
        high=1000,
        advanced=True,
    )
    sharing_start_layer: int = option(
        10,
        "First of SD's 16 self-attentions that reads the original picture's keys and values.",
        low=0,
        high=16,
        advanced=True,
    )
    sharing_start_step: int = option(
        0, "First denoise step with shared attention.", low=0, high=500, advanced=True
    )
    refine: bool = option(
        False, "auto: train on the picture and optimise as well. Takes minutes instead of seconds."
    )
    composite: bool = option(True, "Put the untouched picture back outside the mask, exactly.")
    feather: float = option(
        3.0,
        "Width of the blend inside the mask's edge.",
        low=0.0,
        high=64.0,
        unit="px",
        advanced=True,
    )
    parity: bool = option(
        False,
        "The reference's arithmetic to the letter (ties, empty mask, no compositing).",
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Check all ranges."""
        check(self)

    @property
    def drafts(self) -> bool:
        """True when the drag needs neither LoRA nor inversion: `auto` without `refine`."""
        return SPECS[self.method].keeps_pixels and not self.refine

    @classmethod
    def preset(cls, method: str = "dragdiffusion", strength: str = "normal") -> DragConfig:
        """The method's own defaults; `strength` is gentle, normal or strong.

        Raises:
            BadInput: for a name that is not known.
        """
        return method_spec(method).drag_config(strength)


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
    """Options of a picture made from a prompt. An edit of it takes its latents from here: making it
    again gives them exactly, so nothing is inverted (docs/algorithm.md 1.6).
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
                    f"generation.{name} is {size}; it must be 0 or a multiple of 8 from 64.",
                    code="out-of-range",
                    field=f"generation.{name}",
                    value=size,
                )

    @property
    def freeu(self) -> tuple[float, float, float, float] | None:
        """(s1, s2, b1, b2) as diffusers takes them, or None when all are 1."""
        values = (self.freeu_s1, self.freeu_s2, self.freeu_b1, self.freeu_b2)
        return None if values == (1.0, 1.0, 1.0, 1.0) else values
