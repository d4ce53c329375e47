"""The history's edits: begun, finished, found again. A record is written once and never changed.

The order of writes is the promise. Pictures first, each flushed; then the record, flushed and named
in one step: that is the commit. Before the work begins a pending file says that it is under way;
when its process dies, `recover` turns it into an "interrupted" record.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput, StoreError
from workbench.core.record import EditRecord, JobState
from workbench.core.request import EditRequest
from workbench.storage.files import ProcessLock, UlidMaker, write_atomic
from workbench.storage.history.blobs import Blobs, Thumbs
from workbench.storage.history.folder import FORMAT, JsonFolder, Notes, Pending, Unreadable
from workbench.storage.history.projects import Projects, utc_now

log = logging.getLogger(__name__)

INTERRUPTED = "The workbench stopped before this edit was finished; run it again."


@dataclass(frozen=True, slots=True)
class _Edit:
    record: EditRecord
    owner: str


class Store(Blobs):
    """A history folder. Any number of processes may have it open; share one Store per process."""

    def __init__(self, folder: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open or make the history in `folder`; one that cannot be written can still be read.

        Raises:
            StoreError: when the folder cannot be used, or a newer workbench made it.
        """
        super().__init__(Path(folder), Path(folder) / "temp")
        _prepare(self.folder, self._temp)
        self._thumbs = Thumbs(self, self.folder / "thumbs", self._temp)
        self._ids = UlidMaker(clock)
        self._owner: str | None = None
        self._noting = threading.Lock()
        self._edits = JsonFolder(self.folder / "edits", self._temp, _parse_edit)
        self._notes = JsonFolder(self.folder / "notes", self._temp, Notes.from_json)
        self._pending = JsonFolder(self.folder / "pending", self._temp, Pending.from_json)
        self.projects = Projects(self.folder / "projects", self._temp, self._ids)
        for name in (*self._edits.ids()[-1:], *self._pending.ids()[-1:]):
            self._ids.seen(name)  # order holds although the clock may have been set back
        self._process: ProcessLock | None = None
        self.read_only = ""  # why nothing can be written, or ""
        try:
            self._process = ProcessLock(self.folder / "pending")
        except OSError as exc:
            self.read_only = exc.strerror or str(exc)
            log.warning("the history can only be read (%s)", self.read_only)

    def close(self) -> None:
        """Let go of the folder; edits begun here and not finished count as interrupted."""
        if self._process is not None:
            self._process.close()

    def thumbnail(self, name_id: str, side: int = 256) -> bytes:
        """JPEG of a stored picture, longest side at most `side` px; see `Thumbs.get`."""
        return self._thumbs.get(name_id, side)

    def of(self, owner: str) -> Store:
        """The same history as one owner sees it: their own edits and projects, and no others.

        Methods that take an `owner` use this one where none is given. Pictures are found by their
        hash, which nobody guesses, and are shared.
        """
        mine = copy.copy(self)
        mine._owner = owner
        mine.projects = self.projects.of(owner)
        return mine

    def _whose(self, owner: str | None) -> str | None:
        return self._owner if owner is None else owner

    # --- making an edit ---------------------------------------------------------------------------

    def begin(
        self,
        request: EditRequest,
        *,
        owner: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Say that an edit is under way; returns its id.

        Raises:
            StoreError: when the disk refuses.
        """
        if self._process is None:
            raise StoreError(
                f"The history folder {self.folder.name}/ cannot be written ({self.read_only}); "
                "check its permissions and the free space.",
                code="read-only",
            )
        self._process.renew()
        name = self._ids.new()
        data = {
            "id": name,
            "owner": owner or self._owner or "",
            "request": request.to_json(),
            "started": utc_now(),
            "process": self._process.name,
            "host": self._process.host,
            "pid": os.getpid(),
            "environment": dict(environment or {}),
        }
        if not self._pending.write(name, data, overwrite=False):
            raise StoreError(f"The edit {name} was begun twice; start it again.")
        return name

    def finish(self, record: EditRecord) -> None:
        """Commit an edit: when this returns, the record is on the disk for good.

        Raises:
            StoreError: when it is recorded already, or the disk refuses (nothing is half-written).
            BadInput: when the record holds NaN or has not ended.
        """
        if not record.status.ended:
            raise BadInput(
                f"The edit {record.id} is {record.status}; only an ended one is kept.",
                code="not-ended",
            )
        pending = self._pending.load().get(record.id)
        self.commit(record, owner=pending.owner if pending else "")
        try:
            self._pending.remove(record.id)
        except StoreError as exc:  # the record is safe: `recover` clears the pending file
            log.warning("edit %s is recorded, its pending file stays: %s", record.id, exc)

    def commit(self, record: EditRecord, *, owner: str = "") -> None:
        """Write a record under its id, once (`finish` and the import come here).

        Raises:
            StoreError: when the id is taken or the disk refuses.
            BadInput: when the record holds NaN.
        """
        data = {**record.to_json(), "owner": owner or self._owner or ""}
        if not self._edits.write(record.id, data, overwrite=False):
            raise StoreError(
                f"The edit {record.id} is in the history already; nothing was changed.",
                code="already-stored",
            )
        self._ids.seen(record.id)

    def recover(self) -> list[str]:
        """Turn what dead processes left pending into interrupted records; their ids.

        Called at start-up. Deletes nothing: what cannot be read stays, and is listed.
        """
        found: list[str] = []
        if self._process is None:
            return found
        for name, pending in sorted(self._pending.load().items()):
            if self._process.lives(pending.process, pending.host):
                continue
            if self.end_pending(name, JobState.INTERRUPTED, INTERRUPTED):
                found.append(name)
                log.info("edit %s was interrupted", name)
        self._process.sweep()
        return found

    def end_pending(self, name: str, status: JobState | None, error: str) -> bool:
        """Close an edit whose worker died: with a record of this status, or (None) without one.

        Returns True when a record was written; False when there was one, or none is wanted.

        Raises:
            StoreError: when the disk refuses.
        """
        pending = self._pending.load().get(name)
        written = False
        if pending is not None and status is not None:
            record = EditRecord(
                id=name,
                request=pending.request,
                status=status,
                error=error,
                started=pending.started,
                finished=utc_now(),
                environment=pending.environment,
            )
            data = {**record.to_json(), "owner": pending.owner}
            written = self._edits.write(name, data, overwrite=False)
        self._pending.remove(name)
        return written

    def pending(self) -> list[Pending]:
        """Edits under way, oldest first."""
        found = [p for _, p in sorted(self._pending.load().items())]
        return [p for p in found if self._owner in (None, p.owner)]

    # --- finding edits ------------------------------------------------------------------------------

    def records(
        self, *, image: str | None = None, owner: str | None = None, binned: bool | None = False
    ) -> list[EditRecord]:
        """Edits, newest first.

        `image` limits to one picture (as source or result), `owner` to one person; `binned` chooses
        the ones outside the bin (False), in it (True) or all (None).
        """
        owner = self._whose(owner)
        notes = self._notes.load()
        out = []
        for name, edit in sorted(self._edits.load().items(), reverse=True):
            in_bin = bool(notes[name].binned) if name in notes else False
            if (binned is None or in_bin == binned) and owner in (None, edit.owner):
                record = edit.record
                result = record.result.image if record.result else None
                if image in (None, record.request.image.id, result):
                    out.append(record)
        return out

    def record(self, name: str, owner: str | None = None) -> EditRecord:
        """One edit, in the bin or not.

        Raises:
            BadInput: when there is none of this id (for this owner).
            StoreError: when its record cannot be read.
        """
        edit = self._edits.one(name)
        owner = self._whose(owner)
        if owner is not None and edit.owner != owner:
            raise BadInput(f"There is no edit {name} here.", code="no-edit")
        return edit.record

    def owner(self, name: str) -> str:
        """Whose an edit is ("" where nobody logs in); raises as `record` does."""
        return self._edits.one(name).owner

    def unreadable(self) -> list[Unreadable]:
        """Files of the history that are there and cannot be read, and why."""
        folders = (self._edits, self._pending, self._notes, self.projects)
        return [u for folder in folders for u in folder.unreadable()]

    def children(self, name: str) -> list[EditRecord]:
        """Edits that took this edit's result as their picture, newest first."""
        return [r for r in self.records() if r.request.parent == name]

    def search(
        self, text: str, *, owner: str | None = None, binned: bool | None = False
    ) -> list[EditRecord]:
        """Edits that hold every word of `text` in prompt, names, notes, settings or outcome."""
        words = text.casefold().split()
        notes = self._notes.load()
        found = []
        for record in self.records(owner=owner, binned=binned):
            req, note = record.request, notes.get(record.id, Notes())
            parts = (record.id, req.prompt, req.image.name, req.model.name, req.drag.method)
            more = (record.status.value, record.error or "", record.started, note.title, note.note)
            starred = "favourite" if note.favourite else ""
            hay = "\n".join((*parts, *more, starred)).casefold()
            if all(word in hay for word in words):
                found.append(record)
        return found

    # --- notes and bin ------------------------------------------------------------------------------

    def notes(self, name: str) -> Notes:
        """Title, note, favourite and bin of an edit (empty ones where none were written)."""
        return self._notes.load().get(name, Notes())

    def all_notes(self) -> dict[str, Notes]:
        """The notes of every edit that has some, by its id (one look at the folder for a list)."""
        return self._notes.load()

    def annotate(self, name: str, **changes: Any) -> Notes:
        """Change `title`, `note` or `favourite` of an edit.

        Raises:
            BadInput: for an unknown edit or field, or a wrong type.
            StoreError: when the disk refuses.
        """
        if not self._recorded(name):
            raise BadInput(f"There is no edit {name:.60} here.", code="no-edit")
        unknown = set(changes) - {f.name for f in dataclasses.fields(Notes)}
        if unknown:
            raise BadInput(f"An edit's notes have no {sorted(unknown)[0]!r}.")
        with self._noting:  # two tabs may change two fields at the same time
            data = {**dataclasses.asdict(self.notes(name)), **changes}
            notes = Notes.from_json(name, data)
            path = self._notes.path(name)
            if any(u.name.endswith(path.name) for u in self._notes.unreadable()):
                path.replace(path.with_suffix(".damaged"))  # whatever can be saved of it stays
            self._notes.write(name, data, overwrite=True)
            return notes

    def bin(self, names: Iterable[str]) -> None:
        """Move edits to the bin; nothing is removed from the disk. Raises as `annotate` does."""
        now = utc_now()
        for name in names:
            self.annotate(name, binned=now)

    def restore(self, names: Iterable[str]) -> None:
        """Take edits out of the bin. Raises as `annotate` does."""
        for name in names:
            self.annotate(name, binned="")

    def forget(self, name: str) -> None:
        """Remove an edit's record and notes for good (`upkeep.empty_bin` calls it).

        Raises:
            BadInput: when the edit is not in the bin.
            StoreError: when the disk refuses.
        """
        if not self.notes(name).binned:
            raise BadInput(
                f"The edit {name:.60} is not in the bin; put it there first.", code="not-in-bin"
            )
        self._edits.remove(name)
        self._notes.remove(name)

    def take_back(self, name: str) -> None:
        """Undo a `commit` of this moment (an import that failed half-way).

        Raises:
            StoreError: when the disk refuses that, too.
        """
        self._edits.remove(name)
        self._notes.remove(name)

    def edit_text(self, name: str) -> str:
        """A record's file as it stands on the disk.

        Raises:
            BadInput: when there is none of this id.
        """
        try:
            return self._edits.path(name).read_text(encoding="utf-8", errors="replace")
        except OSError as exc:
            raise BadInput(f"There is no edit {name:.60} here.", code="no-edit") from exc

    def texts(self) -> list[str]:
        """Raw text of every JSON file here, readable or not."""
        folders = (self._edits, self._pending, self._notes, self.projects)
        return [text for folder in folders for text in folder.texts()]

    def _recorded(self, name: str) -> bool:
        there = self._edits.path(name).exists()
        return there and self._owner in (None, self.owner(name))


def _parse_edit(name: str, data: dict[str, Any]) -> _Edit:
    record = EditRecord.from_json(data)
    if record.id != name:
        raise BadInput(f"It is the edit {record.id:.40} under another name.")
    owner = data.get("owner", "")
    return _Edit(record, owner if isinstance(owner, str) else "")


def _prepare(folder: Path, temp: Path) -> None:
    """Make the folder and its FORMAT file; refuse the folder of a newer workbench."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.name == "posix" and folder.stat().st_mode & 0o077:
            with contextlib.suppress(OSError):  # a folder of somebody else, to be read
                folder.chmod(0o700)
        mark = folder / "FORMAT"
        for name in ("edits", "pending", "notes", "projects", "temp"):
            try:
                (folder / name).mkdir(exist_ok=True)
            except OSError:
                if not mark.exists():
                    raise
        text = mark.read_bytes()[:100].decode("ascii", "replace") if mark.exists() else ""
    except OSError as exc:
        raise StoreError(
            f"The history folder {folder.name}/ cannot be used ({exc.strerror}); "
            "check its permissions, or choose another folder.",
            code="unusable-folder",
        ) from exc
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*", text)
    if match and int(match[1]) > FORMAT:
        raise StoreError(
            f"The history in {folder.name}/ has format {int(match[1])}, and this workbench knows "
            f"up to {FORMAT}; use a newer workbench or another folder.",
            code="newer-format",
        )
    if not match:
        if text:
            log.warning("the history's FORMAT file was damaged and is rewritten")
        write_atomic(folder / "FORMAT", f"{FORMAT}\n".encode(), temp=temp)
