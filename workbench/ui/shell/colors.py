"""The canvas's colours as a person may set them, and the overlay that follows. No Streamlit here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from workbench.canvas.overlay import Style
from workbench.ui.shell.words import say

ENTRY = "colours"  # in Settings.ui
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_PARTS = ("handle", "target", "arrow")
LIGHT = (0.1, 0.9)  # of the protected area: from nearly black to nearly as it is

# DragDiffusion's own; then pairs that people tell apart who do not see red and green (Okabe, Ito 2008)
THEMES: dict[str, dict[str, Any]] = {
    say("shell.classic"): {
        "handle": "#e53935",
        "target": "#1e64e6",
        "arrow": "#ffffff",
        "dim": 0.75,
    },
    say("shell.colour_blind_safe"): {
        "handle": "#e69f00",
        "target": "#56b4e9",
        "arrow": "#ffffff",
        "dim": 0.75,
    },
    say("shell.high_contrast"): {
        "handle": "#ff2d00",
        "target": "#00e5ff",
        "arrow": "#ffff00",
        "dim": 0.5,
    },
    say("shell.soft"): {"handle": "#d9665f", "target": "#6f93d6", "arrow": "#f3f0e8", "dim": 0.85},
}


def chosen(ui: Mapping[str, Any]) -> dict[str, Any]:
    """The colours of the settings; what is missing or damaged is classic."""
    kept = ui.get(ENTRY)
    found = dict(THEMES[say("shell.classic")])
    if isinstance(kept, Mapping):
        for name in _PARTS:
            value = kept.get(name)
            if isinstance(value, str) and _HEX.fullmatch(value):
                found[name] = value.lower()
        dim = kept.get("dim")
        if isinstance(dim, float) and LIGHT[0] <= dim <= LIGHT[1]:
            found["dim"] = dim
    return found


def theme_of(colours: Mapping[str, Any]) -> str:
    """The theme that these colours are, or "Custom"."""
    return next(
        (name for name, theme in THEMES.items() if theme == dict(colours)), say("common.custom")
    )


def style(ui: Mapping[str, Any]) -> Style:
    """The overlay's style with the colours of the settings."""
    colours = chosen(ui)
    return Style(
        handle=_rgb(colours["handle"]),
        target=_rgb(colours["target"]),
        arrow=_rgb(colours["arrow"]),
        dim=colours["dim"],
    )


def _rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
