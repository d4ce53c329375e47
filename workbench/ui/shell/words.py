"""The interface's words, read from `words.toml` beside this file. No Streamlit here."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("words.toml")


@cache
def words() -> dict[str, str]:
    """Every text of the interface by its key, "section.name"."""
    sections = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {f"{s}.{name}": text for s, texts in sections.items() for name, text in texts.items()}


def say(key: str, **values: Any) -> str:
    """The text of a key, with the values put into its `{name}` places.

    Raises:
        KeyError: for a key or a place that is not there.
    """
    text = words()[key]
    return text.format(**values) if values else text
