"""Export and import: the same bytes each time, everything that an edit needs, nothing overwritten."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archive_samples import edit, entries, picture, png, weights
from PIL import Image
from refusals import refusal

from workbench.core.config import LoraRef
from workbench.core.errors import BadInput, Cancelled, StoreError
from workbench.core.keys import digest
from workbench.storage.archive import Limits
from workbench.storage.archive.read import Imported, import_zip
from workbench.storage.archive.write import export_file, export_zip
from workbench.storage.history import Store
from workbench.storage.history.folder import references, verify

FORMATS = Path(__file__).resolve().parents[1] / "data" / "formats"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """Another machine's history."""
    return Store(tmp_path / "other")


def test_there_and_back_again(store: Store, other: Store) -> None:
    first = edit(store, 1, prompt="a robot – 蟹")
    second = edit(store, 2, parent=first.id)
    store.annotate(first.id, title="T", note="n\n<b>", favourite=True)
    raw = export_zip(store)
    assert import_zip(other, raw, owner="bob", name="x/robots.zip") == Imported(
        (first.id, second.id), (), ()
    )
    assert other.records() == [second, first]
    assert other.owner(first.id) == "bob"
    notes = other.notes(first.id)
    assert (notes.title, notes.note, notes.favourite) == ("T", "n\n<b>", True)
    assert notes.imported == "robots.zip"
    assert first.result is not None
    np.testing.assert_array_equal(other.image(first.request.image.id), picture(1))
    np.testing.assert_array_equal(other.image(first.result.image), picture(1001))
    assert other.blob(first.result.frames[1]) == png(3001)
    assert verify(other).ok
    assert other.unreadable() == []


def test_the_same_edits_give_the_same_bytes(store: Store, other: Store) -> None:
    ids = [edit(store, i).id for i in range(3)]
    raw = export_zip(store)
    assert export_zip(store, reversed(ids)) == raw
    import_zip(other, raw)
    assert export_zip(other) == raw  # also from the other machine
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        infos = file.infolist()
    assert len({i.date_time for i in infos}) == 1  # all three ended on one day
    assert {i.compress_type for i in infos} == {zipfile.ZIP_STORED}
    assert {(i.create_system, i.external_attr) for i in infos} == {(3, 0o100644 << 16)}


