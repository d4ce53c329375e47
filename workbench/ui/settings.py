"""The settings page: models, device, cache, LoRAs, defaults, health. One part is shown at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import streamlit as st

from workbench.ui import (
    settings_cache,
    settings_defaults,
    settings_device,
    settings_health,
    settings_loras,
    settings_models,
)
from workbench.ui.backend import Backend
from workbench.ui.shell import guard
from workbench.ui.workspace import Workspace

_HERE = Path(__file__).parent
PARTS = ("Models", "Device & memory", "Cache", "LoRAs", "Defaults & colours", "Health")


def body(backend: Backend, space: Workspace | None) -> None:
    """The whole page below the heading; only the open part is made."""
    st.html(_style())
    parts = st.tabs(PARTS, key="part", on_change="rerun", bind="query-params")
    shows: tuple[Callable[[], None], ...] = (
        lambda: settings_models.show(backend),
        lambda: settings_device.show(backend),
        lambda: settings_cache.show(backend),
        lambda: settings_loras.show(backend, space),
        lambda: settings_defaults.show(backend),
        lambda: settings_health.show(backend),
    )
    for part, show in zip(parts, shows, strict=True):
        if part.open:
            with part, guard():
                show()


@cache
def _style() -> str:
    return f"<style>{(_HERE / 'settings.css').read_text(encoding='utf-8')}</style>"
