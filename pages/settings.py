"""Settings: models, device, memory, cache, LoRAs, defaults, and whether all is in order."""

from __future__ import annotations

from workbench.ui import settings
from workbench.ui.backend import Backend
from workbench.ui.shell import page
from workbench.ui.workspace import Workspace


def body(backend: Backend, space: Workspace | None) -> None:
    settings.body(backend, space)


page("Settings", "For this installation; everything is saved as you change it.", body)
