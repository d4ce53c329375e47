"""Formats: samples of every past format are opened for ever; unknown ones are named, not guessed.

The samples in tests/data/formats/ were written by the version of their time and are never made
anew: a change that cannot read them needs a migration, not another sample.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refusal

from workbench.core.config import DragConfig
from workbench.core.errors import BadInput, StoreError
from workbench.core.record import (
    RECORD_FORMAT,
    EditRecord,
    EditResult,
    JobState,
)
from workbench.core.request import EditRequest, Point
from workbench.storage.archive import Limits
from workbench.storage.history import Store
from workbench.storage.history import folder as fmt
from workbench.storage.history.blobs import SUFFIXES
from workbench.storage.history.folder import Notes, Pending, verify
from workbench.storage.history.projects import Project

FORMATS = Path(__file__).resolve().parents[1] / "data" / "formats"


@pytest.fixture
def v1(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the frozen history of format 1 and what is in it."""
    shutil.copytree(FORMATS / "v1" / "history", tmp_path / "v1")
    return tmp_path / "v1", json.loads((FORMATS / "v1" / "expected.json").read_text())


def check_v1(store: Store, ids: dict[str, str]) -> None:
    assert store.recover() == [ids["pending"]]
    done = store.record(ids["done"])
    request, result = done.request, done.result
    assert done.status is JobState.DONE
    assert request.prompt == "a gradient – 梯度"
    assert request.drag == DragConfig.preset("gooddrag")
    assert (request.seed, request.working_size) == (7, 256)
    assert request.pairs[0].target == Point(20.5, 9.25)
    assert result is not None
    assert result.trajectory == ((Point(16, 12),), (Point(18, 10.5),))
    assert result.losses == (0.5, 0.25, 0.125)
    assert done.environment["torch"] == "2.13.0"
    assert store.owner(done.id) == "ann"
    notes = store.notes(done.id)
    assert (notes.title, notes.note, notes.favourite) == ("First", "kept\nfor ever", True)
    rgb, mask = store.image(ids["image"]), store.mask(ids["mask"])
    assert rgb.shape == (24, 32, 3)
    assert tuple(rgb[3, 5]) == (40, 30, 32)
    yy, xx = np.mgrid[0:24, 0:32]
    np.testing.assert_array_equal(mask, np.hypot(xx - 16, yy - 12) < 8)
    failed = store.record(ids["failed"])
    assert failed.request.parent == done.id
    assert failed.request.mask is None
    assert "NaN" in (failed.error or "")
    assert [r.id for r in store.records(binned=True)] == [ids["cancelled"]]
    assert store.record(ids["pending"]).status is JobState.INTERRUPTED
    project = store.projects.load(ids["project"])
    assert project.settings == {"method": "gooddrag"}
    assert project.last_edit == done.id
    assert verify(store).ok
    assert store.unreadable() == []


def test_format_1_is_read(v1: tuple[Path, dict[str, str]]) -> None:
    check_v1(Store(v1[0]), v1[1])


def test_there_is_a_migration_from_every_past_format_and_a_sample_of_each() -> None:
    assert set(fmt.MIGRATIONS) == set(range(1, fmt.FORMAT))
    assert {p.name for p in FORMATS.iterdir() if p.is_dir()} == {
        f"v{n}" for n in range(1, fmt.FORMAT + 1)
    }
    assert fmt.FORMAT == RECORD_FORMAT


