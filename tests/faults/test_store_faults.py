"""FAULTS 29, 30, 34, 35, 46: no write is half done, and no damage is shown as whole."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import StoreError, WorkbenchError
from workbench.records import EditRecord, EditResult, JobState
from workbench.store import Store, verify
from workbench.store.format import seal, unseal
from workbench.types import EditRequest, Point, PointPair

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def edit(store: Store, seed: int = 0) -> EditRecord:
    image = store.put_image(picture(seed))
    mask = store.put_mask(picture(seed)[..., 0] > 99)
    req = EditRequest(image=image, mask=mask, pairs=(PointPair(Point(1, 2), Point(5, 6)),))
    name = store.begin(req)
    result = EditResult(image=store.put_blob(f"result {seed}".encode(), "txt"))
    record = EditRecord(id=name, request=req, status=JobState.DONE, result=result)
    store.finish(record)
    return record


# --- 29: the disk is full ---------------------------------------------------------------------------

CALLS = ("write", "fsync", "replace", "link", "open")


def fail_at(patch: pytest.MonkeyPatch, nth: int, code: int = errno.ENOSPC) -> list[str]:
    """Let the n-th call that changes the disk fail; the calls so far are the answer."""
    calls: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            calls.append(name)
            if len(calls) == nth:
                raise OSError(code, os.strerror(code))
            if name == "write":
                return real(args[0], bytes(args[1])[:100])  # short writes are allowed, too
            return real(*args, **kwargs)

        return wrapped

    for name in CALLS:
        patch.setattr(os, name, wrap(name, getattr(os, name)))
    return calls


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_fault_29_every_write_of_an_edit_can_fail(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Fail at the n-th disk call, for every n: reported as failed, nothing half, next edit good."""
    good = edit(store, 0)
    reached: set[str] = set()
    for nth in range(1, 200):
        before = [r.id for r in store.records()]
        failed: WorkbenchError | None = None
        with monkeypatch.context() as patch:
            calls = fail_at(patch, nth, code)
            try:
                record = edit(store, nth)
            except WorkbenchError as exc:
                failed = exc
        if len(calls) >= nth:
            reached.add(calls[nth - 1])
        if failed is not None:
            assert os.strerror(code) in str(failed)
            assert "try again" in str(failed)
            assert [r.id for r in store.records()] == before  # not acknowledged, not there
        else:
            assert [r.id for r in store.records()] == [record.id, *before]
        assert store.record(good.id) == good
        assert verify(store).ok
        assert store.unreadable() == []
        assert list((store.folder / "temp").iterdir()) == []
        if len(calls) < nth:
            break
    assert failed is None
    assert nth > 20
    assert reached == set(CALLS)
    assert len(Store(store.folder).records()) == len(store.records())


def test_fault_29_notes_and_projects_survive_a_full_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = edit(store)
    store.annotate(record.id, note="before")
    project = store.projects.create(title="before")
    for nth in range(1, 40):
        with monkeypatch.context() as patch:
            calls = fail_at(patch, nth)
            failed = 0
            for change in (
                lambda: store.annotate(record.id, note="after"),
                lambda: store.projects.save(dataclasses.replace(project, title="after")),
            ):
                try:
                    change()
                except StoreError:
                    failed += 1
        assert failed <= 1
        assert store.notes(record.id).note in ("before", "after")
        assert store.projects.load(project.id).title in ("before", "after")
        assert store.unreadable() == []
        if len(calls) < nth:
            break
    assert (failed, store.notes(record.id).note) == (0, "after")


def test_fault_29_a_folder_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am a file")
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "I am a file"


def test_fault_29_a_full_disk_at_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for nth in range(1, 20):
        with monkeypatch.context() as patch:
            calls = fail_at(patch, nth)
            with contextlib.suppress(StoreError):
                Store(tmp_path / "history").close()
        if len(calls) < nth:
            break
    store = Store(tmp_path / "history")
    assert edit(store) == store.records()[0]


def test_fault_29_thumbnails_need_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = edit(store)
    with monkeypatch.context() as patch:
        fail_at(patch, 1)
        small = store.thumbnail(record.request.image.id)
    assert small[:2] == b"\xff\xd8"