def test_an_entry_has_the_date_of_its_edit(store: Store, other: Store) -> None:
    record = edit(store, 1)
    dated = dataclasses.replace(record, finished="2026-11-28T01:02:04+01:00")
    other.put_image(picture(1), "p")
    for name in references(record).values():
        kind = store.kind_of(name)
        path = store.find(name)
        assert kind is not None
        assert path is not None
        target = other.folder / path.relative_to(store.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    other.commit(dated)
    with zipfile.ZipFile(io.BytesIO(export_zip(other))) as file:
        assert {i.date_time for i in file.infolist()} == {(2026, 11, 28, 0, 2, 4)}


def test_layers_lie_over_each_other_and_are_not_read_back(store: Store, other: Store) -> None:
    record = edit(store, 1)
    raw = export_zip(store, layers=True)
    found = {n.rsplit("/", 1)[1]: b for n, b in entries(raw).items() if n.startswith("layers/")}
    assert set(found) == {"before.png", "after.png", "mask.png", "change.png"}
    pixels = {n: np.asarray(Image.open(io.BytesIO(b)).convert("RGBA")) for n, b in found.items()}
    before, after, change = (pixels[f"{n}.png"] for n in ("before", "after", "change"))
    seen = change[..., 3:] > 0
    np.testing.assert_array_equal(np.where(seen, change, before), after)
    assert record.request.mask is not None
    np.testing.assert_array_equal(
        pixels["mask.png"][..., 3] > 0, store.mask(record.request.mask.id)
    )
    assert import_zip(other, raw).added == (record.id,)
    assert export_zip(other) == export_zip(store)


def test_what_is_in_the_zip(store: Store) -> None:
    record = edit(store, 1, prompt="p")
    files = entries(export_zip(store))
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest["edits"] == [record.id]
    assert set(manifest["files"]) == set(files)
    for name, known in manifest["files"].items():
        assert known == {
            "sha256": hashlib.sha256(files[name]).hexdigest(),
            "bytes": len(files[name]),
        }
    folder = f"edits/{record.id}"
    arrows = json.loads(files[f"{folder}/arrows.json"])
    assert arrows["pairs"][0] == {"handle": [1.0, 2.0], "target": [5.0, 6.0]}
    parameters = json.loads(files[f"{folder}/parameters.json"])
    assert parameters["prompt"] == "p"
    assert parameters["drag"]["method"] == "dragdiffusion"
    kinds = sorted({n.split("/")[0] for n in files})
    assert kinds == ["edits", "files", "images", "index.html", "masks"]
    assert len([n for n in files if n.startswith("files/")]) == 3
    assert len([n for n in files if n.startswith("images/")]) == 2


def test_names_of_people_and_machines_stay_at_home(store: Store) -> None:
    """The owner's name and the process that made an edit are nobody else's business."""
    edit(store, 1, owner="ann.secret")
    raw = export_zip(store)
    assert b"ann.secret" not in raw
    assert str(store.folder).encode() not in raw


def test_only_the_chosen_ones(store: Store, other: Store) -> None:
    a, b, c = (edit(store, i) for i in range(3))
    store.bin([b.id])
    assert set(import_zip(other, export_zip(store)).added) == {a.id, c.id}
    assert import_zip(other, export_zip(store, [b.id])).added == (b.id,)
    for ids in ([], ["01ARZ3NDEKTSV4RRFFQ69G5FAV"], ["nonsense"]):
        with pytest.raises(BadInput):
            export_zip(store, ids)


def test_fault_46_another_owners_edits_are_not_exported(store: Store) -> None:
    mine, theirs = edit(store, 1, owner="ann"), edit(store, 2, owner="bob")
    assert theirs.id not in export_zip(store, owner="ann").decode("latin-1")
    with refusal("no-edit"):
        export_zip(store, [mine.id, theirs.id], owner="ann")


def test_importing_twice_changes_nothing(store: Store, other: Store) -> None:
    record = edit(store, 1)
    raw = export_zip(store)
    import_zip(other, raw)
    other.annotate(record.id, title="my own title")
    other.bin([record.id])
    before = {p: p.read_bytes() for p in other.folder.rglob("*.json")}
    assert import_zip(other, raw) == Imported((), (record.id,), ())
    assert {p: p.read_bytes() for p in other.folder.rglob("*.json")} == before
    assert import_zip(store, raw) == Imported((), (record.id,), ())  # into where it came from


def test_an_edit_that_differs_is_not_overwritten(store: Store, other: Store) -> None:
    record = edit(store, 1)
    changed = dataclasses.replace(record, error="changed")
    import_zip(other, export_zip(store))
    third = Store(other.folder.parent / "third")
    for kind in ("images", "masks", "blobs"):
        shutil.copytree(other.folder / kind, third.folder / kind)
    third.commit(changed)
    assert import_zip(other, export_zip(third)) == Imported((), (), (record.id,))
    assert other.record(record.id) == record


def test_an_unreadable_record_is_not_overwritten_either(store: Store, other: Store) -> None:
    record = edit(store, 1)
    raw = export_zip(store)
    import_zip(other, raw)
    path = other.folder / "edits" / f"{record.id}.json"
    path.write_bytes(b"damaged, but perhaps to be saved")
    assert import_zip(other, raw).differing == (record.id,)
    assert path.read_bytes() == b"damaged, but perhaps to be saved"


def test_a_damaged_picture_leaves_its_edit_out_and_says_so(store: Store, other: Store) -> None:
    good, bad = edit(store, 1), edit(store, 2)
    path = store.find(bad.request.image.id)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-30])
    done = export_file(store, store.folder.parent / "x.zip")
    assert done.edits == (good.id,)
    ((name, why),) = done.left_out
    assert name == bad.id
    assert "picture" in why
    raw = (store.folder.parent / "x.zip").read_bytes()
    assert bad.id in entries(raw)["index.html"].decode()
    assert import_zip(other, raw).added == (good.id,)
    with refusal("nothing-exported", kind=StoreError):
        export_zip(store, [bad.id])


