"""Results: before and after, how far it got, downloads, and where to go from there."""

from __future__ import annotations

from workbench.ui import results
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.shell import page
from workbench.ui.shell.workspace import Workspace


def body(backend: Backend, space: Workspace | None) -> None:
    assert space is not None  # `needs_picture`
    results.body(backend, space)


page(say("common.results"), say("pages.before_and_after_downloads_and"), body, needs_picture=True)
