"""Identify a model or LoRA file from its first bytes and its header: one function for `add`, `import`
and use. No torch; it reads a few megabytes at most, so the answer takes well under a second.

A safetensors file is: 8 bytes length, a JSON header with every tensor's name, type and shape, then
the numbers. `Look.text` is a verb phrase that follows the file's name.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench import __version__

log = logging.getLogger(__name__)

HEADER_LIMIT = 100 * 2**20  # the safetensors library's own limit
HEAD_BYTES = 8 + HEADER_LIMIT
CARD = "workbench"  # the metadata entry that holds a `LoraCard`
CARD_FORMAT = 1
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "refiner"}
FAMILIES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x",
            "sdxl": "Stable Diffusion XL", "refiner": "the refiner of Stable Diffusion XL"}  # fmt: skip
_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
# Where a checkpoint keeps its text encoder tells its family. The second sd1 form is the oldest one,
# from before transformers 4.31: the same tensors without ".text_model".
_SIGNS = (
    ("conditioner.embedders.1.model.", "sdxl"),
    ("conditioner.embedders.0.model.", "refiner"),
    ("cond_stage_model.model.", "sd2"),
    ("cond_stage_model.transformer.", "sd1"),
)
OLD_TEXT = re.compile(
    r"^cond_stage_model\.transformer\.(?=embeddings\.|encoder\.|final_layer_norm\.)"
)
# Tensors of a checkpoint that are not the model, with the reason why they do not count.
IGNORED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^model_ema\."), "moving averages; the weights beside them are used"),
    (re.compile(r"^(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+"
                r"|lvlb_weights|logvar)$"), "the training's noise schedule, the same for every model"),
    (re.compile(r"^(denoiser\.sigmas|global_step|epoch|model_ema_decay|num_updates)$"),
     "the training's state"),
    (re.compile(r"^cond_stage_model\.logit_scale$|\.logit_scale$"), "used in CLIP's training only"),
    (re.compile(r"\.position_ids$"), "the numbers 0 to 76"),
    (re.compile(r"^(v_pred|ztsnr)$"), "markers, see Look.prediction and Look.zero_snr"),
    (re.compile(r"^(safety_checker|feature_extractor)\."), "never loaded"),
)  # fmt: skip
# Entries of a header's `__metadata__` that are used (here or in `lora_format`), and those that are not,
# with the reason. Any other one that looks like a setting is refused: see `check_header`.
HEADER_USED = {"lora_adapter_metadata", "workbench", "modelspec.prediction_type", "modelspec.encoder_layer",
               "ss_zero_terminal_snr", "ss_v_parameterization"}  # fmt: skip
HEADER_IGNORED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"format|dtype|precision|library(_name|_version)?|\w+_version|version"),
     "the form of the file, which its tensors show"),
    (re.compile(r"ss_\w+|sshs_\w+"), "kohya's record of the training; its scales are the alpha tensors"),
    (re.compile(r"modelspec\.\w+"), "names, dates, licence, what the file is for"),
    (re.compile(r"ot_\w+"), "OneTrainer's record of the training; its scales are the alpha tensors"),
    (re.compile(r"job|config|software|training_info|network_args|base_?model\w*|epochs?|(global_)?steps?"
                r"|seed|resolution|learning_rate|lr|batch_size|dataset\w*|num_\w*images"),
     "how it was trained, which its tensors hold"),
    (re.compile(r"sd_merge_\w+|merge\w*|recipe"), "how it was merged, which its tensors hold"),
    (re.compile(r"prompt|workflow|parameters"), "the graph of the program that saved it"),
    (re.compile(r"name|title|authors?|creator|licen[cs]e|description|comments?|notes?|tags?|urls?|homepage"
                r"|source|repo\w*|trigger\w*|activation\w*|instance_prompt|usage\w*|date|created\w*|time\w*"
                r"|hash\w*|sha256|\w*_hash|id|thumbnail|preview\w*"),
     "for people"),
)  # fmt: skip
_TELLING = re.compile(r"alpha|scal(e|ing)|dora|rslora|quant|bits", re.IGNORECASE)
_PARTS = (_UNET, _VAE, "cond_stage_model.", "conditioner.embedders.")
_CHANNELS = {9: "an inpainting model", 8: "an edit model (InstructPix2Pix)", 5: "a depth model",
             7: "an upscaler", 13: "a video model"}  # fmt: skip

_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error", b"<svg")


@dataclass(frozen=True, slots=True)
class Look:
    """Result of identifying a file.

    `code`: "checkpoint", "unet", "vae", "text-encoder", "lora", "embedding", "controlnet",
    "other-model" or "unknown" for whole safetensors files; else why it is none, such as
    "lfs-pointer", "web-page", "pickle", "cut-short", "empty".
    """

    code: str
    text: str  # a verb phrase without a full stop
    family: str = ""  # sd1, sd2, sdxl, refiner
    channels: int = 4
    has_vae: bool = False
    prediction: str = ""  # epsilon or v_prediction, where the file says
    zero_snr: bool = False  # trained with zero terminal signal-to-noise ratio
    notices: tuple[str, ...] = ()
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def readable(self) -> bool:
        """True if it is a whole safetensors file, whatever is in it."""
        return bool(self.header)


# The first bytes of what is often saved under a model's name
_BEGINNINGS: tuple[tuple[bytes, Look], ...] = (
    (b"version https://git-lfs", Look("lfs-pointer", "is a Git LFS pointer, not the file itself; fetch the "
     "real file ('git lfs pull', or download it from the model's page)")),
    (b"/annex/objects/", Look("lfs-pointer", "is a git-annex pointer, not the file itself; fetch the real "
     "file ('git annex get')")),
    (b"PK\x03\x04", Look("pickle", "is a PyTorch checkpoint under another name (a zip with a pickle), which "
     "can run any program when it is opened; convert it to .safetensors with a tool that you trust")),
    (b"\x80\x02", Look("pickle", "is a pickle under another name, which can run any program when it is "
     "opened; convert it to .safetensors with a tool that you trust")),
    (b"\x80\x04", Look("pickle", "is a pickle under another name, which can run any program when it is "
     "opened; convert it to .safetensors with a tool that you trust")),
    (b"GGUF", Look("gguf", "is a GGUF file: quantised weights are not supported, because a drag needs "
     "gradients; get the .safetensors version in fp16")),
    (b"\x1f\x8b", Look("packed", "is a gzip archive; unpack it first")),
    (b"7z\xbc\xaf", Look("packed", "is a 7-Zip archive; unpack it first")),
    (b"Rar!", Look("packed", "is a RAR archive; unpack it first")),
    (b"\x89PNG", Look("picture", "is a picture, not a model")),
    (b"\xff\xd8\xff", Look("picture", "is a picture, not a model")),
    (b"ONNX", Look("onnx", "is an ONNX model; get the .safetensors version")),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraCard:
    """Origin of a LoRA; every field may be empty in a file made elsewhere."""

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


def diagnose(path: Path) -> Look:
    """Look at a file.

    Raises:
        OSError: when it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        length = _length(head)
        if 2 <= length <= min(HEADER_LIMIT, size - 8):
            file.seek(0)
            head = file.read(8 + length)
    return diagnose_bytes(head, size)


