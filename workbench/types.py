"""The data that flows through the workbench: frozen, range-checked, JSON in and out. Stdlib only.

Coordinates are image pixels, x right, y down, the centre of the top-left pixel is (0, 0).
A mask is painted where the picture may change.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import BadInput
from workbench.options import check, from_mapping, option

MAX_PAIRS = 64
MAX_PROMPT = 2000
METHODS = ("dragdiffusion", "gooddrag", "warp", "auto")


@dataclass(frozen=True, slots=True)
class Point:
    """A position in image pixels, x right, y down; (0, 0) is the centre of the top-left pixel."""

    x: float
    y: float

    def __post_init__(self) -> None:
        """Refuse what is no finite number."""
        for name in ("x", "y"):
            v = getattr(self, name)
            if (
                isinstance(v, bool)
                or not isinstance(v, (int, float))
                or not abs(v) <= sys.float_info.max
            ):
                raise BadInput(f"Point.{name} is {v!r}; it must be a finite number of pixels.")
            object.__setattr__(self, name, float(v))

    def distance(self, other: Point) -> float:
        """Euclidean distance in pixels."""
        return math.hypot(self.x - other.x, self.y - other.y)


@dataclass(frozen=True, slots=True)
class PointPair:
    """One arrow: the feature at `handle` is to arrive at `target` (both image pixels)."""

    handle: Point
    target: Point

    @property
    def length(self) -> float:
        """Length of the arrow in pixels."""
        return self.handle.distance(self.target)

    def to_json(self) -> list[float]:
        """`[handle x, handle y, target x, target y]`."""
        return [self.handle.x, self.handle.y, self.target.x, self.target.y]

    @classmethod
    def from_json(cls, data: Any) -> PointPair:
        """Read `[hx, hy, tx, ty]`.

        Raises:
            BadInput: when it is not four finite numbers.
        """
        if not isinstance(data, Sequence) or isinstance(data, str) or len(data) != 4:
            raise BadInput(f"A pair is four numbers [hx, hy, tx, ty], not {data!r:.80}.")
        return cls(Point(data[0], data[1]), Point(data[2], data[3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAsset:
    """A stored picture: `id` is the hash of its upright RGB pixels; pixels are fetched by id."""

    id: str
    width: int
    height: int
    name: str = "picture"

    def __post_init__(self) -> None:
        """Check the types; the pixels themselves are checked by the store."""
        _check_asset(self, "image")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskAsset:
    """A stored mask of the picture's size (painted = may change)."""

    id: str
    width: int
    height: int

    def __post_init__(self) -> None:
        """Check the types; the pixels themselves are checked by the store."""
        _check_asset(self, "mask")


