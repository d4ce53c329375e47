"""Cache keys: canonical JSON, tagged hashes and the key of each stage.

Each stage's key contains its parent's, so that a change invalidates exactly what follows it. The
`ALGO_*` numbers are raised when the arithmetic of a stage changes; a test hashes frozen requests,
so that an accidental change of a key fails.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from workbench.core.config import DragConfig, GenerationConfig, InversionConfig, LoraConfig, LoraRef
from workbench.core.request import EditRequest

TAG = "wb1:"
ALGO_LORA = 1
ALGO_INVERT = 1
ALGO_DRAG = 1
ALGO_METHOD = {
    "warp": 4,
    "auto": 4,
}  # of methods whose own arithmetic changed since, others are at 1
ALGO_GENERATE = 1
ALGO_PASTE = 2  # putting a scaled edit back; in no key, since nothing after it is kept in the cache


def arithmetic() -> str:
    """The versions of all stages in one line, for records: why an edit that is computed again differs."""
    stages = {
        "lora": ALGO_LORA,
        "invert": ALGO_INVERT,
        "drag": ALGO_DRAG,
        "generate": ALGO_GENERATE,
        "paste": ALGO_PASTE,
        **ALGO_METHOD,
    }
    return " ".join(f"{name}-{version}" for name, version in stages.items())


def canonical(data: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8; refuses NaN. Equal data gives equal bytes."""
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(raw: bytes) -> str:
    """128-bit blake2b of bytes, tagged with this scheme's version: 'wb1:' + 32 hex digits."""
    return TAG + hashlib.blake2b(raw, digest_size=16).hexdigest()


def key(kind: str, *parts: Any) -> str:
    """Key of JSON-able parts under a kind, so that two stages never share a key."""
    return digest(canonical([kind, *parts]))


def pixels_key(mode: str, width: int, height: int, raw: bytes) -> str:
    """Key of a picture: H(mode, size, pixels); file name and encoding do not count."""
    head = canonical(["pixels", mode, width, height])
    return digest(head + b"\0" + raw)


def lora_key(
    image: str, model: str, prompt: str, config: LoraConfig, seed: int, working_size: int = 0
) -> str | None:
    """Key of a picture's LoRA, or None when none is trained (0 steps)."""
    if config.steps == 0:
        return None
    parts = dataclasses.asdict(config)
    return key("lora", ALGO_LORA, image, model, prompt, parts, seed, working_size)


def inversion_key(
    image: str,
    model: str,
    lora: str | None,
    prompt: str,
    config: InversionConfig,
    working_size: int = 0,
) -> str:
    """Key of a picture's inverted latents under a model and LoRA."""
    parts = dataclasses.asdict(config)
    return key("inversion", ALGO_INVERT, image, model, lora, prompt, parts, working_size)


def with_style_lora(model: str, style: LoraRef | None) -> str:
    """Key of a model with a style LoRA stacked on it; all stages see it as another model."""
    if style is None or style.weight == 0:
        return model
    return key("styled", model, style.id, style.weight)


def generation_key(model: str, prompt: str, config: GenerationConfig) -> str:
    """Key of a generated picture and its latents."""
    return key("generation", ALGO_GENERATE, model, prompt, dataclasses.asdict(config))


def adapter_key(request: EditRequest, image: str, model: str, working_size: int) -> str | None:
    """Key of the LoRA that a request uses: trained on `image`, from a file, or None.

    A generated picture needs none: the model made it.
    """
    if request.generation is not None:
        return None
    if request.lora_file is not None:
        return key("lora file", request.lora_file.id, request.lora_file.weight)
    return lora_key(image, model, request.prompt, request.lora, request.seed, working_size)


def latent_key(request: EditRequest, image: str, model: str, working_size: int) -> str:
    """Key of the noisy latent at which a request starts: inverted, or stored while generating."""
    if request.generation is not None:
        made = generation_key(model, request.prompt, request.generation)
        return key("generated latent", made, dataclasses.asdict(request.inversion))
    adapter = adapter_key(request, image, model, working_size)
    return inversion_key(image, model, adapter, request.prompt, request.inversion, working_size)


def edit_key(request: EditRequest) -> str:
    """Key of everything that affects the pixels of an edit: not names, not the parent."""
    model = with_style_lora(request.model.fingerprint or request.model.name, request.style)
    start = latent_key(request, request.image.id, model, request.working_size)
    mask = request.mask.id if request.mask else None
    pairs = [p.to_json() for p in request.pairs]
    drag = drag_parts(request.drag)
    extra = [] if request.crop else ["whole"]
    extra += method_version(request.drag.method)
    return key("edit", ALGO_DRAG, start, mask, pairs, drag, request.seed, *extra)


def drag_parts(drag: DragConfig) -> dict[str, Any]:
    """The settings of a drag as they enter keys: an option younger than version 1 only when it is set."""
    parts = dataclasses.asdict(drag)
    if not drag.refine:
        del parts["refine"]
    return parts


def method_version(method: str) -> list[str]:
    """Parts that a method adds to the keys of its drags; none until its arithmetic changes."""
    version = ALGO_METHOD.get(method, 1)
    return [] if version == 1 else [f"{method} {version}"]
