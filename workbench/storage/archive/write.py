"""Writing the zip: the same edits give the same bytes, on any machine.

Nothing is compressed: pictures and LoRAs do not shrink, and the output of a compressor differs
between its versions. An entry's date is the day on which its edit ended, in UTC.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench import __version__
from workbench.core.errors import BadInput, StoreError
from workbench.core.record import EditRecord
from workbench.imaging import decode
from workbench.storage import archive
from workbench.storage.archive import Limits
from workbench.storage.archive.page import page
from workbench.storage.files import sync_folder
from workbench.storage.history import Store
from workbench.storage.history.folder import Notes, references, seal

LoraOf = Callable[[EditRecord], bytes | None]
_FIRST = (1980, 1, 1, 0, 0, 0)  # the zip format's first day: for edits of no known date


@dataclass(frozen=True, slots=True)
class Exported:
    """Contents of a zip. `left_out`: edits that could not be exported, and why."""

    edits: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Item:
    """One edit on its way into the zip: record, notes, and the zip's name of each of its files."""

    record: EditRecord
    notes: Notes
    files: dict[str, str]  # what it is ("picture", "mask", "result", ...) -> name in the zip
    lora: str | None = None


def export_zip(
    store: Store,
    ids: Iterable[str] | None = None,
    *,
    owner: str | None = None,
    lora_of: LoraOf | None = None,
    layers: bool = False,
    limits: Limits | None = None,
) -> bytes:
    """The zip of some edits, or of all outside the bin, in memory (for a download button).

    `lora_of` gives the trained LoRA of an edit (safetensors bytes) where it is to go along; `layers`
    adds before, after, mask and change as transparent PNG files for other programs.

    Raises:
        BadInput: for an unknown edit (or another owner's), or more than a zip may hold.
        StoreError: when none of them can be exported.
    """
    out = io.BytesIO()
    _write(store, out, ids, owner, lora_of, limits or Limits(), layers=layers)
    return out.getvalue()


