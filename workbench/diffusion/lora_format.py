"""Tensors of every public LoRA naming, brought under standard names; and what they change.

A key is `<prefix><module><part>`. Prefixes: `unet.` (diffusers; doubled in DragDiffusion's files),
`base_model.model.` (PEFT), `lora_unet_` (kohya, OneTrainer), `lycoris_`, `diffusion_model.`
(ComfyUI). Modules: diffusers' names or the original ones (`input_blocks.1.1…`), dotted or flat.
Parts: `_PARTS`. Everything is read by this grammar, so a key that does not follow it is unknown,
and the file is refused with the key's name: half a LoRA looks like a whole one.

Standard names, with every scale multiplied in:

    unet.<module>.lora_A.weight, .lora_B.weight      B A   (down [r,in(,k,k)], up [out,r(,1,1)])
    unet.<module>.hada_*, .lokr_*                     LoHa (w1a w1b) * (w2a w2b), LoKr w1 (x) w2
    unet.<module>.diff, .diff_b                       full difference of weight and of bias
    unet.<module>.dora_scale                          DoRA's magnitude, [out,1] or [1,in]

Sources: kohya-ss/sd-scripts and LyCORIS (scales, LoHa, LoKr, Tucker, dora_scale), PEFT (rsLoRA,
patterns, DoRA), diffusers/loaders/lora_conversion_utils.py (original block names).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.core.errors import BadInput, Notice

Tensor = torch.Tensor

_FACTORS = r"hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
_PARTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.lora_A(?:\.\w+)?\.weight$|(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight$"
                r"|\.lora_down\.weight$"), "A"),
    (re.compile(r"\.lora_B(?:\.\w+)?\.weight$|(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight$"
                r"|\.lora_up\.weight$"), "B"),
    (re.compile(r"\.lora_B(?:\.\w+)?\.bias$|\.lora_up\.bias$"), "B_bias"),
    (re.compile(r"\.lora_mid\.weight$"), "mid"),
    (re.compile(r"(?:\.lora|_lora)?\.alpha$"), "alpha"),
    (re.compile(r"\.dora_scale$|\.lora_magnitude_vector(?:\.\w+)?$"), "dora_scale"),
    (re.compile(r"\.diff$|\.w_norm$"), "diff"),
    (re.compile(r"\.diff_b$|\.b_norm$"), "diff_b"),
    (re.compile(rf"\.({_FACTORS})$"), ""),
)  # fmt: skip
# kinds of adapter that are known and not applied: a sign in the key, and the name
_NOT_APPLIED = (
    (re.compile(r"\.(oft_blocks|oft_diag|oft_R)\b"), "OFT or BOFT"),
    (re.compile(r"\.[ab][12]\.weight$"), "GLoRA"),
    (re.compile(r"\.on_input$|\.ia3_l\b"), "(IA)^3"),
    (re.compile(r"\.vera_lambda_|vera_A|vera_B"), "VeRA"),
    (re.compile(r"^lora_controlnet$|control_model\.|controlnet"), "ControlNet or Control-LoRA"),
    (re.compile(r"\.(reshape_weight|set_weight)$"), "a LoRA that reshapes layers"),
    (re.compile(r"ip_adapter|image_proj\."), "IP-Adapter"),
    (re.compile(r"motion_modules?\."), "AnimateDiff motion LoRA"),
)
_OTHER_MODELS = (
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks"), "Flux"),
    (re.compile(r"joint_blocks|^(lora_)?transformer[._]"), "Stable Diffusion 3, Flux or another "
     "transformer"),
    (re.compile(r"^lora_prior|clip_txt_mapper"), "Stable Cascade"),
    (re.compile(r"\b(lora_unet_)?(blocks|layers)[._]\d+[._](self_attn|cross_attn|attention)"),
     "a video or transformer model"),
)  # fmt: skip
_TEXT = re.compile(
    r"^(base_model\.model\.)?(text_encoder(_2|_3)?\.|lora_te[12]?[._]|te[12]?\.|clip_[lg]\.|text_model\.)"
)
_EMBEDDING = re.compile(r"^(bundle_emb|emb_params|string_to_param)")
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "unet.",
             "lora_unet_", "lora_unet.", "lycoris_")  # fmt: skip
_WORDS = (  # longest first: "to_out" before "out"
    "transformer_blocks|conv_norm_out|time_embedding|class_embedding|add_embedding|skip_connection"
    "|conv_shortcut|time_emb_proj|output_blocks|input_blocks|middle_block|downsamplers|down_blocks"
    "|attentions|upsamplers|group_norm|out_layers|emb_layers|time_embed|in_layers|mid_block|up_blocks"
    "|cond_proj|label_emb|linear_1|linear_2|proj_out|conv_out|proj_in|conv_in|resnets|to_out|attn1"
    "|attn2|norm1|norm2|norm3|conv1|conv2|conv|norm|proj|to_q|to_k|to_v|net|out|ff|op"
)
_WORD = re.compile(rf"({_WORDS}|\d+)(?:_|$)")
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ORIGINAL = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out", "out.2": "conv_out", "input_blocks.0.0": "conv_in",
}  # fmt: skip
_LAYOUTS = (
    (".processor.to_", "attention processors"), ("unet.unet.", "doubled prefix"),
    (".hada_", "LoHa"), (".lokr_", "LoKr"), ("lora_unet_", "kohya"), ("lycoris_", "LyCORIS"),
    ("diffusion_model.", "ComfyUI"), (".lora.down.", "diffusers (older)"), (".lora_A.", "diffusers"),
    (".lora_down.", "diffusers (older)"), (".diff", "full difference"),
)  # fmt: skip

# Fields of `lora_adapter_metadata`. What a field does to trained weights is either done here, or it
# does nothing to them: where an adapter sits is read from the tensors, how it was trained is past.
_APPLIED = {"r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
            "lora_bias", "peft_type"}  # fmt: skip
_PAST = {"target_modules", "exclude_modules", "lora_dropout", "module_dropout", "rank_dropout",
         "rank_dropout_scale", "init_weights", "layers_to_transform", "layers_pattern", "revision",
         "base_model_name_or_path", "inference_mode", "task_type", "auto_mapping", "peft_version",
         "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
         "ensure_weight_tying", "megatron_core", "decompose_both", "decompose_factor",
         "use_effective_conv2d", "target_parameters",
         "qalora_group_size"}  # fmt: skip  # counts with use_qalora only, which is refused
_BASE_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # the trained base is another one


@dataclass(frozen=True, slots=True)
class Parsed:
    """A LoRA under standard names. `text`: keys of text encoders, `notices`: what to tell."""

    state: dict[str, Tensor]
    layout: str
    text: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


@dataclass(slots=True)
class _Module:
    """Content of a file for one module: its tensors by part, and the key of one of them."""

    key: str
    parts: dict[str, Tensor] = field(default_factory=dict)


def parse(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], layers_per_block: int = 2
) -> Parsed:
    """Bring a file's tensors under standard names.

    Args:
        tensors: name -> tensor, any float type.
        metadata: the header's `__metadata__`; `lora_adapter_metadata` gives scales.
        layers_per_block: of the U-Net; the original block names count by it.

    Raises:
        BadInput: codes "unknown-tensor", "not-applied", "other-architecture", "half", "rank-zero",
            "text-only", "not-finite", "quantised", "metadata".
    """
    modules: dict[str, _Module] = {}
    text: list[str] = []
    embeddings: list[str] = []
    for key, tensor in tensors.items():
        if _EMBEDDING.search(key):
            embeddings.append(key)
            continue
        if _TEXT.search(key):
            text.append(key)
            continue
        place, part = _place(key, layers_per_block)
        found = modules.setdefault(place, _Module(key))
        if part in found.parts:
            raise BadInput(f"two tensors name the {part} of {place}: {key} is one", code="twice")
        found.parts[part] = _plain(key, tensor)
    if not modules:
        if text or embeddings:
            what = "text encoder" if text else "token embeddings"
            raise BadInput(
                f"changes only the {what}, which the workbench does not apply; choose a LoRA that "
                "changes the U-Net",
                code="text-only",
            )
        raise BadInput("holds no tensor at all", code="empty")
    scales = _Scales(metadata)
    state: dict[str, Tensor] = {}
    for place, module in modules.items():
        for part, tensor in _canonical(place, module, scales).items():
            state[f"unet.{place}.{part}"] = tensor
    unsaid = any("base_model.model." in k for k in tensors) and not scales.known(modules.values())
    told = (
        (text, Notice("its text-encoder part is not used: trigger words have no effect", "text-part")),
        (embeddings, Notice("its token embeddings are not used", "embeddings")),
        (unsaid, Notice("it does not say its alpha (PEFT keeps it in adapter_config.json): alpha = rank is "
                        "taken; import the whole folder with 'loras import'", "alpha-unknown")),
    )  # fmt: skip
    notices = [notice for there, notice in told if there]
    layout = next((name for sign, name in _LAYOUTS if any(sign in k for k in tensors)), "other")
    return Parsed(state, layout, tuple(text), tuple(notices))


def _place(key: str, layers_per_block: int) -> tuple[str, str]:
    """(module in diffusers' naming, part) of a key.

    Raises:
        BadInput: naming the key, and its kind where that is known.
    """
    for sign, name in _NOT_APPLIED:
        if sign.search(key):
            raise BadInput(
                f"holds {key:.120}, which is {name}; only LoRA, LoCon, DoRA, LoHa, LoKr and full "
                "differences are applied",
                code="not-applied", kind=name,
            )  # fmt: skip
    for sign, name in _OTHER_MODELS:
        if sign.search(key):
            raise BadInput(
                f"was made for {name} (it holds {key:.120}); choose a LoRA for Stable Diffusion "
                "1.x, 2.x or XL",
                code="other-architecture", kind=name,
            )  # fmt: skip
    for pattern, part in _PARTS:
        match = pattern.search(key)
        if match:
            place = module_name(key[: match.start()], layers_per_block)
            if place is not None:
                return place, part or match[1]
    raise BadInput(
        f"holds {key:.120}, which is not known; to apply only a part of a file would be a guess",
        code="unknown-tensor",
        key=key,
    )


def module_name(text: str, layers_per_block: int = 2) -> str | None:
    """diffusers' dotted name of a U-Net module in any naming; None where it is not one."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if text.startswith(prefix):
                text, stripped = text.removeprefix(prefix), True
    flat = text.replace(".", "_").replace("_processor_", "_")
    words: list[str] = []
    at = 0
    while at < len(flat):
        match = _WORD.match(flat, at)
        if match is None:
            return None
        words.append(match[1])
        at = match.end()
    if words and words[-1] == "to_out":  # attention processors leave out the index
        words.append("0")
    return _from_original(words, layers_per_block) if words else None


def _from_original(words: list[str], layers_per_block: int) -> str | None:
    """Original block names (`input_blocks.4.1…`) to diffusers'; others are joined as they are."""
    dotted = ".".join(words)
    if dotted in _ORIGINAL:
        return _ORIGINAL[dotted]
    side, numbers = words[0], [int(w) for w in words[1:3] if w.isdigit()]
    if side == "middle_block" and numbers:
        kind, rest, stage = numbers[0] % 2, ".".join(words[2:]), "mid_block"
        layer = numbers[0] // 2
    elif side in ("input_blocks", "output_blocks") and len(numbers) == 2:
        i, kind, rest = *numbers, ".".join(words[3:])
        block, layer = divmod(i - (side == "input_blocks"), layers_per_block + 1)
        stage = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{block}"
        if rest in ("op", "conv"):
            return f"{stage}.{'downsamplers' if rest == 'op' else 'upsamplers'}.0.conv"
    else:
        return dotted if side in _STARTS else None
    return (
        f"{stage}.attentions.{layer}.{rest}"
        if kind
        else f"{stage}.resnets.{layer}.{_RESNET.get(rest, rest)}"
    )


_STARTS = {"down_blocks", "up_blocks", "mid_block", "conv_in", "conv_out", "conv_norm_out",
           "time_embedding", "add_embedding", "class_embedding"}  # fmt: skip


def _plain(key: str, tensor: Tensor) -> Tensor:
    """float32.

    Raises:
        BadInput: for whole numbers (a quantised file) and for NaN or infinity.
    """
    if not tensor.is_floating_point() and tensor.numel() > 1:
        raise BadInput(
            f"stores {key:.120} as {str(tensor.dtype).removeprefix('torch.')}: quantised LoRAs are not "
            "read; get it as fp16, bf16 or fp32",
            code="quantised",
        )
    plain = tensor.float()
    if not torch.isfinite(plain).all():
        raise BadInput(
            f"has NaN or infinity in {key:.120}: its training diverged, or it overflowed when it was "
            "converted; get another version of it",
            code="not-finite",
        )
    return plain


class _Scales:
    """alpha / rank of each module: from its alpha tensor, else from the header, else 1."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        """Read `lora_adapter_metadata`.

        Raises:
            BadInput: code "metadata", naming a field that would change the weights in a way that
                is not done here.
        """
        self._config: dict[str, Any] = {}
        text = metadata.get("lora_adapter_metadata")
        if not text:
            return
        try:
            data = json.loads(text)
            self._config = {
                k.removeprefix("unet."): v for k, v in data.items() if k.startswith("unet.")
            }
        except (ValueError, AttributeError, RecursionError) as exc:
            raise BadInput("has a lora_adapter_metadata that is not JSON", code="metadata") from exc
        for name, value in self._config.items():
            harmless = name in _APPLIED or name in _PAST or value in (None, False, "none", [], {})
            if name == "init_lora_weights":
                harmless = not str(value).lower().startswith(_BASE_CHANGED)
            if name == "peft_type":
                harmless = str(value).rpartition(".")[2].upper() in ("LORA", "LOKR", "LOHA")
            if not harmless:
                raise BadInput(
                    f"says {name} = {value!r:.80} in its header, which is not applied here",
                    code="metadata",
                    field=name,
                )
        for pattern in self._config.get("alpha_pattern") or {}:
            if not re.fullmatch(
                r"(?:[\w^$\\]|\.(?!\*))*(?:\.\*(?:[\w^$\\]|\.(?!\*))*){0,3}", pattern
            ):
                raise BadInput(
                    f"has an alpha_pattern that is not understood: {pattern:.80}", code="metadata"
                )

    def known(self, modules: Iterable[_Module]) -> bool:
        """True if the file says its alpha."""
        return bool(self._config) or any("alpha" in m.parts for m in modules)

    def of(self, place: str, parts: Mapping[str, Tensor], rank: int | None) -> float:
        """The factor for a module of this rank (None: not decomposed, always 1)."""
        if rank is None:
            return 1.0
        said = self._from_header(place)
        alpha = float(parts["alpha"]) if "alpha" in parts else said
        if alpha is None:
            return 1.0
        if said is not None and "alpha" in parts and said != alpha:
            raise BadInput(
                f"gives {place} two strengths: alpha {alpha:g} as a tensor, {said:g} in its header",
                code="metadata",
            )
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _from_header(self, place: str) -> float | None:
        patterns = self._config.get("alpha_pattern") or {}
        alpha = self._config.get("lora_alpha", self._config.get("alpha"))
        for pattern, value in patterns.items():  # as peft.utils.other.get_pattern_key does
            if re.match(rf"(.*\.)?({pattern})$", place):
                alpha = value
                break
        if alpha is None:
            return None
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, (int, float))
            or not math.isfinite(alpha)
        ):
            raise BadInput(f"has {alpha!r:.40} as an alpha in its header", code="metadata")
        return float(alpha)


def _canonical(place: str, module: _Module, scales: _Scales) -> dict[str, Tensor]:
    """One module's standard parts, scales multiplied in.

    Raises:
        BadInput: when a part is missing or has rank 0.
    """
    parts = module.parts
    out: dict[str, Tensor] = {n: parts[n] for n in ("diff", "diff_b") if n in parts}
    if "dora_scale" in parts:
        scale = parts["dora_scale"]
        out["dora_scale"] = scale.flatten()[:, None] if scale.dim() == 1 else scale.flatten(1)
    if {"A", "B"} & parts.keys():
        down, up = _both(place, parts, "A", "B")
        rank = int(down.shape[0])
        if "mid" in parts:  # LoCon's Tucker core [r,r,k,k]: folded into the lower half
            down = torch.einsum("mnwh,nj->mjwh", parts["mid"], down.flatten(1))
        if up.dim() < 2 or down.dim() < 2 or up.shape[1] != down.shape[0]:
            raise BadInput(
                f"has {list(down.shape)} and {list(up.shape)} for {place}, which do not fit together",
                code="half",
            )
        factor = scales.of(place, parts, rank)
        out["lora_A.weight"] = down
        out["lora_B.weight"] = up * factor if factor != 1.0 else up
        if "B_bias" in parts:
            out["diff_b"] = parts["B_bias"] * factor
    for kind in ("hada", "lokr"):
        if any(n.startswith(kind) for n in parts):
            out |= _factored(place, kind, parts, scales)
    if not out.keys() - {"dora_scale"}:
        raise BadInput(f"has only {module.key:.120} for {place}, not its weights", code="half")
    return out


def _factored(
    place: str, kind: str, parts: Mapping[str, Tensor], scales: _Scales
) -> dict[str, Tensor]:
    out = {n: t for n, t in parts.items() if n.startswith(kind)}
    if kind == "hada":
        for side in ("1", "2"):
            _both(place, parts, f"hada_w{side}_a", f"hada_w{side}_b")
        rank: int | None = int(parts["hada_w1_b"].shape[0])
        scaled = "hada_w1_a"
    else:
        for side in ("1", "2"):
            if f"lokr_w{side}" not in parts:
                _both(place, parts, f"lokr_w{side}_a", f"lokr_w{side}_b")
        halves = [parts[n] for n in ("lokr_w2_b", "lokr_w1_b") if n in parts]
        rank = int(halves[0].shape[0]) if halves else None
        scaled = "lokr_w1" if "lokr_w1" in parts else "lokr_w1_a"
    out[scaled] = out[scaled] * scales.of(place, parts, rank)
    return out


def _both(place: str, parts: Mapping[str, Tensor], one: str, other: str) -> tuple[Tensor, Tensor]:
    for name in (one, other):
        if name not in parts:
            text = f"lacks {name} of {place}, so it is incomplete; get it again"
            raise BadInput(text, code="half")
    if 0 in parts[one].shape or 0 in parts[other].shape:
        raise BadInput(
            f"has rank 0 in {place}: it holds nothing to apply; choose another file",
            code="rank-zero",
        )
    return parts[one], parts[other]


def by_module(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Standard names, grouped: module -> part -> tensor."""
    out: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name = key.removeprefix("unet.")
        place, _, part = name.rpartition(".")
        if part == "weight":
            place, _, half = place.rpartition(".")
            part = f"{half}.weight"
        out.setdefault(place, {})[part] = tensor
    return out


def rank_of(state: Mapping[str, Tensor]) -> int:
    """Largest rank of the plain LoRA in a state; 0 where there is none."""
    return max((len(t) for k, t in state.items() if k.endswith(".lora_A.weight")), default=0)