def test_migrations_run_step_by_step(
    v1: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two invented formats after today's: each file passes through both, in order, once."""
    steps: list[tuple[str, int]] = []

    def migration(version: int) -> Any:
        def step(kind: str, data: dict[str, Any]) -> dict[str, Any]:
            assert data["format"] == version
            steps.append((kind, version))
            return {**data, f"since{version + 1}": True}

        return step

    now = fmt.FORMAT
    table = {**fmt.MIGRATIONS, now: migration(now), now + 1: migration(now + 1)}
    monkeypatch.setattr(fmt, "FORMAT", now + 2)
    monkeypatch.setattr(fmt, "MIGRATIONS", table)
    monkeypatch.setattr("workbench.core.record.RECORD_FORMAT", now + 2)
    store = Store(v1[0])
    check_v1(store, v1[1])
    assert {kind for kind, _ in steps} == {"edits", "notes", "pending", "projects"}
    assert [v for k, v in steps if k == "projects"] == [now, now + 1]
    changed = json.loads((v1[0] / "edits" / f"{v1[1]['pending']}.json").read_text())
    assert changed["format"] == now + 2  # the writer knows the newest only
    untouched = json.loads((v1[0] / "edits" / f"{v1[1]['done']}.json").read_text())
    assert untouched["format"] == 1  # reading rewrites nothing


def test_reading_changes_no_byte_of_what_is_committed(v1: tuple[Path, dict[str, str]]) -> None:
    before = {p: p.read_bytes() for p in v1[0].rglob("*.*") if p.parent.name != "pending"}
    store = Store(v1[0])
    check_v1(store, v1[1])
    store.close()
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("text", ["2", "17\n", " 999 "])
def test_a_folder_of_a_newer_workbench_is_left_alone(tmp_path: Path, text: str) -> None:
    Store(tmp_path / "h").close()
    (tmp_path / "h" / "FORMAT").write_text(text)
    with refusal("newer-format", kind=StoreError):
        Store(tmp_path / "h")
    assert (tmp_path / "h" / "FORMAT").read_text() == text


@pytest.mark.parametrize("raw", [b"", b"\x00\xff", b"one", b"-1", b"1.5"])
def test_a_damaged_format_file_costs_nothing(v1: tuple[Path, dict[str, str]], raw: bytes) -> None:
    (v1[0] / "FORMAT").write_bytes(raw)
    check_v1(Store(v1[0]), v1[1])
    assert (v1[0] / "FORMAT").read_text() == "1\n"


def test_seal_and_unseal() -> None:
    data = {"id": "x", "n": [1, 2.5, None, True, "ü"], "deep": {"a": {"b": []}}}
    assert fmt.unseal(fmt.seal(data), "edits") == {**data, "format": fmt.FORMAT}
    with refusal("not-storable"):
        fmt.seal({"x": object()})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"{}",
        b'{"format": true}',
        b'{"format": "1"}',
        b'{"format": 0}',
        b'{"format": 1}',
        b'{"format": 1, "check": 5}',
        b'{"format": 1, "x": NaN, "check": ""}',
        b'{"format": 1, "x": 1e999, "check": ""}',
        b'{"format": 1, "x": "\\ud800", "check": ""}',
        b'{"format": 99}',
        b"[" * 100_000,
    ],
)
def test_no_bytes_crash_the_reader(raw: bytes) -> None:
    with pytest.raises(BadInput):
        fmt.unseal(raw, "edits")


# --- docs/formats.md --------------------------------------------------------------------------------------

PAGE = (FORMATS.parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def test_the_document_names_every_field() -> None:
    names: set[str] = set()
    for cls in (EditRequest, EditResult, EditRecord, Notes, Project, Pending):
        names |= {f.name for f in dataclasses.fields(cls)}
    missing = {n for n in names if f"`{n}`" not in PAGE}
    assert missing <= {"name", "width", "height"}


def test_the_document_names_every_folder_and_suffix(v1: tuple[Path, dict[str, str]]) -> None:
    for name in (*SUFFIXES, "FORMAT", *(p.name for p in Store(v1[0]).folder.iterdir())):
        assert name in PAGE, name
    limits = Limits()
    for text in (f"{limits.files:,} files", f"{limits.bytes // 10**9} GB", f"{limits.ratio} times"):
        assert text in PAGE, text
    assert f"## The history, format {fmt.FORMAT}" in PAGE


def test_the_documents_description_of_the_check_is_enough_to_verify_a_file() -> None:
    """Done by hand, as another program would: hash of all bytes before the comma of the last line."""
    (path, *_others) = sorted((FORMATS / "v1" / "history" / "edits").glob("*.json"))
    raw = path.read_bytes()
    head, _comma, last = raw.rpartition(b",\n")
    digest = hashlib.blake2b(head, digest_size=16).hexdigest()
    assert last == f' "check": "wb1:{digest}"\n}}'.encode()
    assert json.loads(raw)["id"] == path.stem
