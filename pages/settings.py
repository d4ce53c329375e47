"""Settings: models, device, memory, cache, LoRAs, defaults, and whether all is in order."""

from __future__ import annotations

from workbench.ui import settings
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.shell import page
from workbench.ui.shell.workspace import Workspace


def body(backend: Backend, space: Workspace | None) -> None:
    settings.body(backend, space)


page(say("common.settings"), say("pages.settings_for_this_installation"), body)