def _check_asset(asset: ImageAsset | MaskAsset, what: str) -> None:
    for name in ("id", "name"):
        if not isinstance(getattr(asset, name, ""), str):
            raise BadInput(f"The {what}'s {name} must be text.")
    for name in ("width", "height"):
        size = getattr(asset, name)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise BadInput(f"The {what}'s {name} is {size!r:.40}; it must be at least 1 px.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """Which model: registry name or folder, and the fingerprint of its weights once known."""

    name: str = "storybook"
    revision: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """Check the types."""
        for name in ("name", "revision", "fingerprint"):
            if not isinstance(getattr(self, name), str):
                raise BadInput(f"The model's {name} must be text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """How the picture's LoRA is trained (ALGORITHM 2.10; defaults are DragDiffusion's)."""

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
class InversionConfig:
    """How the picture becomes a noisy latent (DDIM inversion, ALGORITHM 2.3)."""

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
    """How the latent is dragged. Radii and shifts are in feature-lattice pixels (half the image).

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
        "Motion-supervision patch: (2r+1) x (2r+1) lattice pixels.",
        low=0,
        high=32,
        advanced=True,
    )
    track_radius: int = option(
        3, "Point-tracking window: (2r+1) x (2r+1) lattice pixels.", low=1, high=64, advanced=True
    )
    max_shift: float = option(
        1.0,
        "Longest shift of the patch per step (lattice pixels).",
        low=0.1,
        high=32.0,
        advanced=True,
    )
    stop_distance: float = option(
        2.0,
        "A handle closer than this to its target has arrived (lattice pixels).",
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

    @classmethod
    def preset(cls, method: str = "dragdiffusion", strength: str = "normal") -> DragConfig:
        """The method's own defaults; `strength` is gentle, normal or strong.

        Raises:
            BadInput: for a name that is not known.
        """
        if method not in METHODS:
            raise BadInput(
                f"There is no drag method {method!r}; choose one of: {', '.join(METHODS)}."
            )
        if strength not in STRENGTHS:
            raise BadInput(
                f"There is no preset {strength!r}; choose one of: {', '.join(STRENGTHS)}."
            )
        values = dict(_METHOD_DEFAULTS[method])
        base = cls(method=method, **values)
        return dataclasses.replace(base, steps=max(1, round(base.steps * STRENGTHS[strength])))


STRENGTHS = {"gentle": 0.5, "normal": 1.0, "strong": 2.5}

_METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "dragdiffusion": {},
    "gooddrag": {
        "steps": 210, "learning_rate": 0.02, "mask_weight": 0.2, "patch_radius": 4,
        "track_radius": 12, "max_shift": 4.0,
    },
    "warp": {"steps": 0},
    "auto": {
        "steps": 80, "learning_rate": 0.02, "patch_radius": 4, "track_radius": 12, "max_shift": 4.0,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRequest:
    """Everything that one edit depends on. `keys.edit_key` hashes what affects pixels."""

    image: ImageAsset
    pairs: tuple[PointPair, ...]
    mask: MaskAsset | None = None
    prompt: str = ""
    model: ModelRef = field(default_factory=ModelRef)
    lora: LoraConfig = field(default_factory=LoraConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    drag: DragConfig = field(default_factory=DragConfig)
    seed: int = 0
    working_size: int = 0  # longest side in px during the edit; 0 = the model's native size
    parent: str | None = None  # id of the edit whose result is this request's picture

    def __post_init__(self) -> None:
        """Check pairs, prompt and seed against the picture.

        Raises:
            BadInput: naming the pair, the value and the limit.
        """
        object.__setattr__(self, "pairs", tuple(self.pairs))
        if len(self.pairs) > MAX_PAIRS:
            raise BadInput(f"There are {len(self.pairs)} arrows; at most {MAX_PAIRS} are possible.")
        w, h = self.image.width, self.image.height
        for i, pair in enumerate(self.pairs, 1):
            for what, p in (("handle", pair.handle), ("target", pair.target)):
                if not (-0.5 <= p.x <= w - 0.5 and -0.5 <= p.y <= h - 0.5):
                    raise BadInput(
                        f"Point {i} {what} ({p.x:.1f}, {p.y:.1f}) is outside the {w}x{h} image; "
                        "move it inside."
                    )
        if self.mask is not None and (self.mask.width, self.mask.height) != (w, h):
            raise BadInput(
                f"The mask is {self.mask.width}x{self.mask.height} but the image is {w}x{h}; "
                "they must have the same size."
            )
        if not isinstance(self.prompt, str):
            raise BadInput("The prompt must be text.")
        if self.parent is not None and not isinstance(self.parent, str):
            raise BadInput("The parent must be the id of an edit.")
        if len(self.prompt) > MAX_PROMPT:
            raise BadInput(
                f"The prompt has {len(self.prompt)} characters; the limit is {MAX_PROMPT}."
            )
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not 0 <= self.seed < 2**63
        ):
            raise BadInput(
                f"The seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1."
            )
        size = self.working_size
        if (
            isinstance(size, bool)
            or not isinstance(size, int)
            or not (size == 0 or 64 <= size <= 4096)
        ):
            raise BadInput(
                f"The working size is {size!r}; it must be 0 (automatic) or 64 to 4096 px."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` restores an equal request."""
        data = dataclasses.asdict(self)
        data["pairs"] = [p.to_json() for p in self.pairs]
        return data

    @classmethod
    def from_json(cls, data: Any, *, strict: bool = True) -> EditRequest:
        """Read what `to_json` wrote; unknown keys are refused unless `strict` is False.

        Raises:
            BadInput: naming what is missing or out of range.
        """
        if not isinstance(data, Mapping):
            raise BadInput(f"An edit request must be a JSON object, not {type(data).__name__}.")
        parts: dict[str, Any] = dict(data)
        for name in ("image", "pairs"):
            if name not in parts:
                raise BadInput(f"The edit request lacks {name!r}.")
        for name, kind in _PARTS.items():
            if name in parts and not (name == "mask" and parts[name] is None):
                try:
                    parts[name] = from_mapping(kind, parts[name], strict=strict)
                except TypeError as exc:
                    raise BadInput(f"The edit request's {name!r} is incomplete: {exc}.") from exc
        pairs = parts["pairs"]
        if not isinstance(pairs, Sequence) or isinstance(pairs, str):
            raise BadInput("The edit request's 'pairs' must be a list of [hx, hy, tx, ty].")
        parts["pairs"] = tuple(PointPair.from_json(p) for p in pairs)
        return from_mapping(cls, parts, strict=strict)


_PARTS: dict[str, type[Any]] = {
    "image": ImageAsset,
    "mask": MaskAsset,
    "model": ModelRef,
    "lora": LoraConfig,
    "inversion": InversionConfig,
    "drag": DragConfig,
}
