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
from math import isfinite
from typing import Any

from workbench.core.config import (
    DragConfig,
    GenerationConfig,
    InversionConfig,
    LoraConfig,
    LoraRef,
    with_method,
)
from workbench.core.errors import BadInput
from workbench.core.options import from_mapping

MAX_PAIRS = 64
MAX_PROMPT = 2000
MOST_IN_A_SWEEP = 100
MOST_PICTURES = 16


@dataclass(frozen=True, slots=True)
class Point:
    """A position in image pixels, x right, y down; (0, 0) is the centre of the top-left pixel."""

    x: float
    y: float

    def __post_init__(self) -> None:
        """Check the numbers and make them floats.

        Raises:
            BadInput: when one is not a finite number.
        """
        if type(self.x) is float and type(self.y) is float and isfinite(self.x + self.y):
            return  # a history holds hundreds of thousands of points: first the usual case
        for name in ("x", "y"):
            v = getattr(self, name)
            if (
                isinstance(v, bool)
                or not isinstance(v, (int, float))
                or not abs(v) <= sys.float_info.max
            ):
                text = f"Point.{name} is {v!r:.80}; it must be a finite number of pixels."
                raise BadInput(text, code="not-finite", field=f"point.{name}")
            object.__setattr__(self, name, float(v))

    def distance(self, other: Point) -> float:
        """Euclidean distance in pixels."""
        return math.hypot(self.x - other.x, self.y - other.y)


MOVES = ("auto", "shift", "turn", "stretch")  # how what a handle holds may move


