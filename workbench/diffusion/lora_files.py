"""LoRA files: read in every public naming (`lora_format`), checked against a model, written.

Written: `unet.<module>.lora_A.weight` and `lora_B`, which `pipe.load_lora_weights` of plain diffusers
takes, with an identity card in the metadata. Nothing here opens a pickle.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from workbench.core.errors import BadInput, Notice
from workbench.diffusion.lora import change_of
from workbench.diffusion.lora_format import by_module, parse, rank_of
from workbench.diffusion.registry.diagnose import (
    CARD,
    HEAD_BYTES,
    LoraCard,
    check_header,
    diagnose_bytes,
    prediction_of,
)

MOST_BYTES = 2 * 2**30


_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA that was read: `weights` under standard names (see `lora_format`).

    `layout` is the naming it came in; `notices` say what of it is not applied.
    """

    weights: dict[str, torch.Tensor]
    card: LoraCard
    layout: str
    notices: tuple[Notice, ...] = ()

    @property
    def architecture(self) -> str:
        """Whose text width the LoRA has; "" where it does not tell."""
        for key, tensor in self.weights.items():
            if "attn2.to_k.lora_A" in key or "attn2.to_v.lora_A" in key:
                return _WIDTHS.get(int(tensor.shape[1]), "")
        return ""

    @property
    def rank(self) -> int:
        """Largest rank of any module."""
        return rank_of(self.weights)


def write(weights: Mapping[str, torch.Tensor], card: LoraCard, layout: str = "diffusers") -> bytes:
    """A LoRA as bytes of a safetensors file: diffusers/PEFT names, or `kohya`'s.

    Raises:
        BadInput: for another layout, or a kind (LoHa, LoKr, full differences) that has no diffusers
            form.
    """
    if layout not in ("diffusers", "kohya"):
        raise BadInput(f"A LoRA can be written as diffusers or kohya, not as {layout!r}.")
    plain = {"lora_A.weight", "lora_B.weight", "dora_scale"}
    if layout == "diffusers" and any(p.keys() - plain for p in by_module(weights).values()):
        raise BadInput(
            "This LoRA is not a plain one (LoHa, LoKr or a full difference), which diffusers does not "
            "read; write it with --layout kohya.",
            code="layout",
            field="layout",
        )
    if layout == "kohya":
        named = to_kohya_keys(weights)
    else:
        named = {
            k.replace(".dora_scale", ".lora_magnitude_vector"): t.flatten() if "dora" in k else t
            for k, t in weights.items()
        }
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    return bytes(save(ready, metadata={"format": "pt", CARD: card.to_text()}))


def to_kohya_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Standard names to kohya's, with `alpha` = rank (scale 1), for other programs."""
    out: dict[str, torch.Tensor] = {}
    for place, parts in by_module(state).items():
        name = f"lora_unet_{place.replace('.', '_')}"
        for part, tensor in parts.items():
            plain = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
            out[f"{name}.{plain.get(part, part)}"] = tensor
        if "lora_A.weight" in parts:
            out[f"{name}.alpha"] = torch.tensor(float(len(parts["lora_A.weight"])))
        elif "hada_w1_b" in parts:
            out[f"{name}.alpha"] = torch.tensor(float(len(parts["hada_w1_b"])))
    return out


