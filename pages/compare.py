"""Compare: two to six edits against each other, and one drag over a grid of settings."""

from __future__ import annotations

from workbench.ui import compare
from workbench.ui.compare import sweep
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.forms import say
from workbench.ui.shell.shell import page
from workbench.ui.shell.workspace import Workspace


def body(backend: Backend, space: Workspace | None) -> None:
    part = sweep if compare.part() == "Sweep" else compare
    part.body(backend, space)


page(say("common.compare"), say("pages.compare_edits_side_by_side"), body)
