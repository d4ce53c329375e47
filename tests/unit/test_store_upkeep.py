"""The history looked after: bin, verify, order of ids, projects, the folder itself."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from refusals import refusal
from store_samples import edit, request

from workbench.core.errors import BadInput
from workbench.storage.files import is_ulid
from workbench.storage.history import Store
from workbench.storage.history.folder import bytes_of, disk_use, empty_bin, seal, verify
from workbench.storage.history.projects import Project


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")


def test_what_the_history_takes_counts_every_file_and_divides_by_every_edit(store: Store) -> None:
    assert "per edit" not in disk_use(store)
    before = bytes_of(store.folder)
    store.bin([edit(store, 1).id])
    edit(store, 2)
    (store.folder / "images" / "00").mkdir(parents=True, exist_ok=True)
    (store.folder / "images" / "00" / "large").write_bytes(b"x" * 3_000_000)
    total = bytes_of(store.folder)
    assert 3_000_000 < total - before < 3_100_000
    words = disk_use(store)
    assert "edits: 2," in words
    assert f"{total / 1e6:.1f} MB" in words
    assert f"{total / 2e6:.2f} MB per edit" in words


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
    assert store.has(a.request.image.id)
    assert store.has(pending.image.id)


def test_only_binned_edits_can_be_removed(store: Store) -> None:
    a = edit(store, 1)
    with refusal("not-in-bin"):
        empty_bin(store, [a.id])
    with refusal("not-in-bin"):
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
    path = store.find(record.request.image.id)
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
    with refusal("no-project"):
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
    with refusal("no-edit"):
        store.record(record.id, owner="bob")
    assert store.records(owner="bob") == []
    assert store.search("", owner="bob") == []


def test_a_project_of_the_wrong_shape_is_unreadable_not_fatal(store: Store) -> None:
    with refusal("not-storable"):
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
