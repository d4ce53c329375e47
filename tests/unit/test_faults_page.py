"""docs/faults.md: every row is there, and every test file that it names has a test of that row."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "faults.md").read_text(encoding="utf-8")
TOOL = runpy.run_path(str(REPO / "tools" / "fault_table.py"))
ROWS = 46


def test_every_row_is_there_once() -> None:
    rows = [int(n) for n in re.findall(r"^\| ([0-9]+) \|", PAGE, re.MULTILINE)]
    assert rows == list(range(1, ROWS + 1))


def test_named_files_have_tests_of_their_row() -> None:
    found = TOOL["tests_by_row"]()
    for line in PAGE.splitlines():
        match = re.match(r"\| ([0-9]+) \|", line)
        if match:
            for name in re.findall(r"`([a-z_/]+\.py)`", line.rsplit("|", 2)[1]):
                assert name in found.get(int(match[1]), {}), (
                    f"row {match[1]} names {name}; run python tools/fault_table.py"
                )


def test_the_tool_changes_the_last_column_only() -> None:
    before = [line.rsplit("|", 2)[0] for line in PAGE.splitlines()]
    after = [line.rsplit("|", 2)[0] for line in TOOL["table"](PAGE).splitlines()]
    assert after == before
    assert TOOL["table"](TOOL["table"](PAGE)) == TOOL["table"](PAGE)
