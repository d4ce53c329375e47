"""docs/architecture.md names what is there; modules and codes are listed as the code has them."""

from __future__ import annotations

import ast
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


def test_the_list_of_codes_is_current() -> None:
    tool = runpy.run_path(str(REPO / "tools" / "code_list.py"))
    page = (REPO / "docs" / "formats.md").read_text(encoding="utf-8")
    codes = set(tool["found"]())
    assert {"out-of-range", "no-arrow", "lfs-pointer", "text-part", "not-a-zip"} <= codes
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in codes)
    assert page == tool["rewritten"](page), "run python tools/code_list.py"
    assert f"| `{min(codes)}` |" in page


def test_every_place_of_a_code_is_read() -> None:
    tool = runpy.run_path(str(REPO / "tools" / "code_list.py"))
    text = """
class Code(StrEnum):
    ONE = "one"
raise BadInput("...", code="two", field="x")
raise refuse("...", "three")
notices = [Notice("...", "four"), Notice("...", code="five"), diagnose.Look("six", "...")]
raise ModelError("...", code=exc.code)
"""
    read = {code: kind for code, kind in tool["codes"](ast.parse(text))}
    assert read == {
        "one": "finding", "two": "BadInput", "three": "Refused", "four": "notice", "five": "notice",
        "six": "model file",
    }  # fmt: skip
