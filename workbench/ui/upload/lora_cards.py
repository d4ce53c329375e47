"""What a LoRA file says about itself: its identity card, read from the header alone. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.core.errors import ModelError
from workbench.diffusion.registry.files import read_header
from workbench.ui.shell.words import say

ENTRY = "workbench"  # the card in the file's metadata, as `lora_files` writes it


@dataclass(frozen=True, slots=True)
class Card:
    """Where a LoRA comes from; empty where the file does not say."""

    model: str = ""
    image: str = ""
    image_name: str = ""
    prompt: str = ""
    rank: int = 0
    steps: int = 0
    tensors: int = 0
    problem: str = ""

    def line(self) -> str:
        """The card in one line."""
        if self.problem:
            return self.problem
        parts = [self.image_name, f"for {self.model}" if self.model else ""]
        parts += [
            f"rank {self.rank}" if self.rank else "",
            f"{self.steps} steps" * bool(self.steps),
        ]
        return " · ".join(p for p in parts if p) or say("upload.no_information_in_the_file")

    def facts(self) -> dict[str, str]:
        """The card, name by name."""
        rows = {
            say("common.model"): self.model,
            say("common.picture"): self.image_name,
            say("common.prompt"): self.prompt,
            say("upload.rank"): str(self.rank or ""),
            say("common.steps"): str(self.steps or ""),
            say("upload.tensors"): str(self.tensors or ""),
        }
        return {k: v for k, v in rows.items() if v}


def card_of(path: Path) -> Card:
    """The card of a LoRA file; `problem` says why it cannot be read."""
    try:
        stat = path.stat()
    except OSError as exc:
        return Card(problem=say("upload.could_not_be_read_strerror", strerror=exc.strerror))
    return _card(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _card(path: Path, _changed: int, _size: int) -> Card:
    try:
        header = read_header(path)
    except ModelError as exc:
        return Card(problem=str(exc))
    said = _said(header.get("__metadata__"))
    names = [n for n in header if n != "__metadata__"]
    return Card(
        model=_text(said, "model_name") or _text(said, "model"),
        image=_text(said, "image"),
        image_name=_text(said, "image_name"),
        prompt=_text(said, "prompt"),
        rank=_count(said, "rank"),
        steps=_count(said, "steps"),
        tensors=len(names),
    )


def _said(metadata: Any) -> Mapping[str, Any]:
    """The card's fields; none where there is no card or a damaged one."""
    text = metadata.get(ENTRY) if isinstance(metadata, dict) else None
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _count(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
