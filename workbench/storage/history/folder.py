"""The history's folder: its format number, JSON files, notes, pending edits; verified and tidied."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from workbench.core.errors import BadInput, StoreError
from workbench.core.keys import digest
from workbench.core.record import RECORD_FORMAT, EditRecord
from workbench.core.request import EditRequest
from workbench.storage.files import is_ulid, sync_folder, write_atomic

if TYPE_CHECKING:
    from workbench.storage.history import Store

log = logging.getLogger(__name__)
T = TypeVar("T")


FORMAT = RECORD_FORMAT

Migration = Callable[[str, dict[str, Any]], dict[str, Any]]  # (kind, data); kind: edits, notes, ...
MIGRATIONS: dict[int, Migration] = {}  # 1 is the first format there is


def seal(data: Mapping[str, Any]) -> bytes:
    """JSON bytes of `data` with the format number and the checksum.

    Raises:
        BadInput: when the data holds NaN or something that JSON does not know.
    """
    body = {k: v for k, v in data.items() if k != "check"} | {"format": FORMAT}
    try:
        text = json.dumps(body, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False)
        head = text.removesuffix("\n}").encode()
    except (ValueError, TypeError) as exc:
        raise BadInput(f"This cannot be kept in the history: {exc}.", code="not-storable") from exc
    return head + _tail(head)


def unseal(raw: bytes, kind: str) -> dict[str, Any]:
    """The data of a sealed file in today's format; `kind` is the name of its folder.

    Raises:
        BadInput: saying in which way the file cannot be read.
    """
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"It is not JSON ({exc}).", code="not-json") from exc
    if not isinstance(data, dict):
        raise BadInput("It is not a JSON object.", code="wrong-type")
    version = data.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BadInput(f"It names no format (found {version!r:.40}).", code="newer-format")
    if version > FORMAT:
        raise BadInput(
            f"It has format {version}, and this workbench reads up to {FORMAT}; "
            "open it with a newer workbench.",
            code="newer-format",
        )
    head = raw[: -len(_tail(b""))]
    if raw != head + _tail(head):
        raise BadInput(
            "It was changed or damaged after it was written (its checksum is wrong).",
            code="damaged",
        )
    data.pop("check")
    return migrate(kind, data)


def migrate(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Bring data of any past format to the current one, step by step."""
    while data["format"] < FORMAT:
        version = data["format"]
        data = MIGRATIONS[version](kind, data)
        data["format"] = version + 1
    return data


def _tail(head: bytes) -> bytes:
    return f',\n "check": "{digest(head)}"\n}}'.encode()


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


_MOST_BYTES = 32 * 2**20  # a record is some 10 kB; a larger "record" was not written by us
_TICK = 100_000_000  # ns
_FILE = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\.json")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is there and cannot be read, and why."""

    name: str  # relative to the history folder
    reason: str


