"""The history when all is well: pictures and edits, committed once and found again."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from refusals import refusal
from store_samples import edit, picture, png, request

from workbench.core.errors import BadInput, StoreError
from workbench.core.keys import digest
from workbench.core.record import EditRecord, EditResult, JobState
from workbench.storage.history import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")


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
    assert len(list(store.files())) == 4


def test_a_view_with_strides_is_the_same_picture(store: Store) -> None:
    wide = np.repeat(picture(1), 2, axis=1)
    assert store.put_image(wide[:, ::2]).id == store.put_image(picture(1)).id


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), float)]
)
def test_only_rgb_is_a_picture(store: Store, bad: Any) -> None:
    with refusal("not-a-picture"):
        store.put_image(bad)
    with refusal("not-a-mask"):
        store.put_mask(bad)


@pytest.mark.parametrize("suffix", ["pkl", "pt", "ckpt", "bin", "html", "", "png/../../x"])
def test_no_other_files_are_kept(store: Store, suffix: str) -> None:
    with refusal("unknown-suffix"):
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
    ((_kind, _id, path),) = store.files()
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
    with refusal("no-picture", kind=StoreError):
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
    with refusal("already-stored", kind=StoreError):
        store.finish(dataclasses.replace(record, error="changed"))
    assert store.record(record.id) == record


def test_only_what_has_ended_is_kept(store: Store) -> None:
    req = request(store)
    with refusal("not-ended"):
        store.finish(EditRecord(id=store.begin(req), request=req, status=JobState.RUNNING))


def test_nan_is_refused_with_words(store: Store) -> None:
    req = request(store)
    result = EditResult(image="wb1:" + "0" * 32, losses=(float("nan"),))
    record = EditRecord(id=store.begin(req), request=req, status=JobState.DONE, result=result)
    with refusal("not-storable"):
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
    assert store.children(leaf.id) == []


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
    with refusal("no-edit"):
        store.annotate("01ARZ3NDEKTSV4RRFFQ69G5FAV", note="x")
