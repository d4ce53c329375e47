"""The history when all is well: committed once, found again, noted, binned, verified."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from workbench.errors import BadInput, StoreError
from workbench.keys import digest
from workbench.records import EditRecord, EditResult, JobState
from workbench.store import Project, Store, empty_bin, orphans, tidy, verify
from workbench.store.format import seal
from workbench.types import EditRequest, Point, PointPair
from workbench.ulid import is_ulid


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")


def picture(seed: int = 0, shape: tuple[int, int] = (12, 16)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def request(store: Store, seed: int = 0, **changes: Any) -> EditRequest:
    image = store.put_image(picture(seed), name=f"p{seed}.png")
    mask = store.put_mask(picture(seed)[..., 0] > 100)
    pairs = (PointPair(Point(1, 2), Point(5, 6)),)
    return EditRequest(image=image, mask=mask, pairs=pairs, **changes)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(seed)).save(out, "PNG")
    return out.getvalue()


def edit(store: Store, seed: int = 0, owner: str = "", **changes: Any) -> EditRecord:
    """A finished edit."""
    req = request(store, seed, **changes)
    name = store.begin(req, owner=owner, environment={"torch": "2"})
    result = EditResult(image=store.put_blob(png(1000 + seed), "png"), distances=(1.5,))
    record = EditRecord(
        id=name, request=req, status=JobState.DONE, result=result, environment={"torch": "2"}
    )
    store.finish(record)
    return record


# --- pictures --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_any_picture_comes_back_exactly(tmp_path_factory: Any, rgb: Any) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "pictures")
    asset = store.put_image(rgb)
    assert (asset.height, asset.width) == rgb.shape[:2]
    np.testing.assert_array_equal(store.image(asset.id), rgb)
    mask = rgb[..., 0] > 127
    np.testing.assert_array_equal(store.mask(store.put_mask(mask).id), mask)
    store.close()


def test_ids_are_content(store: Store) -> None:
    assert store.put_image(picture(1), "a").id == store.put_image(picture(1), "b").id
    assert store.put_image(picture(1)).id != store.put_image(picture(2)).id
    turned = np.ascontiguousarray(picture(1).reshape(16, 12, 3))
    assert store.put_image(turned).id != store.put_image(picture(1)).id
    assert store.put_blob(b"x", "txt") == digest(b"x")
    assert len(list(store.blobs.files())) == 4


def test_a_view_with_strides_is_the_same_picture(store: Store) -> None:
    wide = np.repeat(picture(1), 2, axis=1)
    assert store.put_image(wide[:, ::2]).id == store.put_image(picture(1)).id


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), float)]
)
def test_only_rgb_is_a_picture(store: Store, bad: Any) -> None:
    with pytest.raises(BadInput, match=r"uint8 \[H,W,3\]"):
        store.put_image(bad)
    with pytest.raises(BadInput, match=r"bool \[H,W\]"):
        store.put_mask(bad)


@pytest.mark.parametrize("suffix", ["pkl", "pt", "ckpt", "bin", "html", "", "png/../../x"])
def test_no_other_files_are_kept(store: Store, suffix: str) -> None:
    with pytest.raises(BadInput, match="is not kept"):
        store.put_blob(b"x", suffix)


@pytest.mark.parametrize("name", ["", "wb1:", "../x", "wb1:../../x", "wb1:" + "G" * 32, "x" * 300])
def test_what_is_no_id_never_reaches_the_disk(store: Store, name: str) -> None:
    for read in (store.image, store.mask, store.blob, store.thumbnail):
        with pytest.raises(StoreError):
            read(name)
    assert not store.has(name)
    for call in (store.record, store.owner, store.edit_text, store.projects.load):
        with pytest.raises(BadInput):
            call(name)


def test_stored_files_carry_no_metadata(store: Store) -> None:
    store.put_image(picture())
    ((_kind, _id, path),) = store.blobs.files()
    with Image.open(path) as image:
        assert image.info == {}


def test_thumbnails(store: Store) -> None:
    asset = store.put_image(picture(0, (300, 600)))
    mask = store.put_mask(picture(0, (300, 600))[..., 0] > 99)
    blob = store.put_blob(png(3), "png")
    for name, size in ((asset.id, (128, 64)), (mask.id, (128, 64)), (blob, (16, 12))):
        raw = store.thumbnail(name, 128)
        with Image.open(io.BytesIO(raw)) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", size, "RGB")
        assert store.thumbnail(name, 128) == raw
    for file in (store.folder / "thumbs").iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    assert len(store.thumbnail(asset.id, 128)) > 200  # a damaged one is made again
    with Image.open(io.BytesIO(store.thumbnail(asset.id, 128))) as image:
        image.load()
    text = store.put_blob(b"no picture", "txt")
    with pytest.raises(StoreError, match="no picture"):
        store.thumbnail(text)


# --- edits -----------------------------------------------------------------------------------------


def test_begin_and_finish(store: Store) -> None:
    req = request(store, prompt="a robot")
    name = store.begin(req, owner="ann")
    (pending,) = store.pending()
    assert (pending.id, pending.owner, pending.request, pending.pid) == (
        name,
        "ann",
        req,
        os.getpid(),
    )
    assert store.records() == []
    record = EditRecord(id=name, request=req, status=JobState.FAILED, error="NaN")
    store.finish(record)
    assert store.pending() == []
    assert store.record(name) == record
    assert store.owner(name) == "ann"
    assert store.records() == [record]


def test_a_record_is_written_once(store: Store) -> None:
    record = edit(store)
    with pytest.raises(StoreError, match="already"):
        store.finish(dataclasses.replace(record, error="changed"))
    assert store.record(record.id) == record


def test_only_what_has_ended_is_kept(store: Store) -> None:
    req = request(store)
    with pytest.raises(BadInput, match="running"):
        store.finish(EditRecord(id=store.begin(req), request=req, status=JobState.RUNNING))


def test_nan_is_refused_with_words(store: Store) -> None:
    req = request(store)
    result = EditResult(image="wb1:" + "0" * 32, losses=(float("nan"),))
    record = EditRecord(id=store.begin(req), request=req, status=JobState.DONE, result=result)
    with pytest.raises(BadInput, match="cannot be kept"):
        store.finish(record)
    assert store.records() == []


def test_newest_first_and_filters(store: Store) -> None:
    a, b = edit(store, 1, owner="ann"), edit(store, 2, owner="bob")
    c = edit(store, 1, owner="ann")
    assert [r.id for r in store.records()] == [c.id, b.id, a.id]
    assert [r.id for r in store.records(owner="ann")] == [c.id, a.id]
    assert [r.id for r in store.records(image=a.request.image.id)] == [c.id, a.id]
    assert a.result is not None
    assert [r.id for r in store.records(image=b.result.image if b.result else "")] == [b.id]


def test_another_store_sees_it_at_once(store: Store) -> None:
    other = Store(store.folder)
    record = edit(store)
    assert other.records() == [record]
    other.annotate(record.id, note="seen")
    assert store.notes(record.id).note == "seen"
    other.bin([record.id])
    assert store.records() == []


def test_the_tree(store: Store) -> None:
    root = edit(store, 1)
    left, right = edit(store, 2, parent=root.id), edit(store, 3, parent=root.id)
    leaf = edit(store, 4, parent=left.id)
    assert {r.id for r in store.children(root.id)} == {left.id, right.id}
    assert [r.id for r in store.ancestors(leaf.id)] == [left.id, root.id]
    assert store.ancestors(root.id) == []
    assert store.children(leaf.id) == []


def test_ancestors_end_where_one_is_missing_or_the_tree_is_a_ring(store: Store) -> None:
    lost = edit(store, 1, parent="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert store.ancestors(lost.id) == []
    req = request(store)
    first, second = store.begin(req), store.begin(req)
    for name, parent in ((first, second), (second, first)):
        ring = dataclasses.replace(req, parent=parent)
        store.finish(EditRecord(id=name, request=ring, status=JobState.DONE))
    assert [r.id for r in store.ancestors(first)] == [second]


def test_search(store: Store) -> None:
    robot = edit(store, 1, prompt="A red Robot at dusk")
    crab = edit(store, 2, prompt="a crab")
    store.annotate(crab.id, title="Krabbe", note="needs more Größe", favourite=True)
    found = {
        "robot": [robot],
        "ROBOT red": [robot],
        "grösse": [crab],
        "crab krabbe favourite": [crab],
        "p1.png": [robot],
        "dragdiffusion": [crab, robot],
        "done": [crab, robot],
        "robot crab": [],
        "": [crab, robot],
    }
    for text, records in found.items():
        assert [r.id for r in store.search(text)] == [r.id for r in records], text


def test_notes(store: Store) -> None:
    record = edit(store)
    assert store.notes(record.id).note == ""
    store.annotate(record.id, note="<b>bold</b>", favourite=True)
    store.annotate(record.id, title="t")
    notes = store.notes(record.id)
    assert (notes.note, notes.favourite, notes.title) == ("<b>bold</b>", True, "t")
    assert store.record(record.id) == record  # the record itself is untouched
    for changes in ({"colour": "red"}, {"note": 3}, {"favourite": "yes"}):
        with pytest.raises(BadInput):
            store.annotate(record.id, **changes)
    with pytest.raises(BadInput, match="no edit"):
        store.annotate("01ARZ3NDEKTSV4RRFFQ69G5FAV", note="x")


# --- the bin -----------------------------------------------------------------------------------------


def test_the_bin_hides_and_restores(store: Store) -> None:
    a, b = edit(store, 1), edit(store, 2)
    store.bin([a.id])
    assert store.records() == [b]
    assert store.records(binned=True) == [a]
    assert store.records(binned=None) == [b, a]
    assert store.record(a.id) == a
    store.restore([a.id])
    assert store.records() == [b, a]


def test_emptying_the_bin_keeps_what_others_need(store: Store) -> None:
    a, b = edit(store, 1), edit(store, 1)  # the same picture, mask and result
    alone = edit(store, 2)
    store.bin([a.id, alone.id])
    removed, freed = empty_bin(store, grace=-1)
    assert removed == 2
    assert freed > 0
    assert store.records(binned=None) == [b]
    assert verify(store).ok
    store.image(b.request.image.id)
    assert not store.has(alone.request.image.id)


def test_young_pictures_stay_when_the_bin_is_emptied(store: Store) -> None:
    """Another edit of the same picture may have stored it a moment ago and not begun yet."""
    a = edit(store, 1)
    store.bin([a.id])
    assert empty_bin(store)[0] == 1
    assert store.has(a.request.image.id)
    assert orphans(store) == []
    assert len(orphans(store, grace=-1)) == 3
    assert tidy(store, grace=-1)[0] == 3
    assert not store.has(a.request.image.id)


def test_an_unreadable_record_still_protects_its_pictures(store: Store) -> None:
    a, b = edit(store, 1), edit(store, 1)
    path = store.folder / "edits" / f"{b.id}.json"
    path.write_text(path.read_text().replace('"done"', '"gone"'))
    store.bin([a.id])
    empty_bin(store, grace=-1)
    assert store.has(b.request.image.id)


def test_a_project_and_a_running_edit_protect_their_pictures(store: Store) -> None:
    a = edit(store, 1)
    store.projects.create(image=a.request.image.id)
    pending = request(store, 2)
    store.begin(pending)
    store.bin([a.id])
    empty_bin(store, grace=-1)
    tidy(store, grace=-1)
    assert store.has(a.request.image.id)
    assert store.has(pending.image.id)


def test_only_binned_edits_can_be_removed(store: Store) -> None:
    a = edit(store, 1)
    with pytest.raises(BadInput, match="not in the bin"):
        empty_bin(store, [a.id])
    with pytest.raises(BadInput, match="put it there first"):
        store.forget(a.id)
    b = edit(store, 2)
    store.bin([a.id, b.id])
    assert empty_bin(store, [a.id])[0] == 1
    assert store.records(binned=True) == [b]


# --- verify ------------------------------------------------------------------------------------------


def test_verify_counts_everything(store: Store) -> None:
    edit(store, 1)
    edit(store, 2)
    seen = []
    found = verify(store, lambda done, total: seen.append((done, total)))
    assert found.ok
    assert found.checked == 2 + 6
    assert seen == [(i, 6) for i in range(1, 7)]


def test_verify_names_a_missing_picture(store: Store) -> None:
    record = edit(store, 1)
    path = store.blobs.find(record.request.image.id)
    assert path is not None
    path.unlink()
    (problem,) = verify(store).problems
    assert problem.where == f"edit {record.id}"
    assert "picture is missing" in problem.what


# --- order -------------------------------------------------------------------------------------------


def test_fault_33_the_clock_jumps_back(tmp_path: Path) -> None:
    times = itertools.chain([1e3, 2e3, 500, 500, 1999], itertools.repeat(2e3))
    store = Store(tmp_path / "history", clock=lambda: next(times))
    made = [edit(store, i).id for i in range(5)]
    assert made == sorted(set(made))
    assert [r.id for r in store.records()] == made[::-1]


def test_fault_33_also_after_a_restart(tmp_path: Path) -> None:
    first = edit(Store(tmp_path / "history", clock=lambda: 4e9))
    later = edit(Store(tmp_path / "history", clock=lambda: 1e9), 1)
    assert later.id > first.id
    store = Store(tmp_path / "history", clock=lambda: 1e9)
    pending = store.begin(request(store))
    assert Store(tmp_path / "history", clock=lambda: 1e9).begin(request(store)) > pending > later.id


# --- projects ----------------------------------------------------------------------------------------


def test_projects(store: Store) -> None:
    a = store.projects.create(owner="ann", title="A", image="wb1:x", image_name="a.png")
    b = store.projects.create(owner="ann")
    assert is_ulid(a.id)
    drawing = {"pairs": [[1.5, 2, 3, 4]], "strokes": [{"pts": [[0, 0]], "w": 3, "erase": False}]}
    changed = dataclasses.replace(a, drawing=drawing, prompt="ü", settings={"steps": 3})
    saved = store.projects.save(changed)
    assert saved.updated > a.updated
    assert store.projects.load(a.id) == saved
    assert Store(store.folder).projects.load(a.id) == saved
    assert [p.id for p in store.projects.recent()] == [a.id, b.id]
    store.projects.delete(b.id)
    assert [p.id for p in store.projects.recent()] == [a.id]
    with pytest.raises(BadInput, match="no project"):
        store.projects.load(b.id)


def test_fault_46_nobody_reads_anothers_project_by_guessing(store: Store) -> None:
    ann = store.projects.create(owner="ann")
    missing = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    texts = []
    for name in (ann.id, missing):
        with pytest.raises(BadInput) as caught:
            store.projects.load(name, owner="bob")
        texts.append(str(caught.value).replace(name, "ID"))
        with pytest.raises(BadInput):
            store.projects.delete(name, owner="bob")
    assert texts[0] == texts[1]  # the answer does not tell whether it exists
    assert store.projects.load(ann.id, owner="ann") == ann
    assert store.projects.recent(owner="bob") == []
    record = edit(store, owner="ann")
    with pytest.raises(BadInput, match="no edit"):
        store.record(record.id, owner="bob")
    assert store.records(owner="bob") == []
    assert store.search("", owner="bob") == []


def test_a_project_of_the_wrong_shape_is_unreadable_not_fatal(store: Store) -> None:
    with pytest.raises(BadInput, match="cannot be kept"):
        store.projects.save(Project(id="01ARZ3NDEKTSV4RRFFQ69G5FAV", drawing={"x": {1, 2}}))
    assert store.projects.recent() == []


# --- the folder ---------------------------------------------------------------------------------------


def test_only_the_owner_may_look(store: Store) -> None:
    edit(store)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    files = [f for f in store.folder.rglob("*") if f.is_file()]
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in files)


def test_records_are_for_people_too(store: Store) -> None:
    record = edit(store, prompt="ein Krebs – 蟹")
    data = json.loads((store.folder / "edits" / f"{record.id}.json").read_text(encoding="utf-8"))
    assert data["request"]["prompt"] == "ein Krebs – 蟹"
    assert data["format"] == 1
    assert (store.folder / "FORMAT").read_text() == "1\n"


def test_nothing_temporary_stays(store: Store) -> None:
    edit(store)
    store.bin([edit(store, 1).id])
    assert list((store.folder / "temp").iterdir()) == []
    assert [p.suffix for p in (store.folder / "pending").iterdir()] == [".alive"]
    store.close()
    assert list((store.folder / "pending").iterdir()) == []


def test_many_threads_write_at_once(store: Store) -> None:
    made: list[str] = []

    def work(seed: int) -> None:
        for _ in range(5):
            made.append(edit(store, seed % 3).id)
            store.records()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(made)) == 30
    assert sorted(r.id for r in store.records()) == sorted(made)
    assert verify(store).ok
    assert store.pending() == []


def test_unchanged_records_are_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        edit(store, i)
    time.sleep(0.15)  # files younger than a tick are read twice
    store.records()
    reads = []
    real = Path.read_bytes

    def counted(path: Path) -> bytes:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    store.records()
    assert reads == []
    edit(store, 9)
    reads.clear()
    store.records()
    assert len(reads) == 1


def test_two_writes_within_one_tick_are_both_seen(store: Store) -> None:
    """Same time, same size, same inode: only its age tells that a file may have changed again."""
    record = edit(store)
    store.annotate(record.id, note="a")
    path = store.folder / "notes" / f"{record.id}.json"
    info = path.stat()
    assert store.notes(record.id).note == "a"
    data = json.loads(path.read_text())
    changed = seal({**data, "note": "b"})
    assert len(changed) == info.st_size
    path.write_bytes(changed)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert store.notes(record.id).note == "b"


def test_two_tabs_change_two_fields_at_once(store: Store) -> None:
    record = edit(store)
    work = [
        lambda: [store.annotate(record.id, note=f"n{i}") for i in range(30)],
        lambda: [store.annotate(record.id, title=f"t{i}") for i in range(30)],
        lambda: [store.annotate(record.id, favourite=True) for _ in range(30)],
    ]
    threads = [threading.Thread(target=w) for w in work]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    notes = store.notes(record.id)
    assert (notes.note, notes.title, notes.favourite) == ("n29", "t29", True)


def test_opening_reads_no_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(store)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
    (store.folder / "FORMAT").unlink()
    Store(store.folder)


def test_another_process_is_seen_at_once(store: Store) -> None:
    record = edit(store)
    other = Store(store.folder)
    for i in range(50):
        store.annotate(record.id, note=f"{i:03d}")
        assert other.notes(record.id).note == f"{i:03d}"
