"""The settings page: models, device, cache, LoRAs, defaults, health. One part is shown at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import streamlit as st

from workbench.ui.settings import (
    defaults,
    device,
    loras,
    models,
)
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.shell import guard
from workbench.ui.shell.words import say
from workbench.ui.shell.workspace import Workspace

_HERE = Path(__file__).parent
PARTS = (
    say("settings.models"),
    say("settings.device_memory"),
    say("settings.cache"),
    say("common.loras"),
    say("settings.defaults_colours"),
    say("settings.health_check"),
)


def body(backend: Backend, space: Workspace | None) -> None:
    """The whole page below the heading; only the open part is made."""
    st.html(_style())
    parts = st.tabs(PARTS, key="part", on_change="rerun", bind="query-params")
    shows: tuple[Callable[[], None], ...] = (
        lambda: models.show(backend),
        lambda: device.show(backend),
        lambda: device.show_cache(backend),
        lambda: loras.show(backend, space),
        lambda: defaults.show(backend),
        lambda: device.show_health(backend),
    )
    for part, show in zip(parts, shows, strict=True):
        if part.open:
            with part, guard():
                show()


@cache
def _style() -> str:
    return f"<style>{(_HERE / 'settings.css').read_text(encoding='utf-8')}</style>"
