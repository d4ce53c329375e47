"""Names of LoRA tensors: every common naming to the standard one, and back to kohya's.

Standard (PEFT, diffusers): `unet.<module>.lora_A.weight` (down, [r,in]) and `.lora_B.weight` (up,
[out,r]), scale 1. Read as well:

- DragDiffusion's files: `unet.unet.<module>.lora.{down,up}.weight` (the prefix doubled by an old
  diffusers; its issues 24 and 30);
- attention processors (GoodDrag's files): `unet.<attention>.processor.to_q_lora.{down,up}.weight`,
  which current diffusers passes over without a word;
- PEFT wrappers: `base_model.model.<module>.lora_A.<adapter>.weight`;
- kohya: `lora_unet_<module with _>.lora_{down,up}.weight` and `.alpha`; for SDXL also with the
  original block names (`input_blocks_4_1_...`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from workbench.core.errors import ModelError

Tensor = torch.Tensor

_PARTS = (
    (re.compile(r"^(.*?)\.lora_(A|B)(?:\.[^.]+)?\.weight$"), {"A": "A", "B": "B"}),
    (re.compile(r"^(.*?)\.lora\.(down|up)\.weight$"), {"down": "A", "up": "B"}),
    (re.compile(r"^(.*?)\.lora_(down|up)\.weight$"), {"down": "A", "up": "B"}),
)
_PROCESSOR = re.compile(r"^(.*)\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight$")
_PREFIXES = ("base_model.model.", "unet.")
_KOHYA = "lora_unet_"


@dataclass(frozen=True, slots=True)
class Converted:
    """`state` under standard keys; `left_out`: names that belong to no U-Net module."""

    state: dict[str, Tensor]
    left_out: tuple[str, ...]


def to_peft_keys(
    state: Mapping[str, Tensor], modules: Iterable[str] = (), layers_per_block: int = 2
) -> Converted:
    """Bring a LoRA under standard keys; `alpha` (scale alpha / rank) is multiplied into B.

    Args:
        state: tensors under any of the namings of this file.
        modules: names of the U-Net's modules (`dict(unet.named_modules())`); kohya's names cannot be
            read without them, since they write "_" for ".".
        layers_per_block: of the U-Net, for SDXL's original block names.

    Raises:
        ModelError: when a module has only one of its two matrices.
    """
    known = {name.replace(".", "_"): name for name in modules}
    found: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    left: list[str] = []
    for key, tensor in state.items():
        module, part = _parse(key)
        if module is not None and module.startswith(_KOHYA):
            module = _from_kohya(module.removeprefix(_KOHYA), known, layers_per_block)
        if module is None or part is None:
            left.append(key)
        elif part == "alpha":
            alphas[module] = float(tensor)
        else:
            found.setdefault(module, {})[part] = tensor
    out: dict[str, Tensor] = {}
    for module, parts in found.items():
        if set(parts) != {"A", "B"}:
            raise ModelError(f"The LoRA has only half of the weights of {module}; it is damaged.")
        scale = alphas.get(module, float(len(parts["A"]))) / len(parts["A"])
        out[f"unet.{module}.lora_A.weight"] = parts["A"]
        out[f"unet.{module}.lora_B.weight"] = parts["B"] * scale if scale != 1.0 else parts["B"]
    return Converted(out, tuple(left))


def to_kohya_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Standard keys to kohya's, with `alpha` = rank (scale 1), for other programs."""
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        module, part = _parse(key)
        if module is None or part not in ("A", "B"):
            raise ModelError(f"{key!r} is no standard LoRA key.")
        name = _KOHYA + module.replace(".", "_")
        out[f"{name}.lora_{'down' if part == 'A' else 'up'}.weight"] = tensor
        if part == "A":
            out[f"{name}.alpha"] = torch.tensor(float(len(tensor)))
    return out


def rank_of(state: Mapping[str, Tensor]) -> int:
    """Largest rank of a LoRA under standard keys; 0 for an empty one."""
    return max((len(t) for k, t in state.items() if k.endswith(".lora_A.weight")), default=0)


def _parse(key: str) -> tuple[str | None, str | None]:
    """(module, A | B | alpha) of a key; (None, None) for what belongs to no U-Net."""
    if key.endswith(".alpha"):
        return _module(key.removesuffix(".alpha")), "alpha"
    processor = _PROCESSOR.match(key)
    if processor:
        attention, kind, part = processor.groups()
        name = "to_out.0" if kind == "out" else f"to_{kind}"
        return _module(f"{attention}.{name}"), "A" if part == "down" else "B"
    for pattern, names in _PARTS:
        match = pattern.match(key)
        if match:
            return _module(match[1]), names[match[2]]
    return None, None


def _module(name: str) -> str | None:
    """Module path without prefixes; None for text encoders."""
    if name.startswith(_KOHYA):
        return name
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return None if name.startswith(("text_encoder", "lora_te", "te.")) else name


def _from_kohya(name: str, known: Mapping[str, str], per_block: int) -> str | None:
    """Dotted module path of kohya's flat name, or None when the U-Net has no such module."""
    if name in known:
        return known[name]
    match = re.match(r"(input|middle|output)_blocks?_(\d+)(?:_(\d+))?_(.*)", name)
    if match is None:
        return None
    side, i, j, rest = match[1], int(match[2]), match[3], match[4]
    if side == "middle":
        stage, kind, layer = "mid_block", i % 2, i // 2
    else:
        kind = int(j or 0)
        if side == "input":
            block, layer = divmod(i - 1, per_block + 1)
            stage = f"down_blocks_{block}"
        else:
            block, layer = divmod(i, per_block + 1)
            stage = f"up_blocks_{block}"
    return known.get(f"{stage}_{'attentions' if kind else 'resnets'}_{layer}_{rest}")
