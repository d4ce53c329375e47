"""Looking after a history: check every hash, empty the bin, find what nothing refers to."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import BadInput, StoreError
from workbench.core.record import EditRecord
from workbench.storage.history.store import Store

log = logging.getLogger(__name__)

_ID = re.compile(r"wb1:[0-9a-f]{32}")
GRACE = 3600.0  # seconds that a file without a record is left alone: its edit may be under way


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (a file of the history or an edit) and what."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found; `checked` counts records and files."""

    checked: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def references(record: EditRecord) -> dict[str, str]:
    """Every stored picture and file that an edit needs: what it is -> its id."""
    request = record.request
    needed = {"picture": request.image.id}
    if request.mask:
        needed["mask"] = request.mask.id
    if request.image.alpha:
        needed["alpha"] = request.image.alpha
    for what, lora in (("LoRA", request.lora_file), ("style LoRA", request.style)):
        if lora is not None:
            needed[what] = lora.id
    if record.result:
        needed["result"] = record.result.image
        if record.result.strip:
            needed["strip"] = record.result.strip
        for i, frame in enumerate(record.result.frames, 1):
            needed[f"frame {i}"] = frame
    return needed


def verify(store: Store, on_step: Callable[[int, int], None] | None = None) -> Verification:
    """Check the checksum of every record and file, and that no edit lacks a picture.

    `on_step(done, total)` is called after each file and may raise to stop.
    """
    problems = [Problem(u.name, u.reason) for u in store.unreadable()]
    records = store.records(binned=None)
    files = list(store.files())
    bad = set()
    for i, (kind, name_id, path) in enumerate(files, 1):
        wrong = store.check(kind, name_id)
        if wrong:
            bad.add(name_id)
            problems.append(Problem(path.relative_to(store.folder).as_posix(), wrong))
        if on_step is not None:
            on_step(i, len(files))
    for record in records:
        for what, name_id in references(record).items():
            if name_id in bad:
                problems.append(Problem(f"edit {record.id}", f"Its {what} is damaged ({name_id})."))
            elif not store.has(name_id):
                problems.append(Problem(f"edit {record.id}", f"Its {what} is missing ({name_id})."))
    return Verification(len(records) + len(store.unreadable()) + len(files), tuple(problems))


def empty_bin(
    store: Store, names: Iterable[str] | None = None, *, grace: float = GRACE
) -> tuple[int, int]:
    """Remove binned edits (all, or the named ones) and the pictures only they need.

    A picture stays while any other file of the history mentions it, readable or not, and while it
    is younger than `grace` seconds. Returns (edits removed, bytes freed).

    Raises:
        BadInput: when a named edit is not in the bin.
        StoreError: when the disk refuses.
    """
    binned = {r.id: r for r in store.records(binned=True)}
    chosen = set(binned) if names is None else set(names)
    if not chosen <= set(binned):
        raise BadInput(f"The edit {sorted(chosen - set(binned))[0]:.60} is not in the bin.")
    candidates: set[str] = set()
    for name in sorted(chosen):
        candidates.update(_ID.findall(store.edit_text(name)))
        store.forget(name)
    return len(chosen), _remove_files(store, candidates - _mentioned(store), grace)


def orphans(store: Store, *, grace: float = GRACE) -> list[Path]:
    """Files that no record, note, project or pending edit mentions, and old unfinished writes."""
    known = _mentioned(store)
    old = time.time() - grace
    found = [p for _, name_id, p in store.files() if name_id not in known]
    found += sorted((store.folder / "temp").glob("*.part"))
    return [p for p in found if p.exists() and p.stat().st_mtime < old]


def tidy(store: Store, *, grace: float = GRACE) -> tuple[int, int]:
    """Remove the orphans; only ever done when asked for. Returns (files removed, bytes freed)."""
    count = freed = 0
    for path in orphans(store, grace=grace):
        size = path.stat().st_size
        path.unlink(missing_ok=True)
        count, freed = count + 1, freed + size
    return count, freed


def _mentioned(store: Store) -> set[str]:
    return {found for text in store.texts() for found in _ID.findall(text)}


def _remove_files(store: Store, ids: set[str], grace: float) -> int:
    freed = 0
    old = time.time() - grace
    for name_id in sorted(ids):
        path = store.find(name_id)
        if path is None or path.stat().st_mtime > old:
            continue
        try:
            size = path.stat().st_size
            path.unlink()
            freed += size
            for thumb in (store.folder / "thumbs").glob(f"{name_id.replace(':', '-')}-*.jpg"):
                thumb.unlink(missing_ok=True)
        except OSError as exc:
            raise StoreError(f"{path.name} could not be removed ({exc.strerror}).") from exc
    return freed
