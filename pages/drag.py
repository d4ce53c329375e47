"""Mask & points: paint what may change, draw arrows, see what is meant, run."""

from __future__ import annotations

from workbench.ui import draw
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.shell import page
from workbench.ui.shell.workspace import Workspace


def body(backend: Backend, space: Workspace | None) -> None:
    assert space is not None  # `needs_picture`
    draw.editor(backend, space.id)


page(say("common.mask_points"), say("pages.draw_a_mask_and_arrows"), body, needs_picture=True)