@dataclass(frozen=True, slots=True)
class PointPair:
    """One arrow from the feature at `handle` to its `target` (both image pixels).

    `grow`: how much the handle holds, from -1 (its own spot) over 0 to 1 (everything connected to
    it). `move`: how that moves: chosen by the method ("auto"), shifted as one piece, turned about
    the nearest pin or the place where it is attached, or stretched from there.
    """

    handle: Point
    target: Point
    grow: float = 0.0
    move: str = "auto"

    def __post_init__(self) -> None:
        """Check `grow` and `move`.

        Raises:
            BadInput: when either is out of range.
        """
        if self.grow == 0.0 and self.move == "auto":
            return
        grow = self.grow
        if isinstance(grow, bool) or not isinstance(grow, (int, float)) or not -1 <= grow <= 1:
            text = f"An arrow's grow is {grow!r:.40}; it must be a number from -1 to 1."
            raise BadInput(text, code="out-of-range", field="grow", value=grow, limit=1)
        object.__setattr__(self, "grow", float(grow))
        if self.move not in MOVES:
            text = f"An arrow's move is {self.move!r:.40}; it must be one of: {', '.join(MOVES)}."
            raise BadInput(text, code="unknown-move", field="move", value=self.move)

    @property
    def length(self) -> float:
        """Length of the arrow in pixels."""
        return self.handle.distance(self.target)

    def to_json(self) -> list[Any]:
        """`[handle x, handle y, target x, target y]`, and a fifth `{"grow", "move"}` if one is set."""
        out: list[Any] = [self.handle.x, self.handle.y, self.target.x, self.target.y]
        more: dict[str, Any] = {"grow": self.grow} if self.grow else {}
        more |= {"move": self.move} if self.move != "auto" else {}
        return [*out, more] if more else out

    @classmethod
    def from_json(cls, data: Any) -> PointPair:
        """Read `[hx, hy, tx, ty]` or `[hx, hy, tx, ty, {"grow": g, "move": kind}]`.

        Raises:
            BadInput: when it is not four finite numbers, or the fifth part has another shape.
        """
        if not isinstance(data, Sequence) or isinstance(data, str) or len(data) not in (4, 5):
            text = f"A pair is four numbers [hx, hy, tx, ty], not {data!r:.80}."
            raise BadInput(text, code="not-a-pair", field="pairs")
        more = data[4] if len(data) == 5 else {}
        if not isinstance(more, Mapping) or not more.keys() <= {"grow", "move"}:
            text = (
                f'The fifth part of a pair is {{"grow": number, "move": kind}}, not {more!r:.80}.'
            )
            raise BadInput(text, code="not-a-pair", field="pairs")
        return cls(Point(data[0], data[1]), Point(data[2], data[3]), **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAsset:
    """A stored picture: `id` is the hash of its upright RGB pixels; pixels are fetched by id."""

    id: str
    width: int
    height: int
    name: str = "picture"
    alpha: str | None = None  # id of its alpha channel, where it has one (PNG blob, 8 bit)

    def __post_init__(self) -> None:
        """Check the types; the pixels themselves are checked by the store.

        Raises:
            BadInput: when id, name, alpha or size is not what it must be.
        """
        _check_asset(self, "image")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskAsset:
    """A stored mask of the picture's size (painted = may change)."""

    id: str
    width: int
    height: int

    def __post_init__(self) -> None:
        """Check the types; the pixels themselves are checked by the store.

        Raises:
            BadInput: when id or size is not what it must be.
        """
        _check_asset(self, "mask")


def _check_asset(asset: ImageAsset | MaskAsset, what: str) -> None:
    for name in ("id", "name"):
        if not isinstance(getattr(asset, name, ""), str):
            raise BadInput(f"The {what}'s {name} must be text.")
    if not isinstance(getattr(asset, "alpha", None), (str, type(None))):
        raise BadInput(f"The {what}'s alpha must be the id of a file.")
    for name in ("width", "height"):
        size = getattr(asset, name)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise BadInput(
                f"The {what}'s {name} is {size!r:.40}; it must be at least 1 px.",
                code="out-of-range",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model: registry name or folder, and the fingerprint of its weights once known."""

    name: str = "storybook"
    revision: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """Check the types.

        Raises:
            BadInput: when one is not text.
        """
        for name in ("name", "revision", "fingerprint"):
            if not isinstance(getattr(self, name), str):
                raise BadInput(f"The model's {name} must be text.")


def _px(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1e6 else f"{value:.3g}"


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
    crop: bool = True  # edit a big picture on a crop around its mask, at the model's native size
    lora_file: LoraRef | None = None  # takes the place of the LoRA that would be trained
    style: LoraRef | None = None  # stacked under the picture's LoRA
    generation: GenerationConfig | None = None  # the picture was made so: its latents are used
    parent: str | None = None  # id of the edit whose result is this request's picture

    def __post_init__(self) -> None:
        """Check pairs, prompt and seed against the picture.

        Raises:
            BadInput: naming the pair, the value and the limit.
        """
        object.__setattr__(self, "pairs", tuple(self.pairs))
        if len(self.pairs) > MAX_PAIRS:
            raise BadInput(
                f"There are {len(self.pairs)} arrows; at most {MAX_PAIRS} are possible.",
                code="too-many-arrows",
                field="pairs",
            )
        w, h = self.image.width, self.image.height
        for i, pair in enumerate(self.pairs, 1):
            for what, p in (("handle", pair.handle), ("target", pair.target)):
                if not (-0.5 <= p.x <= w - 0.5 and -0.5 <= p.y <= h - 0.5):
                    raise BadInput(
                        f"Point {i} {what} ({_px(p.x)}, {_px(p.y)}) is outside the {w}x{h} image; "
                        "move it inside.",
                        code="outside-picture",
                        field="pairs",
                        arrow=i,
                        end=what,
                    )
        if self.mask is not None and (self.mask.width, self.mask.height) != (w, h):
            raise BadInput(
                f"The mask is {self.mask.width}x{self.mask.height} but the image is {w}x{h}; "
                "they must have the same size.",
                code="mask-size",
                field="mask",
            )
        if not isinstance(self.prompt, str):
            raise BadInput("The prompt must be text.", code="not-text", field="prompt")
        if self.parent is not None and not isinstance(self.parent, str):
            raise BadInput("The parent must be the id of an edit.", code="not-text", field="parent")
        if len(self.prompt) > MAX_PROMPT:
            raise BadInput(
                f"The prompt has {len(self.prompt)} characters; the limit is {MAX_PROMPT}.",
                code="too-long",
                field="prompt",
            )
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not 0 <= self.seed < 2**63
        ):
            raise BadInput(
                f"The seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1.",
                code="out-of-range",
                field="seed",
            )
        if not isinstance(self.crop, bool):
            text = f"The crop is {self.crop!r:.40}; it must be true or false."
            raise BadInput(text, code="out-of-range", field="crop")
        size = self.working_size
        if (
            isinstance(size, bool)
            or not isinstance(size, int)
            or not (size == 0 or 64 <= size <= 4096)
        ):
            raise BadInput(
                f"The working size is {size!r}; it must be 0 (automatic) or 64 to 4096 px.",
                code="out-of-range",
                field="working_size",
            )

    def with_method(self, method: str) -> EditRequest:
        """The request with another method and its defaults; see `config.with_method`.

        Raises:
            BadInput: for an unknown name.
        """
        drag, inversion = with_method(self.drag, self.inversion, method)
        return dataclasses.replace(self, drag=drag, inversion=inversion)

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
                text = f"The edit request lacks {name!r}."
                raise BadInput(text, code="missing", field=name)
        for name, kind in _PARTS.items():
            if name in parts and not (name in _OPTIONAL and parts[name] is None):
                try:
                    parts[name] = from_mapping(kind, parts[name], strict=strict)
                except TypeError as exc:
                    raise BadInput(
                        f"The edit request's {name!r} is incomplete: {exc}.", code="incomplete"
                    ) from exc
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
    "lora_file": LoraRef,
    "style": LoraRef,
    "generation": GenerationConfig,
}
_OPTIONAL = ("mask", "lora_file", "style", "generation")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train a picture's LoRA and invert the picture, so that its drags begin at once.

    `request` is an edit's request (its arrows are not looked at; its mask decides about the crop of
    a big picture). `start` is a LoRA to go on from; `name` puts the result into the LoRA library.
    `preview` also denoises the inverted latent: how well the model knows the picture.
    """

    request: EditRequest
    start: LoraRef | None = None
    name: str = ""
    preview: bool = True

    @property
    def label(self) -> str:
        """The picture's name."""
        return self.request.image.name

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**dataclasses.asdict(self), "request": self.request.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateTask:
    """Make `count` pictures from a prompt, with seeds that follow `config.seed`."""

    prompt: str
    config: GenerationConfig = field(default_factory=GenerationConfig)
    model: ModelRef = field(default_factory=ModelRef)
    count: int = 4

    def __post_init__(self) -> None:
        """Check prompt and count.

        Raises:
            BadInput: with the value and the limit.
        """
        if not isinstance(self.prompt, str) or len(self.prompt) > MAX_PROMPT:
            raise BadInput(f"The prompt must be text of at most {MAX_PROMPT} characters.")
        if isinstance(self.count, bool) or not isinstance(self.count, int):
            raise BadInput(f"The number of pictures is {self.count!r:.40}; it must be whole.")
        if not 1 <= self.count <= MOST_PICTURES:
            raise BadInput(
                f"{self.count} pictures were asked for; 1 to {MOST_PICTURES} are possible."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class SweepTask:
    """Several edits as one job; one that fails does not stop the others."""

    requests: tuple[EditRequest, ...]
    label: str = ""

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            BadInput: with the limit.
        """
        object.__setattr__(self, "requests", tuple(self.requests))
        if not 1 <= len(self.requests) <= MOST_IN_A_SWEEP:
            raise BadInput(
                f"A sweep has 1 to {MOST_IN_A_SWEEP} edits, not {len(self.requests)}; narrow it."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"requests": [r.to_json() for r in self.requests], "label": self.label}
