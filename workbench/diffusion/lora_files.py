"""LoRA files: standard diffusers/PEFT safetensors with an identity card in their metadata.

Read: that format, kohya's, DragDiffusion's doubled prefix and attention-processor keys (which
current diffusers ignores without a word). Written: `unet.<module>.lora_A.weight` and `lora_B`, which
`pipe.load_lora_weights` of plain diffusers takes. Nothing here opens a pickle.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from workbench import __version__
from workbench.core.errors import BadInput, ModelError
from workbench.diffusion.lora_keys import rank_of, to_kohya_keys, to_peft_keys

log = logging.getLogger(__name__)

CARD = "workbench"
CARD_FORMAT = 1
MOST_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraCard:
    """Where a LoRA comes from; every field may be empty in a file made elsewhere."""

    model: str = ""  # fingerprint of the base model
    model_name: str = ""
    image: str = ""  # id of the picture
    image_name: str = ""
    prompt: str = ""
    rank: int = 0
    steps: int = 0
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    workbench: str = __version__

    def to_text(self) -> str:
        """JSON for the file's metadata."""
        return json.dumps({"format": CARD_FORMAT, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> LoraCard:
        """Read a card; unknown fields are dropped, wrong ones make the card empty."""
        try:
            data = json.loads(text)
            defaults = {f.name: f for f in dataclasses.fields(cls)}
            given = {k: v for k, v in data.items() if k in defaults}
            plain = cls()
            for name, value in given.items():
                wanted = Mapping if name == "config" else type(getattr(plain, name))
                if not isinstance(value, wanted) or isinstance(value, bool):
                    raise TypeError(name)
            return cls(**given)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            log.warning("the LoRA's identity card is damaged: %s", exc)
            return cls()


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA that was read: `weights` under standard keys `unet.<module>.lora_{A,B}.weight`.

    `layout` is the naming it came in; `left_out` names tensors that belong to no module of the
    U-Net (a text encoder's, say) and are not used.
    """

    weights: dict[str, torch.Tensor]
    card: LoraCard
    layout: str
    left_out: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """Largest rank of any module."""
        return rank_of(self.weights)


def write(weights: Mapping[str, torch.Tensor], card: LoraCard, layout: str = "diffusers") -> bytes:
    """A LoRA as bytes of a safetensors file: standard diffusers/PEFT keys, or `kohya`'s.

    Raises:
        BadInput: for another layout.
    """
    if layout not in ("diffusers", "kohya"):
        raise BadInput(f"A LoRA can be written as diffusers or kohya, not as {layout!r}.")
    named = dict(weights) if layout == "diffusers" else to_kohya_keys(weights)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    return bytes(save(plain, metadata={"format": "pt", CARD: card.to_text()}))


def read(
    raw: bytes, name: str = "LoRA", modules: Iterable[str] = (), layers_per_block: int = 2
) -> LoraFile:
    """Read a LoRA file of any known naming; scales (alpha / rank) are multiplied into the weights.

    `modules` are the names of the U-Net's modules: kohya's naming cannot be read without them, and
    then everything is in `left_out`.

    Raises:
        BadInput: when it is no safetensors file, holds NaN, or no LoRA at all.
    """
    if len(raw) > MOST_BYTES:
        raise BadInput(f"{name} has {len(raw) / 2**30:.1f} GB; a LoRA has at most 2 GB.")
    try:
        tensors = load(raw)
        metadata = _metadata(raw)
    except (SafetensorError, ValueError, KeyError, RuntimeError, struct.error) as exc:
        raise BadInput(
            f"{name} is no safetensors file, or is damaged ({exc}); pickles (.pt, .bin, .ckpt) are "
            "not opened, convert them to .safetensors first."
        ) from exc
    layout = _layout(tensors)
    if not layout:
        some = ", ".join(sorted(tensors)[:2]) or "nothing"
        raise BadInput(f"{name} holds no LoRA that is known here; it has {some:.200}.")
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BadInput(f"{name} has NaN or infinity in {key}; it is damaged, get it again.")
    try:
        found = to_peft_keys(tensors, modules, layers_per_block)
    except ModelError as exc:
        raise BadInput(f"{name}: {exc}") from exc
    weights = {k: t.float() for k, t in found.state.items()}
    card = LoraCard.from_text(metadata[CARD]) if CARD in metadata else LoraCard()
    return LoraFile(weights, card, layout, found.left_out)


_LAYOUTS = (
    (".processor.to_", "attention processors"),
    ("unet.unet.", "doubled prefix"),
    ("lora_unet_", "kohya"),
    (".lora.down.", "diffusers (older)"),
    (".lora_A.", "diffusers"),
    (".lora_down.", "diffusers (older)"),
)


def _layout(names: Iterable[str]) -> str:
    """In which naming a file is written, or "" for none that is known."""
    listed = [n for n in names if "lora" in n.lower()]
    for sign, layout in _LAYOUTS:
        if any(sign in n for n in listed):
            return layout
    return ""


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
) -> list[str]:
    """Whether a LoRA fits a model (and a picture): sentences of warning.

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
            "model, or train a LoRA on this one."
        )
    if not file.weights:
        raise BadInput(
            f"{label} has no layer of this model's U-Net; it was made for another architecture, or "
            "for the text encoder only."
        )
    modules = dict(unet.named_modules())
    for key, tensor in file.weights.items():
        path, _, rest = key.removeprefix("unet.").partition(".lora_")
        weight: Any = getattr(modules.get(path), "weight", None)
        side = 1 if rest.startswith("A") else 0
        if weight is None or weight.shape[side] != tensor.shape[side]:
            has = "no such layer" if weight is None else f"{list(weight.shape)} there"
            raise BadInput(
                f"{label} does not fit this model: {path} has {list(tensor.shape)} in the LoRA, and "
                f"the model has {has}; it was made for another architecture."
            )
    notices = []
    if card.model and card.model != model:
        notices.append(
            f"{label} was trained on another model ({card.model_name or card.model}); its effect may "
            "differ."
        )
    if not style and image and card.image and card.image != image:
        notices.append(
            f"{label} was trained on another picture ({card.image_name or card.image}), so it knows "
            "this one less well."
        )
    if not style and not card.image:
        notices.append(f"{label} does not say which picture it was trained on.")
    if file.left_out:
        notices.append(
            f"{label} also holds {len(file.left_out)} tensors that do not belong to the U-Net; they are "
            "not used."
        )
    return notices
