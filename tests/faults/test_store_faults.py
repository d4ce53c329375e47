"""docs/faults.md 29 and 30: no write is half done; what a dead process left is recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import started
from refusals import refusal
from store_tools import edit

from workbench.core.errors import StoreError, WorkbenchError
from workbench.core.record import EditRecord, JobState
from workbench.core.request import EditRequest
from workbench.storage.history import Store
from workbench.storage.history.folder import seal, unseal, verify

REPO = Path(__file__).resolve().parents[2]


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
    with refusal("unusable-folder", kind=StoreError):
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
    with refusal("already-stored", kind=StoreError):
        store.finish(dataclasses.replace(record, error="again"))
    assert store.record(record.id) == record


# --- 30: what a dead process left --------------------------------------------------------------------


def test_fault_30_pending_edits_of_a_dead_process_become_interrupted(store: Store) -> None:
    code = f"""
import os, signal
from workbench.storage.history import Store
from workbench.core.request import EditRequest, ImageAsset
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
import tempfile
from workbench.storage.history import Store
from workbench.core.request import EditRequest, ImageAsset
store = Store({str(store.folder)!r})
image = ImageAsset(id="wb1:" + "0" * 32, width=9, height=9)
print(store.begin(EditRequest(image=image, pairs=())), flush=True)
sys.stdin.readline()
"""
    command = [sys.executable, "-c", code]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO) as process:
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


def test_a_read_only_history_can_be_listed_shown_and_exported() -> None:
    """In a process without root's rights; what would write says why it cannot."""
    code = """
import os, sys
from workbench.core.errors import StoreError
from workbench.storage.archive.write import export_zip
from workbench.storage.history import Store
from workbench.storage.history.folder import verify
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = Store(sys.argv[1])
assert store.recover() == []
(record,) = store.records()
assert store.image(record.request.image.id).shape == (24, 32, 3)
assert store.thumbnail(record.request.image.id)
assert len(export_zip(store)) > 1000
assert verify(store).ok
try:
    store.begin(record.request)
except StoreError as exc:
    print(exc.code)
"""
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: another user cannot walk to it
        folder = Path(name) / "history"
        store = Store(folder)
        rgb = np.zeros((24, 32, 3), np.uint8)
        request = EditRequest(image=store.put_image(rgb, "p.png"), pairs=())
        store.finish(EditRecord(id=store.begin(request), request=request, status=JobState.FAILED))
        store.close()
        tree = [Path(name), folder, *folder.rglob("*")]
        for path in tree:
            path.chmod(0o555 if path.is_dir() else 0o444)
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=REPO
        )
        for path in tree:
            path.chmod(0o700 if path.is_dir() else 0o600)
    assert done.stdout.strip() == "read-only", done.stderr


# Edits until the disk is full, by whoever runs this: a folder on a disk with room for few of them.
FILL = """
import sys
from pathlib import Path

import numpy as np
from store_tools import edit

from workbench.core.errors import StoreError
from workbench.core.record import EditResult, JobState, EditRecord
from workbench.core.request import EditRequest, Point, PointPair
from workbench.storage.history import Store

store = Store(Path(sys.argv[1]))
print("open", flush=True)
refused = 0
for seed in range(1000):
    try:
        rgb = np.random.default_rng(seed).integers(0, 256, (64, 64 + seed % 50, 3), dtype=np.uint8)
        image = store.put_image(rgb)
        request = EditRequest(image=image, pairs=(PointPair(Point(1, 2), Point(5, 6)),))
        name = store.begin(request)
        result = EditResult(image=store.put_image(rgb[::-1].copy()).id)
        store.finish(EditRecord(id=name, request=request, status=JobState.DONE, result=result))
    except StoreError as exc:
        print("refused", exc, flush=True)
        refused += 1
        if refused == 20:
            break
    else:
        print("done", name, flush=True)
"""
# A disk of 2 MB: a tmpfs in a namespace of its own, which needs no rights beyond one's own
SMALL_DISK = 'mount -t tmpfs -o size=2m none "$1" && "$2" -c "$3" "$1/history"; cp -r "$1" "$4"'


def filled(disk: Path, kept: Path) -> str | None:
    """What the edits on a disk of 2 MB said, and its files under `kept`; None where no disk can be made."""
    disk.mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(Path(__file__).parent)])}
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh",
         str(disk), sys.executable, FILL, str(kept)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout if "open" in done.stdout else None


def test_fault_29_a_disk_that_fills_by_bytes(tmp_path: Path) -> None:
    said = filled(tmp_path / "disk", tmp_path / "kept")
    if said is None:
        pytest.skip("no file system can be mounted in a namespace here")
    lines = [line.split(maxsplit=1) for line in said.splitlines()]
    done = [rest[0] for word, *rest in lines if word == "done"]
    refused = [rest[0] for word, *rest in lines if word == "refused"]
    assert len(done) > 10
    assert len(refused) == 20
    store = Store(tmp_path / "kept" / "history")  # brought to a disk with room
    store.recover()
    records = {r.id: r for r in store.records()}
    for name in done:
        assert records[name].status is JobState.DONE
        result = records[name].result
        assert result is not None
        rgb = store.image(records[name].request.image.id)
        assert (store.image(result.image) == rgb[::-1]).all()
    rest = [r for name, r in records.items() if name not in done]
    assert all(r.status is JobState.INTERRUPTED for r in rest)
    assert verify(store).ok
    assert edit(store).status is JobState.DONE
    store.close()
