"""The command `bench cards`: up to which size cards of 8, 12, 16 and 24 GB carry a model, by the estimate.

    python -m workbench bench cards
    python -m workbench bench cards --model sd15 --cards 6 48 --dtype fp32

Nothing is run and no weights are needed: the configurations that ship with the workbench say how
many weights there are, and the estimate that guards every edit (`editing/memory.py`) says the rest.
What was measured on real cards stands in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.diffusion.registry.files import ModelFiles
    from workbench.editing.memory import Need

MODELS = ("sd15", "sd21", "sdxl")
CARDS = (8, 12, 16, 24)
SIZES = tuple(range(256, 2049, 64))  # px of the working picture's side
SHOWN = (512, 768, 1024)
_OURS = 0.93  # of a card: the rest is the driver's and the screen's


def add_parser(subparsers: Any) -> None:
    """Add `cards`; parsing imports no torch."""
    parser = subparsers.add_parser(
        "cards",
        help="where the memory of a card ends, by the estimate",
        description="Says how much memory an edit needs at several sizes, and up to which size cards "
        "carry it: with training of the LoRA, without, and in the low-memory mode. Nothing is run.",
    )
    add = parser.add_argument
    add("--model", nargs="+", choices=(*MODELS, "sd21-base"), default=list(MODELS), metavar="NAME",
        help=f"architectures [default {' '.join(MODELS)}]")  # fmt: skip
    add("--cards", nargs="+", type=int, default=list(CARDS), metavar="GB",
        help=f"sizes of cards [default {' '.join(map(str, CARDS))}]")  # fmt: skip
    add("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="[default fp16]")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print both tables."""
    needs = {name: _estimator(name, args.dtype) for name in args.model}
    out = [
        "| model | side, px | training a LoRA | a drag after it | low-memory mode |",
        "|---|---|---|---|---|",
    ]
    for name, need in needs.items():
        for side in SHOWN:
            found = need(side)
            parts = (found.stages["lora"], max(found.stages["drag"], found.stages["decode"]))
            shown = " | ".join(f"{v / 2**30:.1f} GiB" for v in (*parts, found.sparing))
            out.append(f"| {name} | {side} | {shown} |")
    out += [
        "",
        "| model | card | first edit up to | edits of a trained picture | low-memory mode |",
    ]
    out.append("|---|---|---|---|---|")
    for name, need in needs.items():
        for card in args.cards:
            free = card * 2**30 * _OURS
            ends = " | ".join(
                f"{side} px" if side else "not at all"
                for side in (
                    _last(lambda s: need(s).peak <= free),  # noqa: B023
                    _last(lambda s: max(_dragging(need(s))) <= free),  # noqa: B023
                    _last(lambda s: need(s).sparing <= free),  # noqa: B023
                )
            )
            out.append(f"| {name} | {card} GB | {ends} |")
    sys.stdout.write("\n".join(out) + "\n")
    return 0


def _dragging(need: Need) -> Sequence[int]:
    return [v for name, v in need.stages.items() if name != "lora"]


def _last(fits: Callable[[int], bool]) -> int:
    """The largest of `SIZES` that fits; 0 when none does. The need grows with the size."""
    low, high = -1, len(SIZES)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(SIZES[middle]) else (low, middle)
    return SIZES[low] if low >= 0 else 0


def _estimator(name: str, dtype: str) -> Callable[[int], Need]:
    """The function side -> memory of a usual edit on a square picture of that side."""
    from dataclasses import replace
    from functools import cache

    from workbench.core.request import EditRequest, ImageAsset
    from workbench.diffusion.device import Memory
    from workbench.editing.memory import estimate

    files = _files(name)
    weights = _parameters(files) * (4 if dtype == "fp32" else 2)

    @cache
    def need(side: int) -> Need:
        image = ImageAsset(id="", width=side, height=side)
        found = estimate(
            EditRequest(image=image, pairs=(), working_size=side), files, native=side,
            device="cuda:0", dtype=dtype, loaded=False, memory=Memory(2**50, 2**50),
        )  # fmt: skip
        stages = {stage: peak + weights for stage, peak in found.stages.items()}
        return replace(found, stages=stages, sparing=found.sparing + weights)

    return need


def _files(name: str) -> ModelFiles:
    """A model's configurations without its weights."""
    from workbench.diffusion.registry import Registry
    from workbench.diffusion.registry.files import STANDARD, ModelFiles

    root = STANDARD / name
    parts = [p.name for p in root.iterdir() if p.name != "scheduler"]
    return ModelFiles(
        spec=Registry().resolve(name), root=root, vae=root / "vae", single=None,
        weights={part: () for part in parts}, variants={},
    )  # fmt: skip


def _parameters(files: ModelFiles) -> int:
    """Number of weights of all parts, which are built without storage."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        made: list[Any] = [
            UNet2DConditionModel.from_config(files.config("unet")),
            AutoencoderKL.from_config(files.config("vae")),
        ]
        for part in files.components:
            if part.startswith("text"):
                made.append(CLIPTextModel(CLIPTextConfig(**files.config(part))))
    return sum(p.numel() for module in made for p in module.parameters())
