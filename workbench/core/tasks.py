"""What jobs other than one edit are asked for: plain data, JSON in and out. Stdlib only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.generation_config import GenerationConfig, LoraRef
from workbench.core.request import MAX_PROMPT, EditRequest, ModelRef

MOST_IN_A_SWEEP = 100
MOST_PICTURES = 16


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