def diagnose_bytes(head: bytes, size: int) -> Look:
    """Look at a file's beginning (its header at least, where it is safetensors) and size."""
    if size == 0:
        return Look("empty", "is empty (0 bytes); its download did not begin, fetch it again")
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for sign, look in _BEGINNINGS:
        if start.startswith(sign):
            return look
    if start.lower().startswith(_PAGES):
        return Look("web-page", "is a web page, not a model: the download gave a login or error page; "
                    "fetch it again while signed in")  # fmt: skip
    if not head[:4096].strip(b"\0"):
        return Look("zeros", "holds only zeros: its download was interrupted; fetch it again")
    if start.startswith((b'{"error', b'{"message', b'{"detail')):
        return Look("web-page", "is a server's error message, not a model; fetch it again")
    length = _length(head)
    if not 2 <= length <= HEADER_LIMIT or head[8:].lstrip()[:1] != b"{":
        return Look("not-safetensors", "is not a safetensors file; give one, or a diffusers folder")
    if 8 + length > size:
        return _cut(size, 8 + length)
    try:
        header = json.loads(head[8 : 8 + length])
        tensors = {k: v for k, v in header.items() if k != "__metadata__"}
        ends = [v["data_offsets"][1] for v in tensors.values()]
        shapes = {k: tuple(int(n) for n in v["shape"]) for k, v in tensors.items()}
        whole = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return Look(
            "not-safetensors", "has a safetensors header that cannot be read; fetch it again"
        )
    if whole != size:
        return _cut(size, whole)
    metadata = header.get("__metadata__")
    return _contents(header, shapes, metadata if isinstance(metadata, dict) else {})


