"""Bringing a zip's edits into a history: all of it is checked first, then nothing is overwritten."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from safetensors import SafetensorError, deserialize

from workbench.core.errors import BadInput, StoreError
from workbench.core.keys import TAG, digest
from workbench.core.record import EditRecord
from workbench.imaging.decode import clean_name, image_id, mask_id
from workbench.imaging.headers import check_structure, kind_of
from workbench.storage import archive
from workbench.storage.archive import Checked, Limits, Refused, refuse
from workbench.storage.archive.write import SHARED_NOTES
from workbench.storage.history import Store
from workbench.storage.history.blobs import UNDECODABLE, Kind, decode_png
from workbench.storage.history.folder import Notes, references, unseal

log = logging.getLogger(__name__)

_PICTURES = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP"}
_MOST_PIXELS = 2 * 64_000_000  # a strip shows two pictures side by side
_LONGEST_NOTE = 100_000
_MOST_TEXT = 20_000  # characters of a prompt, an error, a name
_MOST_ENTRIES = 20_000  # steps, losses, frames
_MOST_PARTS = 500_000  # values of a record: 64 arrows of 2,000 steps are 256,000 numbers


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import.

    `known` were there already, the same; `differing` are there with another content: those of the
    history stay.
    """

    added: tuple[str, ...]
    known: tuple[str, ...]
    differing: tuple[str, ...]