def test_trained_loras_go_along_when_asked_for(store: Store, other: Store) -> None:
    a, b = edit(store, 1), edit(store, 2)
    raw = export_zip(store, lora_of=lambda r: weights(7) if r.id == a.id else None)
    assert import_zip(other, raw).added == (a.id, b.id)
    lora = other.notes(a.id).lora
    assert lora == digest(weights(7))
    assert other.blob(lora) == weights(7)
    assert other.notes(b.id).lora == ""
    assert b"safetensors" not in export_zip(store)


def test_lora_files_of_the_request_always_go_along(store: Store, other: Store) -> None:
    lora = LoraRef(id=store.put_blob(weights(1), "safetensors"), name="mine", weight=0.5)
    style = LoraRef(id=store.put_blob(weights(2), "safetensors"), name="style")
    record = edit(store, 1, lora_file=lora, style=style)
    import_zip(other, export_zip(store))
    assert other.record(record.id).request.style == style
    assert other.blob(lora.id) == weights(1)
    assert verify(other).ok


def test_to_a_file_in_one_step(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(store, 1)
    path = tmp_path / "mine.zip"
    done = export_file(store, path)
    assert path.read_bytes() == export_zip(store)
    assert 0 < done.bytes < path.stat().st_size
    path.write_bytes(b"older export")
    monkeypatch.setattr("workbench.storage.archive.write.page", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_file(store, path)
    assert path.read_bytes() == b"older export"
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_import_from_a_path(store: Store, other: Store, tmp_path: Path) -> None:
    record = edit(store, 1)
    export_file(store, tmp_path / "mine.zip")
    assert import_zip(other, tmp_path / "mine.zip").added == (record.id,)
    assert other.notes(record.id).imported == "mine.zip"
    with refusal("unreadable", kind=StoreError):
        import_zip(other, tmp_path / "gone.zip")


def test_packed_anew_by_another_program(store: Store, other: Store, tmp_path: Path) -> None:
    """Unpacked and zipped again: compressed, other dates, folder entries. Still the same edits."""
    record = edit(store, 1)
    export_file(store, tmp_path / "mine.zip")
    shutil.unpack_archive(tmp_path / "mine.zip", tmp_path / "unpacked")
    again = shutil.make_archive(str(tmp_path / "again"), "zip", tmp_path / "unpacked")
    names = zipfile.ZipFile(again).namelist()
    assert "images/" in names
    assert import_zip(other, Path(again)).added == (record.id,)


def test_checking_can_be_stopped(store: Store, other: Store) -> None:
    edit(store, 1)

    def stop(done: int, total: int) -> None:
        assert 1 <= done <= total
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        import_zip(other, export_zip(store), on_step=stop)
    assert list(other.files()) == []


def test_too_much_for_one_zip_is_said_before_it_is_written(store: Store) -> None:
    edit(store, 1)
    for limits in (Limits(files=5), Limits(bytes=1000)):
        with refusal("too-large"):
            export_zip(store, limits=limits)


def test_format_1_is_imported(other: Store) -> None:
    """A frozen zip of the first format, with a LoRA and notes (never made anew)."""
    ids = json.loads((FORMATS / "v1" / "expected.json").read_text())
    done = import_zip(other, FORMATS / "v1" / "export.zip")
    assert set(done.added) == {ids["done"], ids["failed"]}
    record = other.record(ids["done"])
    assert record.request.prompt == "a gradient – 梯度"
    assert other.notes(record.id).note == "kept\nfor ever"
    assert other.blob(other.notes(record.id).lora)[8:9] == b"{"
    assert verify(other).ok
