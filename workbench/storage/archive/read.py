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
from workbench.storage.archive import layout
from workbench.storage.archive.check import (
    Checked,
    Limits,
    Refused,
    refuse,
)
from workbench.storage.archive.write import SHARED_NOTES
from workbench.storage.history import Notes, Store
from workbench.storage.history.blobs import UNDECODABLE, decode_png
from workbench.storage.history.format import unseal
from workbench.storage.history.upkeep import references

log = logging.getLogger(__name__)

_PICTURES = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP"}
_MOST_PIXELS = 2 * 64_000_000  # a strip shows two pictures side by side
_LONGEST_NOTE = 100_000


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to.

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
        raise StoreError(f"{label} cannot be read ({exc.strerror}).") from exc
    with file:
        yield file


def _edits(checked: Checked) -> dict[str, EditRecord]:
    """All records of the zip, each readable and under its own name.

    Raises:
        StoreError: when one is not.
    """
    edits: dict[str, EditRecord] = {}
    for edit in checked.manifest["edits"]:
        name = layout.edit_file(edit, "record")
        try:
            record = EditRecord.from_json(unseal(checked.read(name), "edits"))
        except Refused:
            raise
        except BadInput as exc:
            raise refuse(f"{name} cannot be read. {exc}") from exc
        if record.id != edit or not record.status.ended:
            raise refuse(f"{name} is not the record of the finished edit {edit}")
        edits[edit] = record
    stray = [n for n in checked.names() if n.startswith("edits/") and n.split("/")[1] not in edits]
    if stray or not edits:
        raise refuse(f"{stray[0]} belongs to no edit" if stray else "it holds no edit")
    if not set(checked.manifest.get("loras", {})) <= set(edits):
        raise refuse("it holds a LoRA of no edit")
    return edits


def _check_files(checked: Checked, edits: dict[str, EditRecord], store: Store) -> dict[str, str]:
    """Check each file that an edit needs; name in the zip -> content id.

    Raises:
        StoreError: when one is missing or is not what its name says.
    """
    present = {n.split("/")[1].split(".")[0]: n for n in checked.names() if "/wb1-" in n}
    needed: dict[str, str] = {}
    for edit, record in edits.items():
        for what, name_id in references(record).items():
            name = present.get("wb1-" + name_id.removeprefix(TAG))
            if name is None and not store.has(name_id):
                raise refuse(f"the {what} of the edit {edit} is missing")
            if name is not None:
                needed[name] = name_id
    for edit, name in checked.manifest.get("loras", {}).items():
        if name not in checked.names() or not name.endswith(".safetensors"):
            raise refuse(f"the LoRA of the edit {edit} is missing")
        needed[name] = TAG + name.split("wb1-")[1].split(".")[0]
    for name, name_id in needed.items():
        _check_file(name, name_id, checked.read(name))
    return needed


def _check_file(name: str, name_id: str, raw: bytes) -> None:
    folder, suffix = name.split("/")[0], name.rsplit(".", 1)[1]
    try:
        if folder == "images":
            found = image_id(decode_png(raw, "RGB"))
        elif folder == "masks":
            found = mask_id(decode_png(raw, "L") > 127)
        else:
            found = digest(raw)
            _check_kind(suffix, raw)
    except (StoreError, *UNDECODABLE, SafetensorError) as exc:
        raise refuse(f"{name} is not what its name says ({exc})") from exc
    if found != name_id:
        raise refuse(f"the content of {name} does not match its name")


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
    needed: dict[str, str],
    owner: str,
    label: str,
) -> Imported:
    """Store files first, then records: an interrupted import leaves whole edits only."""
    for name, name_id in needed.items():
        _put(store, name, name_id, checked.read(name))
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
            store.annotate(edit, **notes, imported=label, lora=needed.get(lora, ""))
    except BaseException:
        for edit in added:
            store.take_back(edit)
        raise
    log.info(
        "%s: %d edits imported, %d known, %d differ", label, len(added), len(known), len(differing)
    )
    return Imported(tuple(added), tuple(known), tuple(differing))


def _put(store: Store, name: str, name_id: str, raw: bytes) -> None:
    folder, suffix = name.split("/")[0], name.rsplit(".", 1)[1]
    if folder == "images":
        stored = store.put_image(decode_png(raw, "RGB")).id
    elif folder == "masks":
        stored = store.put_mask(decode_png(raw, "L") > 127).id
    else:
        stored = store.put_blob(raw, suffix)
    if stored != name_id:
        raise refuse(f"the content of {name} does not match its name")


def _notes(checked: Checked, edit: str) -> dict[str, Any]:
    """Title, note and favourite, as far as they have the right types."""
    name = layout.edit_file(edit, "notes")
    data = checked.json(name) if name in checked.names() else {}
    defaults = dataclasses.asdict(Notes())
    kept = {k: data[k] for k in SHARED_NOTES if type(data.get(k)) is type(defaults[k])}
    return {k: v[:_LONGEST_NOTE] if isinstance(v, str) else v for k, v in kept.items()}
