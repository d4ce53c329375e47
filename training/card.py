"""The model card: what was measured, on what, and the fingerprints of the weight files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from workbench.core.errors import ModelError
from workbench.diffusion.device import processor

CARD = "model_card.json"
FORMAT = 1


def hardware(device: str) -> str:
    """The machine in words, e.g. `NVIDIA H100 80GB HBM3, 16 CPU cores, torch 2.13.0`."""
    import torch

    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(torch.device(device)) if cuda else processor()
    return f"{name}, {os.cpu_count()} CPU cores, torch {torch.__version__}"


def weight_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of every safetensors file, by path relative to `folder`."""
    out = {}
    for path in sorted(folder.rglob("*.safetensors")):
        data = path.read_bytes()
        out[path.relative_to(folder).as_posix()] = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    return out


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a folder; empty if there is none.

    Raises:
        ModelError: the card is not a JSON object.
    """
    path = folder / CARD
    if not path.exists():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{CARD} is damaged ({error}); train or evaluate again.", code="damaged"
        ) from error
    if not isinstance(card, dict):
        raise ModelError(
            f"{CARD} holds a {type(card).__name__}, not an object; evaluate again.",
            code="wrong-type",
        )
    return card


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card with the present fingerprints, replaced atomically."""
    card = {**card, "format": FORMAT, "files": weight_files(folder)}
    temporary = folder / (CARD + ".partial")
    temporary.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / CARD)
