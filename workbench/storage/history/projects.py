"""Projects: one picture's state in the pages (mask, arrows, prompt, settings), saved as one file.

A browser reload, a second tab or a restart finds the work where it was left. Two tabs that change one
project at the same time are merged; `update` names what both of them changed.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput, StoreError
from workbench.storage.files import UlidMaker
from workbench.storage.history.folder import JsonFolder, Unreadable

_TEXTS = ("owner", "title", "image_name", "prompt", "created", "updated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """The pages' data about one picture. `drawing` and `settings` are the pages' own JSON."""

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
    revision: int = 0  # raised by every save

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
            raise BadInput(
                f"It is the project {parts.get('id')!r:.40} under another name.", code="other-name"
            )
        if not all(isinstance(parts.get(k, ""), str) for k in (*_TEXTS, "image")):
            raise BadInput("It has a field of the wrong type.")
        if not all(isinstance(parts.get(k, {}), Mapping) for k in ("drawing", "settings")):
            raise BadInput("Its drawing or settings are not JSON objects.")
        number = parts.get("revision", 0)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise BadInput("Its revision is not a whole number.")
        return cls(**parts)


class Projects:
    """All projects of a history folder. `owner` None sees all; a text sees only its own."""

    def __init__(self, folder: Path, temp: Path, ids: UlidMaker) -> None:
        """Keep `<folder>/<ULID>.json`."""
        self._files = JsonFolder(folder, temp, Project.from_json)
        self._ids = ids
        self._owner: str | None = None
        self._saving = threading.RLock()

    def of(self, owner: str) -> Projects:
        """The projects of one owner, as `create`, `load` and `recent` see and make them."""
        mine = copy.copy(self)
        mine._owner = owner
        return mine

    def create(
        self, *, owner: str = "", title: str = "", image: str = "", image_name: str = ""
    ) -> Project:
        """Begin a project and save it."""
        now = utc_now()
        project = Project(
            id=self._ids.new(),
            owner=owner or self._owner or "",
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
        owner = self._owner if owner is None else owner
        if owner is not None and project.owner != owner:
            raise BadInput(f"There is no project {name} here.", code="no-project")
        return project

    def save(self, project: Project) -> Project:
        """Save the whole state in one step; returns it with the new revision and time of change.

        Raises:
            BadInput: when it holds something that JSON does not know.
            StoreError: when the disk refuses; the state before is unchanged.
        """
        with self._saving:
            saved = dataclasses.replace(project, updated=utc_now(), revision=project.revision + 1)
            self._files.write(saved.id, saved.to_json(), overwrite=True)
            return saved

    def update(self, base: Project, **fields: Any) -> tuple[Project, tuple[str, ...]]:
        """Change fields of a project that another tab may have changed since `base` was read.

        Of `settings` and `drawing` each entry counts by itself; lists (arrows, shapes, jobs) keep what
        either side added and lose what either side removed. Where both changed the same, this change
        counts, and of a list both versions stay.

        Returns:
            The project as saved, and the names of what both sides had changed.

        Raises:
            BadInput, StoreError: as `save` does.
        """
        with self._saving:
            try:
                now = self.load(base.id)
            except (
                BadInput,
                StoreError,
            ):  # removed or damaged meanwhile: what we know is all there is
                now = base
            if now.revision == base.revision:
                return self.save(dataclasses.replace(base, **fields)), ()
            merged: dict[str, Any] = {}
            collided: list[str] = []
            for name, wanted in fields.items():
                # as JSON has them: a tuple here is a list there
                old, mine, theirs = (
                    json.loads(json.dumps(v))
                    for v in (getattr(base, name), wanted, getattr(now, name))
                )
                if isinstance(mine, Mapping):
                    merged[name], both = _merge_entries(old, mine, theirs)
                    collided += both
                else:
                    merged[name], both_changed = _merge(old, mine, theirs)
                    collided += [name] * both_changed
            return self.save(dataclasses.replace(now, **merged)), tuple(collided)

    def recent(self, owner: str | None = None) -> list[Project]:
        """Projects, last changed first."""
        owner = self._owner if owner is None else owner
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


def _merge_entries(
    old: Mapping[str, Any], mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Merge two later states of a JSON object entry by entry; also names what both changed."""
    merged, collided = {}, []
    for name in {**theirs, **mine}:
        value, both = _merge(old.get(name), mine.get(name), theirs.get(name))
        if value is not None:
            merged[name] = value
        if both:
            collided.append(name)
    return merged, collided


def _merge(old: Any, mine: Any, theirs: Any) -> tuple[Any, bool]:
    """Merge two later states of one value; True when both changed it in different ways."""
    if mine == theirs or theirs == old:
        return mine, False
    if mine == old:
        return theirs, False
    if not (isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple))):
        return mine, True
    before = list(old) if isinstance(old, (list, tuple)) else []
    removed = [v for v in before if v not in mine]
    added = [v for v in mine if v not in before and v not in theirs]
    kept = [v for v in theirs if v not in removed]
    return [*kept, *added], bool(added) and any(v not in theirs for v in removed)


def utc_now() -> str:
    """Now, ISO 8601 in UTC with microseconds, so that texts sort by time."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
