"""docs/faults.md 34 and 35: no damage spreads, and nothing is shown as whole that is not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from refusals import refusal
from store_tools import edit, picture

from workbench.core.errors import StoreError
from workbench.storage.history import Store
from workbench.storage.history.folder import seal, verify

# --- 34: records that cannot be read -------------------------------------------------------------------


def edited_by_hand(data: dict[str, Any]) -> bytes:
    data["request"]["seed"] = 99
    return json.dumps(data).encode()


def of_the_future(data: dict[str, Any]) -> bytes:
    return json.dumps({**data, "format": 7}).encode()


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "edited by hand": (edited_by_hand, "changed or damaged"),
    "future format": (of_the_future, "newer workbench"),
    "cut": (lambda data: json.dumps(data).encode()[:-40], "not JSON"),
    "empty": (lambda data: b"", "not JSON"),
    "noise": (lambda data: bytes(range(256)), "not JSON"),
    "another edit's": (lambda data: seal({**data, "id": "x"}), "under another name"),
    "sealed nonsense": (lambda data: seal({"id": data["id"], "request": 1}), "edit re"),
    "out of range": (
        lambda data: seal({**data, "request": {**data["request"], "seed": -1}}),
        "seed",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_fault_34_an_unreadable_record_is_listed_and_the_others_shown(
    store: Store, damage: str
) -> None:
    good, bad = edit(store, 1), edit(store, 2)
    path = store.folder / "edits" / f"{bad.id}.json"
    change, words = DAMAGE[damage]
    path.write_bytes(change(json.loads(path.read_text())))
    for view in (store, Store(store.folder)):
        assert view.records() == [good]
        (unreadable,) = view.unreadable()
        assert unreadable.name == f"edits/{bad.id}.json"
        assert words in unreadable.reason
        with pytest.raises(StoreError, match=bad.id):
            view.record(bad.id)
        (problem,) = verify(view).problems
        assert (problem.where, problem.what) == (unreadable.name, unreadable.reason)
    assert path.exists()
    assert edit(store, 3) in store.records()  # and the next edit is as good as ever


def test_fault_34_every_flipped_byte_of_a_record_is_noticed(store: Store) -> None:
    record = edit(store)
    path = store.folder / "edits" / f"{record.id}.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x04]) + whole[at + 1 :])
        fresh = store.records()
        assert fresh in ([], [record])  # white space may differ; a value may not
        if fresh == []:
            assert len(store.unreadable()) == 1
    path.write_bytes(whole)
    assert store.records() == [record]


def test_fault_34_a_giant_is_not_read(store: Store) -> None:
    record = edit(store)
    with (store.folder / "edits" / f"{record.id}.json").open("r+b") as file:
        file.truncate(50 * 2**30)
    assert "bytes" in store.unreadable()[0].reason


def test_fault_34_damaged_notes_cost_the_notes_only(store: Store) -> None:
    record = edit(store)
    store.annotate(record.id, note="precious")
    path = store.folder / "notes" / f"{record.id}.json"
    raw = path.read_bytes()[:-9]
    path.write_bytes(raw)
    assert store.records() == [record]
    assert store.notes(record.id).note == ""
    assert [u.name for u in store.unreadable()] == [f"notes/{record.id}.json"]
    store.annotate(record.id, note="new")
    assert store.notes(record.id).note == "new"
    assert path.with_suffix(".damaged").read_bytes() == raw  # kept for whoever can read it
    assert store.unreadable() == []


# --- 35: pictures that changed ---------------------------------------------------------------------------


def test_fault_35_changed_files_are_reported_and_never_shown(store: Store) -> None:
    record = edit(store)
    assert record.request.mask is not None
    assert record.result is not None
    reads: dict[str, Callable[[str], Any]] = {
        record.request.image.id: store.image,
        record.request.mask.id: store.mask,
        record.result.image: store.blob,
    }
    for name, read in reads.items():
        path = store.find(name)
        assert path is not None
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 25)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
            value = None
            with contextlib.suppress(StoreError):
                value = read(name)
            if value is None:
                found = [p.where for p in verify(store).problems]
                assert path.relative_to(store.folder).as_posix() in found
                assert f"edit {record.id}" in found
            else:  # bytes of a PNG that do not change its pixels
                assert read != store.blob
                np.testing.assert_array_equal(
                    value, picture(0) if read == store.image else picture(0)[..., 0] > 99
                )
        path.write_bytes(whole)
    assert verify(store).ok


def test_fault_35_another_picture_under_the_name_is_noticed(store: Store) -> None:
    a, b = store.put_image(picture(1)), store.put_image(picture(2))
    path_a, path_b = store.find(a.id), store.find(b.id)
    assert path_a is not None
    assert path_b is not None
    path_a.write_bytes(path_b.read_bytes())
    with refusal("changed-on-disk", kind=StoreError):
        store.image(a.id)
    assert store.put_image(picture(1)) == a  # storing it again heals it
    np.testing.assert_array_equal(store.image(a.id), picture(1))


def test_fault_35_a_bomb_in_place_of_a_picture_is_not_unpacked(store: Store) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    asset = store.put_image(picture(1))
    path = store.find(asset.id)
    assert path is not None
    path.write_bytes(bomb + chunk(b"IEND", b""))
    with pytest.raises(StoreError):
        store.image(asset.id)
