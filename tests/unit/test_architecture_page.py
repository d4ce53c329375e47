"""docs/architecture.md names what is there, and stays short; docs/modules.md is what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_path_on_the_page_exists() -> None:
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", PAGE))
    assert len(named) > 15
    roots = (REPO, REPO / "workbench", REPO / "workbench" / "storage")
    missing = {n for n in named if not any((root / n).exists() for root in roots)}
    assert not missing


def test_the_page_is_short_and_so_is_the_reading_path() -> None:
    house = runpy.run_path(str(REPO / "tools" / "house.py"))
    assert len(PAGE.splitlines()) < 200
    paths = [REPO / "workbench" / p for p in house["READING_PATH"]]
    assert sum(house["lines"](p) for p in paths) <= house["READING"]


def test_the_list_of_modules_is_current() -> None:
    tool = runpy.run_path(str(REPO / "tools" / "module_list.py"))
    written = (REPO / "docs" / "modules.md").read_text(encoding="utf-8")
    assert written == tool["HEAD"] + tool["listing"](), "run python tools/module_list.py"
