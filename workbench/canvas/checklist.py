"""Check arrows, mask and prompt before a run: findings with a code, a level and a sentence."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from workbench.canvas.drawing import Drawing, crossing
from workbench.core.config import SPECS, DragConfig, LoraRef
from workbench.core.request import MAX_PAIRS, EditRequest, Point, PointPair

Mask = npt.NDArray[np.bool_]
Level = Literal["ok", "warn", "block"]
_LEVELS = ("block", "warn", "ok")  # the order in which they are shown

MOST_TOKENS = 75  # CLIP reads 77 with its two marks
# Syntax of A1111, ComfyUI and their kin: code, what it looks like
SYNTAX: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("prompt-lora", re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE)),
    ("prompt-embedding", re.compile(r"\bembedding:[\w.-]+|<[\w-]+>", re.IGNORECASE)),
    ("prompt-weights", re.compile(r"[(\[][^()\[\]]*:\s*-?\d*\.?\d+\s*[)\]]|\(\([^()]*\)\)|\[\[[^\[\]]*\]\]")),
    ("prompt-choices", re.compile(r"\{[^{}]*\|[^{}]*\}|\[[^\[\]]*\|[^\[\]]*\]|__[\w/-]+__|\bBREAK\b"
                                r"|\bAND\b")),
)  # fmt: skip
_MERGES = Path(__file__).resolve().parents[1] / "weights" / "standard" / "clip_merges.txt.gz"
_PIECE = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)


def other_syntax(prompt: str) -> list[tuple[str, str]]:
    """(code, the place) of each kind of syntax that is taken literally here."""
    found = []
    rest = prompt
    for code, pattern in SYNTAX:
        match = pattern.search(rest)
        if match:
            found.append((code, match[0][:40]))
            rest = pattern.sub(" ", rest)
    return found


def tokens(prompt: str) -> int:
    """Number of CLIP tokens of a prompt, without the start and end marks."""
    return sum(_count(piece) for piece in _PIECE.findall(prompt.lower()))


@lru_cache(maxsize=1)
def _ranks() -> dict[tuple[str, str], int]:
    lines = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    pairs = (line.split(" ") for line in lines)
    return {(a, b): i for i, (a, b) in enumerate(pairs)}


@lru_cache(maxsize=1)
def _letters() -> dict[int, str]:
    """Byte -> the printable letter that stands for it in the merges (as GPT-2 has it)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return {b: chr(b) for b in plain} | {
        b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)
    }


@lru_cache(maxsize=4096)
def _count(piece: str) -> int:
    """Tokens of one piece, by byte-pair merges in the order of their rank."""
    parts = [_letters()[b] for b in piece.encode("utf-8", "replace")]
    if len(parts) > 200:
        return len(parts) // 4  # no word; the exact number does not matter
    parts[-1] += "</w>"
    ranks = _ranks()
    while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda p: ranks.get(p, 10**9))
        if best not in ranks:
            break
        merged: list[str] = []
        i = 0
        while i < len(parts):
            if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                merged.append(parts[i] + parts[i + 1])
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
    return len(parts)


_LONG = 0.5  # of the picture's diagonal
PIN = 1e-3  # px: a shorter arrow is a pin, which holds its point
_SAME = 1.0  # px: two handles closer than this are one


class Code(StrEnum):
    """Code of the finding; stable, for programs and tests."""

    NO_ARROW = "no-arrow"
    ARROWS_OFF = "arrows-off"
    NO_TARGET = "no-target"
    TOO_MANY_ARROWS = "too-many-arrows"
    OUTSIDE_PICTURE = "outside-picture"
    HOLDS_STILL = "holds-still"
    LONG_ARROW = "long-arrow"
    SAME_ARROWS = "same-arrows"
    SAME_HANDLE = "same-handle"
    CROSSING = "crossing"
    NO_MASK = "no-mask"
    FROZEN = "frozen"
    MASK_PROPOSED = "mask-proposed"
    HANDLE_OUTSIDE_MASK = "handle-outside-mask"
    TARGET_OUTSIDE_MASK = "target-outside-mask"
    MASK_EDGE = "mask-edge"
    MASK_INVERTED = "mask-inverted"
    PROMPT_WEIGHTS = "prompt-weights"
    PROMPT_LORA = "prompt-lora"
    PROMPT_EMBEDDING = "prompt-embedding"
    PROMPT_CHOICES = "prompt-choices"
    PROMPT_LONG = "prompt-long"
    LORA_UNUSED = "lora-unused"
    MODEL_UNSUITED = "model-unsuited"
    MODEL_POOR = "model-poor"
    MODEL_POOR_KEEPS = "model-poor-keeps"
    ARROWS = "arrows"
    MASK_FULL = "mask-full"
    MASK_AREA = "mask-area"