@dataclass(frozen=True, slots=True)
class _Seen(Generic[T]):
    stamp: tuple[int, int, int] | None  # None: read too soon after its writing to be sure of it
    value: T | Unreadable


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Switch the garbage collector off while many files are read; it would scan them repeatedly."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class JsonFolder(Generic[T]):
    """`<folder>/<ULID>.json`, each parsed once per change; safe to share between threads."""

    def __init__(self, folder: Path, temp: Path, parse: Callable[[str, dict[str, Any]], T]) -> None:
        """`parse(id, data)` makes the value and raises `BadInput` where it cannot."""
        self.folder = folder
        self._temp = temp
        self._parse = parse
        self._seen: dict[str, _Seen[T]] = {}
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """Path of an id's file.

        Raises:
            BadInput: when the id has not the form of one; no other text ever reaches the disk.
        """
        if not is_ulid(name):
            raise BadInput(
                f"{name!r:.60} is not an id of the history; an id has 26 characters.", code="bad-id"
            )
        return self.folder / f"{name}.json"

    def load(self) -> dict[str, T]:
        """All readable values by id."""
        seen = self._scan()
        return {k: s.value for k, s in seen.items() if not isinstance(s.value, Unreadable)}

    def unreadable(self) -> list[Unreadable]:
        """All files that cannot be read, by name."""
        values = (s.value for _, s in sorted(self._scan().items()))
        return [v for v in values if isinstance(v, Unreadable)]

    def ids(self) -> list[str]:
        """All ids, readable or not, oldest first; no file is opened."""
        try:
            return sorted(e.name[:-5] for e in os.scandir(self.folder) if _FILE.fullmatch(e.name))
        except FileNotFoundError:
            return []

    def one(self, name: str) -> T:
        """The value of one id.

        Raises:
            BadInput: when there is none.
            StoreError: when its file cannot be read.
        """
        path = self.path(name)
        with self._lock:
            try:
                value = self._look(path).value
            except OSError as exc:
                self._seen.pop(name, None)
                kind = path.parent.name[:-1]
                raise BadInput(f"There is no {kind} {name} here.", code=f"no-{kind}") from exc
        if isinstance(value, Unreadable):
            raise StoreError(f"{value.name} cannot be read: {value.reason}")
        return value

    def write(self, name: str, data: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Seal and write; False when the id exists and `overwrite` is False.

        Raises:
            BadInput: for data that JSON does not know.
            StoreError: when the disk refuses.
        """
        return write_atomic(self.path(name), seal(data), temp=self._temp, overwrite=overwrite)

    def remove(self, name: str) -> None:
        """Remove an id's file if it is there.

        Raises:
            StoreError: when the disk refuses.
        """
        try:
            self.path(name).unlink(missing_ok=True)
            sync_folder(self.folder)
        except OSError as exc:
            raise StoreError(f"{name}.json could not be removed ({exc.strerror}).") from exc
        with self._lock:
            self._seen.pop(name, None)

    def texts(self) -> list[str]:
        """The raw text of every file, readable or not (to see what still refers to a blob)."""
        paths = (self.folder / f"{name}.json" for name in self.ids())
        return [p.read_text(encoding="utf-8", errors="replace") for p in paths if p.exists()]

    def _scan(self) -> dict[str, _Seen[T]]:
        with self._lock:
            current: dict[str, _Seen[T]] = {}
            with _no_collection():
                for name in self.ids():
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        current[name] = self._look(self.folder / f"{name}.json")
            self._seen = current
            return dict(current)

    def _look(self, path: Path) -> _Seen[T]:
        name = path.stem
        info = path.stat()
        stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
        known = self._seen.get(name)
        if known is None or known.stamp != stamp:
            # Two writes within one tick of the file system's clock have the same time, and an inode
            # is soon used again: a file this young is read once more the next time (as git does).
            young = abs(time.time_ns() - info.st_mtime_ns) < _TICK
            known = _Seen(None if young else stamp, self._read(path, info.st_size))
            self._seen[name] = known
            if isinstance(known.value, Unreadable):
                log.warning("%s cannot be read: %s", known.value.name, known.value.reason)
        return known

    def _read(self, path: Path, size: int) -> T | Unreadable:
        where = f"{path.parent.name}/{path.name}"
        if size > _MOST_BYTES:
            return Unreadable(where, f"It has {size} bytes; no file of ours is that large.")
        try:
            return self._parse(path.stem, unseal(path.read_bytes(), path.parent.name))
        except FileNotFoundError:
            raise
        except OSError as exc:
            return Unreadable(where, f"The disk refuses it ({exc.strerror}).")
        except BadInput as exc:
            return Unreadable(where, str(exc))


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Notes: the fields of an edit that may change after it was made. `binned` is when it went to the bin."""

    title: str = ""
    note: str = ""
    favourite: bool = False
    binned: str = ""
    imported: str = ""  # name of the archive that it came from
    lora: str = ""  # id of the trained LoRA that came along, a safetensors file of the history

    @classmethod
    def from_json(cls, _name: str, data: Mapping[str, Any]) -> Notes:
        """Read the fields; unknown ones are dropped.

        Raises:
            BadInput: when a field has the wrong type.
        """
        parts = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        for name, value in parts.items():
            if not isinstance(value, bool if name == "favourite" else str):
                raise BadInput(f"Its {name} has the wrong type.")
        return cls(**parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An edit under way, and whose it is."""

    id: str
    request: EditRequest
    owner: str = ""
    started: str = ""
    process: str = ""  # name of the ProcessLock that lives as long as the process
    host: str = ""
    pid: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> Pending:
        """Read what `Store.begin` wrote.

        Raises:
            BadInput: when a part is missing or wrong.
        """
        try:
            return cls(
                id=name,
                request=EditRequest.from_json(data["request"], strict=False),
                owner=str(data["owner"]),
                started=str(data["started"]),
                process=str(data["process"]),
                host=str(data["host"]),
                pid=int(data["pid"]),
                environment=dict(data["environment"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise BadInput(f"It is incomplete ({exc}).") from exc


_ID = re.compile(r"wb1:[0-9a-f]{32}")
GRACE = 3600.0  # seconds that a file without a record is left alone: its edit may be under way


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (a file of the history or an edit) and what."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """Findings of `verify`; `checked` counts records and files."""

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


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder, as `ls` counts them; what vanishes meanwhile counts 0."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(where, name).lstat().st_size
    return total


def disk_use(store: Store) -> str:
    """What the history takes, in words: edits in and out of the bin, MB in all and per edit."""
    edits, total = len(store.records(binned=None)), bytes_of(store.folder)
    each = f", {total / 1e6 / edits:.2f} MB per edit" if edits else ""
    return f"edits: {edits}, {total / 1e6:.1f} MB on disk{each}"


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
        raise BadInput(
            f"The edit {sorted(chosen - set(binned))[0]:.60} is not in the bin.", code="not-in-bin"
        )
    candidates: set[str] = set()
    for name in sorted(chosen):
        candidates.update(_ID.findall(store.edit_text(name)))
        store.forget(name)
    return len(chosen), _remove_files(store, candidates - _mentioned(store), grace)


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