def test_fault_29_file_systems_without_links(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    record = edit(store)
    assert store.records() == [record]
    with pytest.raises(StoreError, match="already"):
        store.finish(dataclasses.replace(record, error="again"))
    assert store.record(record.id) == record


# --- 30: what a dead process left --------------------------------------------------------------------


def test_fault_30_pending_edits_of_a_dead_process_become_interrupted(store: Store) -> None:
    code = f"""
import os, signal
from workbench.store import Store
from workbench.types import EditRequest, ImageAsset
store = Store({str(store.folder)!r})
request = EditRequest(image=ImageAsset(id="wb1:" + "0" * 32, width=9, height=9), pairs=(), seed=5)
print(store.begin(request, owner="ann", environment={{"torch": "9"}}), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    name = done.stdout.strip()
    mine = store.begin(edit(store).request)
    assert {p.id for p in store.pending()} == {name, mine}
    assert store.recover() == [name]  # ours is alive and stays
    record = store.record(name)
    assert record.status is JobState.INTERRUPTED
    assert "run it again" in (record.error or "")
    assert (record.request.seed, record.environment["torch"]) == (5, "9")
    assert store.owner(name) == "ann"
    assert [p.id for p in store.pending()] == [mine]
    assert store.recover() == []


def test_fault_30_a_living_process_is_not_called_dead(store: Store) -> None:
    code = f"""
import sys
from workbench.store import Store
from workbench.types import EditRequest, ImageAsset
store = Store({str(store.folder)!r})
image = ImageAsset(id="wb1:" + "0" * 32, width=9, height=9)
print(store.begin(EditRequest(image=image, pairs=())), flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPO,
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert store.recover() == []
        assert [p.id for p in store.pending()] == [name]
        process.communicate("\n")
    assert store.recover() == [name]


def test_fault_30_a_process_id_used_again_does_not_keep_an_edit_alive(store: Store) -> None:
    """The pending file names a living process id (ours), but its lock is gone."""
    name = store.begin(edit(store).request)
    path = store.folder / "pending" / f"{name}.json"
    data = unseal(path.read_bytes(), "pending")
    path.write_bytes(seal({**data, "process": f"{os.getpid()}-0123456789abcdef.alive"}))
    assert store.recover() == [name]


@pytest.mark.parametrize("process", ["../../edits", "x", "", "1-0123456789abcdef.alive/../../x"])
def test_fault_30_a_planted_process_name_leads_nowhere(store: Store, process: str) -> None:
    name = store.begin(edit(store).request)
    path = store.folder / "pending" / f"{name}.json"
    data = unseal(path.read_bytes(), "pending")
    path.write_bytes(seal({**data, "process": process}))
    assert store.recover() == [name]


def test_fault_30_a_crash_between_commit_and_clearing_is_no_second_record(store: Store) -> None:
    record = edit(store)
    name = store.begin(record.request)
    raw = (store.folder / "pending" / f"{name}.json").read_bytes()
    finished = dataclasses.replace(record, id=name)
    store.finish(finished)
    (store.folder / "pending" / f"{name}.json").write_bytes(raw)
    store.close()
    again = Store(store.folder)
    assert again.recover() == []
    assert again.record(name) == finished
    assert again.pending() == []


def test_fault_30_starting_up_deletes_nothing(store: Store) -> None:
    edit(store)
    (store.folder / "pending" / "01ARZ3NDEKTSV4RRFFQ69G5FAV.json").write_text("half a pen")
    (store.folder / "temp" / "1-aa.part").write_text("half")
    (store.folder / "stranger.txt").write_text("not ours")
    store.close()
    before = {p for p in store.folder.rglob("*") if p.is_file()}
    again = Store(store.folder)
    again.recover()
    assert before <= {p for p in store.folder.rglob("*") if p.is_file()}
    (unreadable,) = again.unreadable()
    assert unreadable.name == "pending/01ARZ3NDEKTSV4RRFFQ69G5FAV.json"


# --- 34: records that cannot be read -------------------------------------------------------------------


def edited_by_hand(data: dict[str, Any]) -> bytes:
    data["request"]["seed"] = 99
    return json.dumps(data).encode()


def of_the_future(data: dict[str, Any]) -> bytes:
    return json.dumps({**data, "format": 7}).encode()


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "edited by hand": (edited_by_hand, "changed or damaged"),
    "future format": (of_the_future, "newer workbench"),
    "cut": (lambda data: json.dumps(data).encode()[:-40], "no JSON"),
    "empty": (lambda data: b"", "no JSON"),
    "noise": (lambda data: bytes(range(256)), "no JSON"),
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
        path = store.blobs.find(name)
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
    path_a, path_b = store.blobs.find(a.id), store.blobs.find(b.id)
    assert path_a is not None
    assert path_b is not None
    path_a.write_bytes(path_b.read_bytes())
    with pytest.raises(StoreError, match="was changed on disk"):
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
    path = store.blobs.find(asset.id)
    assert path is not None
    path.write_bytes(bomb + chunk(b"IEND", b""))
    with pytest.raises(StoreError):
        store.image(asset.id)
