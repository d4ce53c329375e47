"""History: every edit as a tree, to find again, keep, compare, hand on or go on from."""

from __future__ import annotations

from workbench.ui import history
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.shell import page
from workbench.ui.shell.workspace import Workspace


def body(backend: Backend, space: Workspace | None) -> None:
    history.body(backend, space)


page(say("common.history"), say("pages.all_edits_including_failed_ones"), body)
