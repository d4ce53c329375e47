"""The result file: appended, picked up after a kill, never mixed with another set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal

from benchmarks.rows import ResultLog, read_records, rows_of

SETUP: dict[str, Any] = {
    "benchmark": "scenes", "set": 5, "set_version": 1, "scenes_version": 1, "model": "wb1:m",
    "lora": {"steps": 80}, "inversion": {"steps": 50}, "seed": 0,
}  # fmt: skip


def row(drag: str, method: str, **more: Any) -> dict[str, Any]:
    return {"kind": "row", "drag": drag, "method": method, "edit_key": f"key {method}", **more}


def filled(path: Path) -> None:
    with ResultLog(path) as book:
        book.begin(SETUP)
        book.add(row("a", "warp", mae=1.5))
        book.add(row("b", "warp", mae=math.nan))


def test_a_file_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    filled(path)
    with ResultLog(path) as book:
        assert book.has("a", "warp", "key warp")
        assert not book.has("a", "auto", "key auto")
        assert not book.has("a", "warp", "another key")  # the method's settings have changed
        book.begin(SETUP)
        book.add(row("c", "warp"))
    kinds = [r["kind"] for r in read_records([path])]
    assert kinds == ["setup", "row", "row", "setup", "row"]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "row", "drag": "c", "meth')
    with ResultLog(path) as book:
        assert len(book.records) == 3
        book.begin(SETUP)
        book.add(row("c", "warp"))
    assert path.read_bytes().startswith(whole)
    for line in path.read_text().splitlines():
        json.loads(line)


def test_a_file_that_was_killed_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"kind": "set')
    filled(path)
    assert len(read_records([path])) == 3


def test_what_json_cannot_hold_is_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    filled(path)
    assert json.loads(path.read_text().splitlines()[2])["mae"] is None


def test_a_failed_drag_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with ResultLog(path) as book:
        book.begin(SETUP)
        book.add(row("a", "warp", error="The numbers became NaN."))
        assert not book.has("a", "warp", "key warp")
        book.add(row("a", "warp", mae=2.0))
        assert book.has("a", "warp", "key warp")
    assert rows_of(read_records([path]))[("a", "warp")]["mae"] == 2.0


def test_another_set_or_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    filled(path)
    before = path.read_bytes()
    for change in ({"set": 6}, {"model": "wb1:other"}, {"lora": {"steps": 10}}):
        with ResultLog(path) as book, refusal("other-run"):
            book.begin({**SETUP, **change})
    assert path.read_bytes() == before
    with ResultLog(path, resume=False) as book:
        book.begin({**SETUP, "set": 6})
    assert len(read_records([path])) == 1


def test_shards_of_different_sets_are_refused(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    filled(a)
    with ResultLog(b) as book:
        book.begin({**SETUP, "set": 6})
    with refusal("other-run"):
        read_records([a, b])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no json\n", "not-json"),
        ("[1]\n", "not-a-record"),
        ('{"kind": "row"}\n', "no-setup"),
        ("", "empty"),
    ],
)
def test_files_of_others_are_refused(tmp_path: Path, text: str, code: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with refusal(code):
        read_records([path])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with refusal("unreadable"):
        read_records([tmp_path / "nowhere.jsonl"])
