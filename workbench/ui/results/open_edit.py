"""Ways to go on from an edit of the history: open it, branch from it, take its settings over."""

from __future__ import annotations

import dataclasses

from workbench.core.record import EditRecord
from workbench.ui.results.edits import EditView
from workbench.ui.shell import router
from workbench.ui.shell.backend import Backend
from workbench.ui.shell.text import plain
from workbench.ui.shell.workspace import Workspace, settings_of


def home_of(backend: Backend, record: EditRecord) -> Workspace:
    """The project in which an edit's picture is worked on: the newest there is, else a new one.

    Raises:
        BadInput, StoreError: when picture or mask are missing or cannot be drawn on.
    """
    image = record.request.image.id
    for project in backend.store.projects.recent():
        if project.image == image:
            return Workspace(backend.store, project)
    return backend.project_of(record.request)


def continued(backend: Backend, record: EditRecord) -> Workspace:
    """A new project whose picture is the edit's result, with its settings and nothing drawn yet.

    Raises:
        BadInput: when the edit has no result.
    """
    view = EditView(backend.store, record)
    request = view.request
    asset = backend.store.put_image(backend.store.image(view.result.image), request.image.name)
    return Workspace.create(
        backend.store,
        dataclasses.replace(asset, alpha=request.image.alpha),
        title=f"{plain(request.image.name, 50)} →",
        prompt=request.prompt,
        parent=record.id,
        settings=settings_of(request),
    )


def enter(space: Workspace, *, edit: str | None = None) -> None:
    """Make a project (and an edit of it) the one at hand."""
    for name, value in (("project", space.id), ("job", None), ("edit", edit)):
        router.remember(name, value)