def check_header(metadata: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Account for every entry of a header's `__metadata__`.

    Returns:
        The key of an entry that is not known and may change what the numbers mean ("" where there is
        none): its name says so, or its value is a number, a switch or a structure. And the keys
        that are not known either, but hold mere text.
    """
    others = []
    for key, value in metadata.items():
        if key in HEADER_USED or any(p.fullmatch(key) for p, _ in HEADER_IGNORED):
            continue
        if _TELLING.search(key) or _is_setting(str(value)):
            return key, []
        others.append(key)
    return "", others


def _is_setting(text: str) -> bool:
    """True if a value is more than words."""
    if text.strip().lower() in ("true", "false", "yes", "no", "on", "off", "none", ""):
        return text.strip().lower() not in ("none", "")
    try:
        return not isinstance(json.loads(text), str)
    except (ValueError, RecursionError):
        return False


def _length(head: bytes) -> int:
    return int(struct.unpack("<Q", head[:8])[0]) if len(head) >= 8 else 0


def _cut(size: int, whole: int) -> Look:
    if size < whole:
        text = f"is cut short: it has {size:,} of {whole:,} bytes; finish its download or fetch it again"
        return Look("cut-short", text)
    return Look("too-long", f"has {size - whole:,} bytes behind its end; fetch it again")


def _contents(
    header: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any]
) -> Look:
    names = list(shapes)

    def some(*starts: str) -> bool:
        return any(n.startswith(starts) for n in names)

    if any(re.search(r"lora[._]|\.hada_|\.lokr_|\.dora_scale$|\.diff(_b)?$|\.oft_|_lora\.", n)
           for n in names):  # fmt: skip
        return Look("lora", "is a LoRA, not a model; import it with 'loras import'", header=header)
    if some("control_model.", "controlnet_") or any(
        "controlnet_cond_embedding" in n for n in names
    ):
        return Look(
            "controlnet", "is a ControlNet, which the workbench does not use", header=header
        )
    for sign, name in (("double_blocks.", "Flux"), ("joint_blocks.", "Stable Diffusion 3"),
                       ("single_transformer_blocks.", "Flux")):  # fmt: skip
        if any(sign in n for n in names):
            text = f"is a {name} model; the workbench runs Stable Diffusion 1.x, 2.x and XL"
            return Look("other-model", text, header=header)
    if any(n.endswith((".scale_weight", ".weight_scale", "scaled_fp8", ".absmax", ".quant_state"))
           for n in names):  # fmt: skip
        text = "holds quantised weights, which are not supported; get the fp16 version"
        return Look("quantised", text, header=header)
    if some("edm_mean", "edm_vpred"):
        return Look("other-model", "was trained with EDM noise levels, which the workbench does not "
                    "know", header=header)  # fmt: skip
    if not some(_UNET):
        return _component(header, shapes, metadata, some)
    prefix = next((sign for sign, _ in _SIGNS if some(sign)), "")
    family = dict(_SIGNS).get(prefix, "")
    facts = _facts(shapes, metadata, _UNET)
    facts["family"] = family or facts["family"]
    if not prefix:
        return Look("unet", "holds a U-Net only, without a text encoder; give the whole checkpoint, or "
                    "put it into a diffusers folder", header=header, **facts)  # fmt: skip
    facts["has_vae"] = some(_VAE)
    refusal = _refusal(names, family, facts["channels"], metadata)
    if refusal is not None:
        return dataclasses.replace(refusal, header=header, **facts)
    return Look("checkpoint", f"is a checkpoint of {FAMILIES[family]}", header=header, **facts)


def _refusal(
    names: list[str], family: str, channels: int, metadata: Mapping[str, Any]
) -> Look | None:
    """Code and text for a checkpoint that cannot be run here."""
    if channels != 4:
        kind = _CHANNELS.get(channels, "a model of another kind")
        text = f"is {kind}: its U-Net takes {channels} channels; choose a plain text-to-image model"
        return Look("channels", text)
    if family == "refiner":
        return Look("refiner", "is the refiner of Stable Diffusion XL; use the base model")
    said = str(metadata.get("modelspec.prediction_type", ""))
    if said and not _prediction(said):
        text = f"predicts {said!r:.40}; the workbench knows epsilon and v-prediction"
        return Look("prediction", text)
    unknown, _ = check_header(metadata)
    if unknown:
        return Look("metadata", f"says {unknown:.80} = {str(metadata[unknown])!r:.80} in its header, which "
                    "is not known; it may change what the model computes")  # fmt: skip
    for name in names:
        if not name.startswith(_PARTS) and not any(p.search(name) for p, _ in IGNORED):
            text = f"holds {name:.120}, which is not known; it may change what the model computes"
            return Look("unknown-tensor", text)
    return None


def _component(
    header: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, Any],
    some: Any,
) -> Look:
    """A file without `model.diffusion_model.`: one part of a model, or something else."""
    if some("input_blocks.", "down_blocks.") or some("unet."):
        facts = _facts(shapes, metadata, "unet." if some("unet.") else "")
        return Look("unet", "holds a U-Net only, without a text encoder; give the whole checkpoint, or "
                    "put it into a diffusers folder", header=header, **facts)  # fmt: skip
    if some(_VAE, "encoder.", "decoder."):
        return Look("vae", "is an autoencoder (VAE) only; name it with --vae beside a checkpoint",
                    has_vae=True, header=header)  # fmt: skip
    if some("text_model.", "cond_stage_model.", "conditioner.", "text_encoder"):
        return Look("text-encoder", "holds a text encoder only; give the whole checkpoint",
                    header=header)  # fmt: skip
    if some("emb_params", "clip_l", "clip_g", "string_to_param", "<"):
        return Look("embedding", "is a textual-inversion embedding, which the workbench does not use",
                    header=header)  # fmt: skip
    few = ", ".join(list(shapes)[:2]) or "nothing"
    text = f"is not a model that the workbench knows; it holds {few:.160}"
    return Look("unknown", text, header=header)


def _facts(
    shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    """Family, input channels and prediction, as tensors and header say."""
    first = next((shapes[n] for n in (f"{prefix}input_blocks.0.0.weight", f"{prefix}conv_in.weight")
                  if n in shapes), ())  # fmt: skip
    width = next((s[1] for n, s in shapes.items() if n.startswith(prefix) and len(s) == 2
                  and n.endswith("attn2.to_k.weight")), 0)  # fmt: skip
    marked = "v_pred" in shapes
    notices = []
    if str(metadata.get("modelspec.encoder_layer", "1")) not in ("1", ""):
        notices.append("It was trained with a lower layer of the text encoder (CLIP skip), which is not "
                       "applied: prompts work less precisely.")  # fmt: skip
    others = check_header(metadata)[1]
    if others:
        notices.append(f"Its header also says {', '.join(others)[:160]}, which is not used.")
    return {
        "family": _WIDTHS.get(width, ""),
        "channels": first[1] if len(first) == 4 else 4,
        "prediction": "v_prediction" if marked else prediction_of(metadata),
        "zero_snr": "ztsnr" in shapes or str(metadata.get("ss_zero_terminal_snr")) == "True",
        "notices": tuple(notices),
    }


def prediction_of(metadata: Mapping[str, Any]) -> str:
    """Prediction type named in a file's header: epsilon, v_prediction or ""."""
    said = _prediction(str(metadata.get("modelspec.prediction_type", "")))
    by_kohya = str(metadata.get("ss_v_parameterization")) == "True"
    return said or ("v_prediction" if by_kohya else "")


def _prediction(said: str) -> str:
    """The scheduler's name for a `modelspec.prediction_type`; "" for what is not known."""
    plain = said.lower().replace("-", "_")
    return {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_pred": "v_prediction",
            "v_prediction": "v_prediction", "vpred": "v_prediction"}.get(plain, "")  # fmt: skip