TEXTS: dict[Code, str] = {
    Code.NO_ARROW: "Draw an arrow from the part you want to move to where it should go.",
    Code.ARROWS_OFF: "All arrows are switched off. Switch at least one on.",
    Code.NO_TARGET: "The handle at ({x:.0f}, {y:.0f}) has no target. Click its target.",
    Code.TOO_MANY_ARROWS: "There are {count} arrows; at most {limit} are possible. Delete some.",
    Code.OUTSIDE_PICTURE: "Arrow {arrow}: the {end} ({x:.1f}, {y:.1f}) is outside the "
    "{width}x{height} picture. Move it inside.",
    Code.HOLDS_STILL: "{arrow} is a pin: it holds its point in place.",
    Code.LONG_ARROW: "Arrow {arrow} is {length:.0f} px long, more than half of the picture. Two "
    "shorter drags, one after the other, keep more detail.",
    Code.SAME_ARROWS: "Arrows {arrow} and {other} are the same. Delete one of them.",
    Code.SAME_HANDLE: "Arrows {arrow} and {other} pull the same handle to different targets. "
    "Delete one of them.",
    Code.CROSSING: "Arrows {arrow} and {other} cross. The area between them may tear.",
    Code.NO_MASK: "No mask: the whole picture may change. Paint the part that should be edited.",
    Code.FROZEN: "No mask: this mode then changes nothing at all. Paint the part that should be "
    "edited.",
    Code.MASK_PROPOSED: "No mask yet: the highlighted area ({share}) will be edited.",
    Code.HANDLE_OUTSIDE_MASK: "Arrow {arrow} starts outside the mask. Extend the mask to cover its "
    "handle.",
    Code.TARGET_OUTSIDE_MASK: "Arrow {arrow} ends outside the mask. Extend the mask to cover its "
    "target.",
    Code.MASK_EDGE: "Arrow {arrow}: the {end} is at the edge of the mask. Paint more around it.",
    Code.MASK_INVERTED: "The mask looks inverted: it covers {share} of the picture, but no arrow "
    "starts in it. Invert it if the painted part was meant to stay.",
    Code.PROMPT_WEIGHTS: "Prompt: weights like {place} are not interpreted; the text is taken as it "
    "stands. Describe what matters first instead.",
    Code.PROMPT_LORA: "Prompt: {place} is not interpreted. Choose the LoRA under its own setting "
    "(--style NAME) and remove it from the prompt.",
    Code.PROMPT_EMBEDDING: "Prompt: embeddings like {place} are not supported; the name is taken as "
    "text. Remove it.",
    Code.PROMPT_CHOICES: "Prompt: {place} is not interpreted; the text is taken as it stands. Write one "
    "plain description.",
    Code.PROMPT_LONG: "Prompt: {count} tokens, of which the model reads {limit}; the rest is ignored. "
    "Shorten it.",
    Code.LORA_UNUSED: "The LoRA {name} has no effect: without Refine, nothing of this method uses one. "
    "Switch Refine on (--drag-refine), or choose another method.",
    Code.MODEL_UNSUITED: "The model {model} only draws illustrations, and this looks like a photograph: "
    "what it redraws will not match. Choose the model {suits} under Upload & train (--model {suits}).",
    Code.MODEL_POOR: "The model {model} knows this picture poorly, so details will be lost. Choose the "
    "method Auto, which then moves the picture's own pixels, or another model.",
    Code.MODEL_POOR_KEEPS: "The model {model} knows this picture poorly: expect the picture's own pixels, "
    "moved, and mistakes where something must be redrawn.",
    Code.ARROWS: "{count} arrow{s}.",
    Code.MASK_FULL: "Editable area: the whole picture.",
    Code.MASK_AREA: "Editable area: {share} of the picture.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the checklist: "block" disables Run, "warn" does not."""

    level: Level
    code: Code
    arrows: tuple[int, ...] = ()  # numbers of the arrows that it is about, from 1
    values: dict[str, Any] = field(default_factory=dict)  # what the sentence mentions

    @property
    def text(self) -> str:
        """The sentence for the user."""
        names = dict(zip(("arrow", "other"), self.arrows, strict=False))
        return TEXTS[self.code].format(**names, **self.values)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: level, code, arrows, values and text."""
        return {
            "level": self.level, "code": self.code.value, "arrows": list(self.arrows),
            "values": self.values, "text": self.text,
        }  # fmt: skip


def ready(findings: Sequence[Finding]) -> bool:
    """True if nothing blocks the run."""
    return all(f.level != "block" for f in findings)


def checklist(
    drawing: Drawing, size: tuple[int, int], mask: Mask, config: DragConfig | None = None
) -> list[Finding]:
    """Check a drawing on a picture of `size` (width, height); blocks first, then warnings, then ok.

    Args:
        drawing: arrows and shapes in image pixels.
        size: the picture's width and height.
        mask: the rasterised mask, bool [height, width].
        config: the drag's options; some change what an empty mask means.
    """
    found: list[Finding] = []
    if drawing.loose is not None:
        values = {"x": drawing.loose.x, "y": drawing.loose.y}
        found.append(Finding("block", Code.NO_TARGET, values=values))
    elif not drawing.arrows:
        found.append(Finding("block", Code.NO_ARROW))
    elif not drawing.pairs:
        found.append(Finding("block", Code.ARROWS_OFF))
    elif all(p.length < PIN for p in drawing.pairs):
        found.append(Finding("block", Code.NO_ARROW))
    numbered = [(i, a.pair) for i, a in enumerate(drawing.arrows, 1) if a.on]
    return by_level([*found, *check_drag(numbered, size, mask, config or DragConfig())])


def check_drag(
    numbered: Sequence[tuple[int, PointPair]], size: tuple[int, int], mask: Mask, drag: DragConfig
) -> list[Finding]:
    """Check numbered arrows and a mask, bool [height, width], on a picture of `size`."""
    return [*_arrows(numbered, size), *_between(numbered), *_mask(numbered, mask, drag)]


def check_prompt(prompt: str) -> list[Finding]:
    """Other tools' syntax, and text beyond what the text encoder reads."""
    found = [
        Finding("warn", Code(code), values={"place": place}) for code, place in other_syntax(prompt)
    ]
    count = tokens(prompt)
    if count > MOST_TOKENS:
        values = {"count": count, "limit": MOST_TOKENS}
        found.append(Finding("warn", Code.PROMPT_LONG, values=values))
    return found


def check_lora(lora: LoraRef | None, drag: DragConfig) -> list[Finding]:
    """A LoRA that stands in for the picture's own, which a draft does without."""
    if lora is None or not drag.drafts:
        return []
    return [Finding("warn", Code.LORA_UNUSED, values={"name": lora.name or lora.id[:8]})]


def check_model(model: str, drag: DragConfig, *, suits: str, level: str) -> list[Finding]:
    """How well the model knows the picture.

    Args:
        model: its name.
        drag: the method decides what that means for the result.
        suits: name of the shipped model that suits the picture.
        level: "well", "partly" or "poorly" where it was measured on this picture, else "".
    """
    if model == "storybook" and suits != model:
        return [Finding("warn", Code.MODEL_UNSUITED, values={"model": model, "suits": suits})]
    if level != "poorly":
        return []
    code = Code.MODEL_POOR_KEEPS if SPECS[drag.method].keeps_pixels else Code.MODEL_POOR
    return [Finding("warn", code, values={"model": model})]


def check_request(request: EditRequest, mask: Mask | None) -> list[Finding]:
    """All findings about a request; the same for the page, the command line and Python.

    Args:
        request: arrows in image pixels, options, prompt.
        mask: the mask's pixels, bool [height, width]; None where there is none.
    """
    size = (request.image.width, request.image.height)
    painted = np.zeros(size[::-1], bool) if mask is None else mask
    found = [Finding("block", Code.NO_ARROW)] if not request.pairs else []
    numbered = list(enumerate(request.pairs, 1))
    found += check_drag(numbered, size, painted, request.drag)
    found += check_lora(request.lora_file, request.drag)
    return by_level([*found, *check_prompt(request.prompt)])


def by_level(findings: Sequence[Finding]) -> list[Finding]:
    """Blocks first, then warnings, then ok."""
    return sorted(findings, key=lambda f: _LEVELS.index(f.level))


def percent(share: float) -> str:
    """A share, 0 to 1, as people say it."""
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"


def _arrows(numbered: Sequence[tuple[int, PointPair]], size: tuple[int, int]) -> list[Finding]:
    found: list[Finding] = []
    if len(numbered) > MAX_PAIRS:
        many = {"count": len(numbered), "limit": MAX_PAIRS}
        found.append(Finding("block", Code.TOO_MANY_ARROWS, values=many))
    diagonal = float(np.hypot(*size))
    for i, pair in numbered:
        for end, p in (("handle", pair.handle), ("target", pair.target)):
            if not _inside(p, size):
                values: dict[str, Any] = {
                    "end": end,
                    "x": p.x,
                    "y": p.y,
                    "width": size[0],
                    "height": size[1],
                }
                found.append(Finding("block", Code.OUTSIDE_PICTURE, (i,), values))
        if pair.length < PIN:
            found.append(Finding("ok", Code.HOLDS_STILL, (i,)))
        elif pair.length > _LONG * diagonal:
            found.append(Finding("warn", Code.LONG_ARROW, (i,), {"length": pair.length}))
    if numbered and not found:
        n = len(numbered)
        found.append(Finding("ok", Code.ARROWS, values={"count": n, "s": "s" if n > 1 else ""}))
    return found


def _between(numbered: Sequence[tuple[int, PointPair]]) -> list[Finding]:
    found: list[Finding] = []
    for (i, a), (j, b) in itertools.combinations(numbered[:MAX_PAIRS], 2):
        if a.handle.distance(b.handle) < _SAME:
            same = a.target.distance(b.target) < _SAME
            found.append(Finding("warn", Code.SAME_ARROWS if same else Code.SAME_HANDLE, (i, j)))
        elif crossing(a, b):
            found.append(Finding("warn", Code.CROSSING, (i, j)))
    return found


def _mask(
    numbered: Sequence[tuple[int, PointPair]], mask: Mask, options: DragConfig
) -> list[Finding]:
    if not mask.any():
        frozen = options.parity and options.method == "gooddrag"
        return [Finding("warn", Code.FROZEN if frozen else Code.NO_MASK)]
    found: list[Finding] = []
    height, width = mask.shape
    room = max(3.0, 0.01 * float(np.hypot(width, height)))
    for i, pair in numbered:
        if pair.length < PIN:
            continue  # outside the mask everything stays in place anyway
        for end, code, p in (
            ("handle", Code.HANDLE_OUTSIDE_MASK, pair.handle),
            ("target", Code.TARGET_OUTSIDE_MASK, pair.target),
        ):
            if not _inside(p, (width, height)):
                continue
            if not mask[_pixel(p, mask.shape)]:
                found.append(Finding("warn", code, (i,)))
            elif _near_edge(p, mask, room):
                found.append(Finding("warn", Code.MASK_EDGE, (i,), {"end": end}))
    share = float(mask.mean())
    lost = {f.arrows[0] for f in found if f.code is Code.HANDLE_OUTSIDE_MASK}
    if numbered and len(lost) == len(numbered) and share > 0.5:
        values = {"share": percent(share)}
        found = [Finding("warn", Code.MASK_INVERTED, values=values)]
    if mask.all():
        found.append(Finding("ok", Code.MASK_FULL))
    else:
        found.append(Finding("ok", Code.MASK_AREA, values={"share": percent(share)}))
    return found


def _inside(p: Point, size: tuple[int, int]) -> bool:
    return -0.5 <= p.x <= size[0] - 0.5 and -0.5 <= p.y <= size[1] - 0.5


def _pixel(p: Point, shape: tuple[int, ...]) -> tuple[int, int]:
    row, col = round(p.y), round(p.x)
    return min(max(row, 0), shape[0] - 1), min(max(col, 0), shape[1] - 1)


def _near_edge(p: Point, mask: Mask, room: float) -> bool:
    """True if an unpainted pixel lies within `room` of a painted point."""
    row, col = _pixel(p, mask.shape)
    r = int(np.ceil(room))
    y0, x0 = max(0, row - r), max(0, col - r)
    window = mask[y0 : row + r + 1, x0 : col + r + 1]
    ys, xs = np.nonzero(~window)
    return bool(np.any((ys + y0 - p.y) ** 2 + (xs + x0 - p.x) ** 2 <= room * room))