def read(raw: bytes, name: str = "LoRA", layers_per_block: int = 2) -> LoraFile:
    """Read a LoRA file of any known naming; scales (alpha / rank) are multiplied into the weights.

    `layers_per_block` is the U-Net's; only the original block names (`input_blocks_4_1`) need it.

    Raises:
        BadInput: when it is not a safetensors file, or holds anything that is not understood; `code`
            says which (see `lora_format.parse`).
    """
    if len(raw) > MOST_BYTES:
        text = f"{name} has {len(raw) / 2**30:.1f} GB; a LoRA has at most 2 GB."
        raise BadInput(text, code="too-large")
    look = diagnose_bytes(raw[:HEAD_BYTES], len(raw))
    if look.code not in ("lora", "unknown"):
        raise BadInput(f"{name} {look.text}.", code=look.code)
    try:
        tensors = load(raw)
        metadata = _metadata(raw)
    except (SafetensorError, ValueError, KeyError, RuntimeError, struct.error) as exc:
        text = f"{name} cannot be read as safetensors ({exc})."
        raise BadInput(text, code="not-safetensors") from exc
    try:
        unknown, others = check_header(metadata)
        if unknown:
            raise BadInput(
                f"says {unknown:.80} = {metadata[unknown]!r:.80} in its header, which is not known; it may "
                "change its strength",
                code="metadata", field=unknown,
            )  # fmt: skip
        found = parse(tensors, metadata, layers_per_block)
    except BadInput as exc:
        raise BadInput(f"{name} {exc}.", code=exc.code, field=exc.field, **exc.values) from exc
    card = LoraCard.from_text(metadata[CARD]) if CARD in metadata else LoraCard()
    notices = list(found.notices)
    if others:
        text = f"its header also says {', '.join(others)[:160]}, which is not used"
        notices.append(Notice(text, code="header-unknown"))
    if prediction_of(metadata) == "v_prediction":
        text = "it was trained on a model with v-prediction; on one with epsilon it does not fit"
        notices.append(Notice(text, code="v-prediction"))
    return LoraFile(found.state, card, found.layout, tuple(notices))


def _metadata(raw: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    found = header.get("__metadata__", {})
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def check(
    file: LoraFile,
    unet: torch.nn.Module,
    *,
    name: str,
    model: str,
    image: str = "",
    style: bool = False,
) -> list[Notice]:
    """Check that a LoRA fits a model (and a picture); returns warnings.

    `model` is the base model's fingerprint, `image` the picture's id. A style may come from another
    checkpoint of the same build; a picture's LoRA may not.

    Raises:
        BadInput: when it was made for another model, or its shapes do not fit this one.
    """
    label = name or "The LoRA"
    card = file.card
    if card.model and card.model != model and not style:
        raise BadInput(
            f"{label} was trained on another model ({card.model_name or card.model}); choose that "
            "model, or train a LoRA on this one.",
            code="other-model",
        )
    modules = dict(unet.named_modules())
    for place, parts in by_module(file.weights).items():
        weight: Any = getattr(modules.get(place), "weight", None)
        if weight is None or not _fits(parts, weight):
            has = "no such layer" if weight is None else f"{list(weight.shape)} there"
            made = f" for {file.architecture}" if file.architecture else " for another architecture"
            raise BadInput(
                f"{label} does not fit this model: it changes {place}, and the model has {has}; it "
                f"was made{made}.",
                code="misfit",
            )
    notices = [Notice(f"{label}: {n}.", code=n.code) for n in file.notices]
    if card.model and card.model != model:
        other = card.model_name or card.model
        text = f"{label} was trained on another model ({other}); its effect may differ."
        notices.append(Notice(text, code="other-model"))
    if not style and image and card.image and card.image != image:
        text = (
            f"{label} was trained on another picture ({card.image_name or card.image}), so it knows "
            "this one less well."
        )
        notices.append(Notice(text, code="other-picture"))
    if not style and not card.image:
        text = f"{label} does not say which picture it was trained on."
        notices.append(Notice(text, code="no-picture"))
    return notices


def _fits(parts: Mapping[str, torch.Tensor], weight: torch.Tensor) -> bool:
    """True if a module's parts give a change of its weight's shape; nothing is computed."""
    meta = {n: t.to("meta") for n, t in parts.items() if n not in ("dora_scale", "diff_b")}
    try:
        change_of(meta, torch.empty(weight.shape, device="meta"))
    except (RuntimeError, KeyError):
        return False
    scale = parts.get("dora_scale")
    return scale is None or scale.numel() in weight.shape[:2]
