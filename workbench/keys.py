"""Names for what was computed: canonical JSON, tagged hashes and the key of each stage.

Each stage's key contains its parent's, so that a change invalidates exactly what follows it. The
`ALGO_*` numbers are raised when the arithmetic of a stage changes; a test hashes frozen requests,
so that an accidental change of a key fails.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from workbench.types import EditRequest, InversionConfig, LoraConfig

TAG = "wb1:"
ALGO_LORA = 1
ALGO_INVERT = 1
ALGO_DRAG = 1


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


def edit_key(request: EditRequest) -> str:
    """Key of everything that affects the pixels of an edit: not names, not the parent."""
    model = request.model.fingerprint or request.model.name
    args = (request.image.id, model)
    lora = lora_key(*args, request.prompt, request.lora, request.seed, request.working_size)
    inv = inversion_key(*args, lora, request.prompt, request.inversion, request.working_size)
    mask = request.mask.id if request.mask else None
    pairs = [p.to_json() for p in request.pairs]
    return key("edit", ALGO_DRAG, inv, mask, pairs, dataclasses.asdict(request.drag), request.seed)