def export_file(
    store: Store,
    path: str | Path,
    ids: Iterable[str] | None = None,
    *,
    owner: str | None = None,
    lora_of: LoraOf | None = None,
    limits: Limits | None = None,
) -> Exported:
    """Write the zip of some edits, or of all outside the bin, to a file in one step.

    Raises:
        BadInput: as `export_zip` does.
        StoreError: when none can be exported or the disk refuses; an older file is unchanged.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        try:
            with part.open("xb") as file:
                done = _write(store, file, ids, owner, lora_of, limits or Limits())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise StoreError(
            f"{path.name} could not be written ({exc.strerror}); choose another folder or free "
            "some disk space.",
            code="not-written",
        ) from exc
    return done


def _write(
    store: Store,
    out: BinaryIO,
    ids: Iterable[str] | None,
    owner: str | None,
    lora_of: LoraOf | None,
    limits: Limits,
    *,
    layers: bool = False,
) -> Exported:
    chosen = [r.id for r in store.records(owner=owner)] if ids is None else list(ids)
    records = [store.record(name, owner) for name in sorted(set(chosen))]
    if not records:
        raise BadInput("There is no edit to export; choose at least one.")
    items: list[Item] = []
    left_out: list[tuple[str, str]] = []
    with _Writer(out, limits) as writer:
        for record in records:
            try:
                writer.date = _date(record)
                items.append(_add(store, writer, record, lora_of))
                if layers:
                    for what, raw in _layers(store, record).items():
                        writer.add(
                            archive.layer_file(record.id, record.request.image.name, what), raw
                        )
            except StoreError as exc:
                left_out.append((record.id, str(exc)))
        if not items:
            raise StoreError(
                f"No edit could be exported. {left_out[0][1]}", code="nothing-exported"
            )
        writer.add(archive.INDEX, page(items, left_out).encode())
        manifest = {
            "kind": archive.KIND,
            "format": archive.FORMAT,
            "made_by": f"drag-workbench {__version__}",
            "edits": [i.record.id for i in items],
            "loras": {i.record.id: i.lora for i in items if i.lora},
            "left_out": [{"edit": name, "why": why} for name, why in left_out],
            "files": writer.files,
        }
        writer.end(_json(manifest))
    return Exported(tuple(i.record.id for i in items), tuple(left_out), writer.total)


def _add(store: Store, writer: _Writer, record: EditRecord, lora_of: LoraOf | None) -> Item:
    """Put one edit into the zip; all its files are read and checked before the first is written.

    Raises:
        StoreError: when one of its pictures is missing or damaged.
    """
    names: dict[str, str] = {}
    raws: dict[str, bytes] = {}
    for what, name_id in references(record).items():
        kind, path = store.kind_of(name_id), store.find(name_id)
        wrong = "it is missing" if kind is None else store.check(kind, name_id)
        if kind is None or path is None or wrong:
            raise StoreError(f"Its {what} ({name_id:.60}) cannot be had: {wrong}")
        names[what] = archive.file_name(kind, name_id, path.suffix[1:])
        if names[what] not in writer.files:
            raws[names[what]] = path.read_bytes()
    lora = None
    raw = lora_of(record) if lora_of is not None else None
    if raw is not None:
        name_id = store.id_of(raw)
        lora = archive.file_name("blobs", name_id, "safetensors")
        raws.setdefault(lora, raw)
    for name, raw in raws.items():
        writer.add(name, raw)
    notes = store.notes(record.id)
    _add_json(writer, record, notes)
    return Item(record, notes, names, lora)


def _date(record: EditRecord) -> tuple[int, int, int, int, int, int]:
    """When an edit ended (or began), UTC, as a zip says it."""
    for text in (record.finished, record.started):
        try:
            when = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
        except ValueError:
            continue
        date = (when.year, when.month, when.day, when.hour, when.minute, when.second)
        return date if 1980 <= when.year <= 2107 else _FIRST
    return _FIRST


def _layers(store: Store, record: EditRecord) -> dict[str, bytes]:
    """Source, result and changed area of an edit as PNG files of one size to lay over each other."""
    before = store.image(record.request.image.id)
    found = {"before": decode.encode_png(before)}
    if record.request.mask is not None:
        found["mask"] = _cut_out(np.full_like(before, 255), store.mask(record.request.mask.id))
    if record.result is not None:
        after = store.image(record.result.image)
        found["after"] = decode.encode_png(after)
        found["change"] = _cut_out(after, (before != after).any(axis=2))
    return found


def _cut_out(rgb: NDArray[np.uint8], seen: NDArray[np.bool_]) -> bytes:
    """A picture [H,W,3] as a PNG that is transparent where `seen` [H,W] is False."""
    out = io.BytesIO()
    alpha = np.where(seen, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([rgb * seen[..., None], alpha])).save(out, "PNG")
    return out.getvalue()


def _add_json(writer: _Writer, record: EditRecord, notes: Notes) -> None:
    data = record.to_json()
    request = data["request"]
    arrows = {
        "coordinates": "image pixels, x right, y down; the centre of the top-left pixel is (0, 0)",
        "image": {k: request["image"][k] for k in ("id", "width", "height", "name")},
        "pairs": [{"handle": list(p[:2]), "target": list(p[2:])} for p in request["pairs"]],
    }
    parameters = {k: v for k, v in request.items() if k not in ("pairs", "image", "mask")}
    writer.add(archive.edit_file(record.id, "record"), seal(data))
    writer.add(archive.edit_file(record.id, "arrows"), _json(arrows))
    writer.add(archive.edit_file(record.id, "parameters"), _json(parameters))
    kept = {k: v for k, v in dataclasses.asdict(notes).items() if k in SHARED_NOTES}
    writer.add(archive.edit_file(record.id, "notes"), _json(kept))


SHARED_NOTES = ("title", "note", "favourite")  # the bin and the origin are each history's own


class _Writer:
    """A zip of stored files whose bytes depend on nothing but names and contents."""

    def __init__(self, out: BinaryIO, limits: Limits) -> None:
        self.files: dict[str, dict[str, object]] = {}
        self.date = _FIRST  # of the entries that are added now
        self.total = 0
        self._limits = limits
        self._zip = zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=False)

    def add(self, name: str, raw: bytes) -> None:
        if name in self.files:
            return
        self.total += len(raw)
        if self.total > self._limits.bytes or len(self.files) >= self._limits.files - 1:
            raise BadInput(
                f"These edits do not fit into one zip ({self._limits.files} files, "
                f"{self._limits.bytes / 1e9:.1f} GB); export fewer at a time.",
                code="too-large",
            )
        self.files[name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        self._put(name, raw)

    def end(self, manifest: bytes) -> None:
        self._put(archive.MANIFEST, manifest)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._zip.close()

    def _put(self, name: str, raw: bytes) -> None:
        info = zipfile.ZipInfo(name, self.date)
        info.create_system = 3
        info.external_attr = 0o100644 << 16
        self._zip.writestr(info, raw)


def _json(data: object) -> bytes:
    return json.dumps(data, ensure_ascii=False, sort_keys=True, indent=1).encode()
