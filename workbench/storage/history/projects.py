"""Projects: one picture's state in the pages (mask, arrows, prompt, settings), saved as one file.

A browser reload, a second tab or a restart finds the work where it was left. The last save wins.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.storage.history.folder import JsonFolder, Unreadable
from workbench.storage.ulid import UlidMaker

_TEXTS = ("owner", "title", "image_name", "prompt", "created", "updated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What the pages know about one picture. `drawing` and `settings` are the pages' own JSON."""

    id: str
    owner: str = ""
    title: str = ""
    image: str = ""  # id of the picture
    image_name: str = ""
    prompt: str = ""
    drawing: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    last_edit: str | None = None
    created: str = ""  # ISO 8601, UTC
    updated: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> Project:
        """Read what `to_json` wrote; unknown keys are dropped.

        Raises:
            BadInput: when a part has the wrong type.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        parts = {k: v for k, v in data.items() if k in known}
        if parts.get("id") != name:
            raise BadInput(f"It is the project {parts.get('id')!r:.40} under another name.")
        if not all(isinstance(parts.get(k, ""), str) for k in (*_TEXTS, "image")):
            raise BadInput("It has a field of the wrong type.")
        if not all(isinstance(parts.get(k, {}), Mapping) for k in ("drawing", "settings")):
            raise BadInput("Its drawing or settings are no JSON objects.")
        return cls(**parts)


class Projects:
    """All projects of a history folder. `owner` None sees all; a text sees only its own."""

    def __init__(self, folder: Path, temp: Path, ids: UlidMaker) -> None:
        """Keep `<folder>/<ULID>.json`."""
        self._files = JsonFolder(folder, temp, Project.from_json)
        self._ids = ids

    def create(
        self, *, owner: str = "", title: str = "", image: str = "", image_name: str = ""
    ) -> Project:
        """Begin a project and save it."""
        now = utc_now()
        project = Project(
            id=self._ids.new(),
            owner=owner,
            title=title,
            image=image,
            image_name=image_name,
            created=now,
        )
        return self.save(project)

    def load(self, name: str, owner: str | None = None) -> Project:
        """One project.

        Raises:
            BadInput: when there is none of this id, or it belongs to somebody else (same words, so
                that guessing tells nothing).
            StoreError: when its file cannot be read.
        """
        project = self._files.one(name)
        if owner is not None and project.owner != owner:
            raise BadInput(f"There is no project {name} here.")
        return project

    def save(self, project: Project) -> Project:
        """Save the whole state in one step; returns it with the new time of change.

        Raises:
            BadInput: when it holds something that JSON does not know.
            StoreError: when the disk refuses; the state before is unchanged.
        """
        saved = dataclasses.replace(project, updated=utc_now())
        self._files.write(saved.id, saved.to_json(), overwrite=True)
        return saved

    def recent(self, owner: str | None = None) -> list[Project]:
        """Projects, last changed first."""
        mine = [p for p in self._files.load().values() if owner in (None, p.owner)]
        return sorted(mine, key=lambda p: (p.updated, p.id), reverse=True)

    def delete(self, name: str, owner: str | None = None) -> None:
        """Forget a project; its pictures and edits stay in the history.

        Raises:
            BadInput: when there is none of this id for this owner.
        """
        self.load(name, owner)
        self._files.remove(name)

    def unreadable(self) -> list[Unreadable]:
        """Project files that cannot be read."""
        return self._files.unreadable()

    def texts(self) -> list[str]:
        """Raw text of all project files."""
        return self._files.texts()


def utc_now() -> str:
    """Now, ISO 8601 in UTC with microseconds, so that texts sort by time."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