def import_zip(
    store: Store,
    source: bytes | str | Path,
    *,
    owner: str = "",
    name: str = "",
    limits: Limits | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Imported:
    """Merge an exported zip (its bytes, or its path) into a history.

    The new edits belong to `owner`; `name` is noted as their origin. A LoRA that comes along is
    kept as a file of the history, and its id noted (`Notes.lora`). `on_step(done, total)` is called
    while the zip is checked and may raise to stop.

    Raises:
        StoreError: when the zip is damaged, hostile or of a newer workbench: it is refused as a
            whole; or when the disk refuses: then what was added is taken back.
    """
    label = clean_name(name or (source.name if isinstance(source, Path) else "import"), "import")
    with _opened(source, label) as file:
        checked = Checked(file, limits or Limits(), on_step)
        with contextlib.closing(checked):
            edits = _edits(checked)
            needed = _check_files(checked, edits, store)
            return _merge(store, checked, edits, needed, owner, label)


@contextlib.contextmanager
def _opened(source: bytes | str | Path, label: str) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115  closed below; only the opening is guarded
    except OSError as exc:
        raise StoreError(f"{label} cannot be read ({exc.strerror}).", code="unreadable") from exc
    with file:
        yield file


def _edits(checked: Checked) -> dict[str, EditRecord]:
    """All records of the zip, each readable and under its own name.

    Raises:
        StoreError: when one is not.
    """
    edits: dict[str, EditRecord] = {}
    for edit in checked.manifest["edits"]:
        name = archive.edit_file(edit, "record")
        try:
            data = unseal(checked.read(name), "edits")
            _check_lengths(data, name)
            record = EditRecord.from_json(data)
        except Refused:
            raise
        except BadInput as exc:
            raise refuse(f"{name} cannot be read. {exc}", "damaged-record") from exc
        if record.id != edit or not record.status.ended:
            raise refuse(f"{name} is not the record of the finished edit {edit}", "damaged-record")
        edits[edit] = record
    stray = [n for n in checked.names() if n.startswith("edits/") and n.split("/")[1] not in edits]
    if stray or not edits:
        raise refuse(f"{stray[0]} belongs to no edit" if stray else "it holds no edit", "no-edit")
    if not set(checked.manifest.get("loras", {})) <= set(edits):
        raise refuse("it holds a LoRA of no edit", "stray-file")
    return edits


def _check_lengths(data: Any, where: str) -> None:
    """Refuse texts, lists and objects longer than any that the workbench writes."""
    waiting, parts = [data], 0
    while waiting:
        value = waiting.pop()
        most = _MOST_TEXT if isinstance(value, str) else _MOST_ENTRIES
        if isinstance(value, (str, list, dict)) and len(value) > most:
            raise refuse(
                f"{where} holds {len(value)} characters or entries; the limit is {most}",
                "too-large",
            )
        if isinstance(value, dict):
            waiting.extend([*value, *value.values()])
        elif isinstance(value, list):
            waiting.extend(value)
        parts += 1
        if parts > _MOST_PARTS:
            raise refuse(f"{where} holds more than {_MOST_PARTS} values", "too-large")


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the zip that an edit needs, and as what it is stored."""

    name: str
    id: str
    kind: Kind
    size: tuple[int, int] | None = None  # width, height, where the record names them


def _check_files(
    checked: Checked, edits: dict[str, EditRecord], store: Store
) -> dict[tuple[str, str], _File]:
    """Check each file that an edit needs; returns them by name in the zip and content id.

    Raises:
        StoreError: when one is missing or is not what its name or the record says.
    """
    present = {n.split("/")[1].split(".")[0]: n for n in checked.names() if "/wb1-" in n}
    needed: dict[tuple[str, str], _File] = {}
    for edit, record in edits.items():
        for what, name_id in references(record).items():
            name = present.get("wb1-" + name_id.removeprefix(TAG))
            if name is None and not store.has(name_id):
                raise refuse(f"the {what} of the edit {edit} is missing", "missing-file")
            if name is not None:
                file = _File(name, name_id, _kind_of(what, name), _size_of(what, record))
                needed[name, name_id] = file
    for edit, name in checked.manifest.get("loras", {}).items():
        if name not in checked.names() or not name.endswith(".safetensors"):
            raise refuse(f"the LoRA of the edit {edit} is missing", "missing-file")
        name_id = TAG + name.split("wb1-")[1].split(".")[0]
        needed[name, name_id] = _File(name, name_id, "blobs")
    for file in needed.values():
        _check_file(file, checked.read(file.name))
    return needed


_SUFFIXES = {"LoRA": ("safetensors",), "style LoRA": ("safetensors",), "alpha": ("png",)}


def _kind_of(what: str, name: str) -> Kind:
    """As what a file is stored; refuses one that is of no use as `what`."""
    folder, suffix = name.split("/")[0], name.rsplit(".", 1)[1]
    kind: Kind = "blobs"
    if what == "mask":
        kind = "masks"
    elif what == "picture" or (what == "result" and folder != "files"):
        kind = "images"
    if folder != archive.FOLDERS[kind] or suffix not in _SUFFIXES.get(what, tuple(_PICTURES)):
        raise refuse(f"{name} cannot be the {what} of an edit", "other-kind")
    return kind


def _size_of(what: str, record: EditRecord) -> tuple[int, int] | None:
    asset = {"picture": record.request.image, "mask": record.request.mask}.get(what)
    return None if asset is None else (asset.width, asset.height)


def _check_file(file: _File, raw: bytes) -> None:
    try:
        check_structure(raw, kind_of(raw) or "", file.name)
        if file.kind == "blobs":
            found = digest(raw)
            _check_kind(file.name.rsplit(".", 1)[1], raw)
        else:
            pixels = decode_png(raw, "RGB" if file.kind == "images" else "L")
            found = image_id(pixels) if file.kind == "images" else mask_id(pixels > 127)
            if file.size is not None and pixels.shape[1::-1] != file.size:
                raise StoreError(f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels")
    except (StoreError, BadInput, *UNDECODABLE, SafetensorError) as exc:
        raise refuse(f"{file.name} is not what its name says ({exc})", "other-kind") from exc
    if found != file.id:
        raise refuse(f"the content of {file.name} does not match its name", "hash")


def _check_kind(suffix: str, raw: bytes) -> None:
    """See that a file is of the kind that its suffix says; a pickle is of none.

    Raises:
        One of `UNDECODABLE` or SafetensorError.
    """
    if suffix in _PICTURES:
        with Image.open(io.BytesIO(raw), formats=(_PICTURES[suffix],)) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"it has {image.width}x{image.height} pixels")
            image.load()
    elif suffix == "safetensors":
        deserialize(raw)  # type: ignore[no-untyped-call]
    elif suffix == "mp4":
        if raw[4:8] != b"ftyp":
            raise ValueError("it is no MP4")
    else:
        raw.decode("utf-8")


def _merge(
    store: Store,
    checked: Checked,
    edits: dict[str, EditRecord],
    needed: dict[tuple[str, str], _File],
    owner: str,
    label: str,
) -> Imported:
    """Store files first, then records: an interrupted import leaves whole edits only."""
    for file in needed.values():
        _put(store, file, checked.read(file.name))
    loras = {name: file.id for (name, _), file in needed.items()}
    added: list[str] = []
    known: list[str] = []
    differing: list[str] = []
    there = {r.id: r for r in store.records(binned=None)}
    unreadable = {Path(u.name).stem for u in store.unreadable() if u.name.startswith("edits/")}
    try:
        for edit, record in sorted(edits.items()):
            if edit in there or edit in unreadable:
                (known if there.get(edit) == record else differing).append(edit)
                continue
            store.commit(record, owner=owner)
            added.append(edit)
            lora = checked.manifest.get("loras", {}).get(edit, "")
            notes = _notes(checked, edit)
            store.annotate(edit, **notes, imported=label, lora=loras.get(lora, ""))
    except BaseException:
        for edit in added:
            store.take_back(edit)
        raise
    log.info(
        "%s: %d edits imported, %d known, %d differ", label, len(added), len(known), len(differing)
    )
    return Imported(tuple(added), tuple(known), tuple(differing))


def _put(store: Store, file: _File, raw: bytes) -> None:
    if file.kind == "images":
        stored = store.put_image(decode_png(raw, "RGB")).id
    elif file.kind == "masks":
        stored = store.put_mask(decode_png(raw, "L") > 127).id
    else:
        stored = store.put_blob(raw, file.name.rsplit(".", 1)[1])
    if stored != file.id:
        raise refuse(f"the content of {file.name} does not match its name", "hash")


def _notes(checked: Checked, edit: str) -> dict[str, Any]:
    """Title, note and favourite, as far as they have the right types."""
    name = archive.edit_file(edit, "notes")
    data = checked.json(name) if name in checked.names() else {}
    defaults = dataclasses.asdict(Notes())
    kept = {k: data[k] for k in SHARED_NOTES if type(data.get(k)) is type(defaults[k])}
    return {k: v[:_LONGEST_NOTE] if isinstance(v, str) else v for k, v in kept.items()}
