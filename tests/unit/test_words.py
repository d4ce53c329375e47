"""The interface's words: every text is used, every use has its text and fills all of its places."""

from __future__ import annotations

import ast
from pathlib import Path
from string import Formatter

from workbench.ui.shell.forms import words

REPO = Path(__file__).resolve().parents[2]


def uses() -> dict[str, set[str]]:
    """Key -> names of the values that are put in, over all pages."""
    found: dict[str, set[str]] = {}
    files = [*(REPO / "workbench" / "ui").rglob("*.py"), *(REPO / "pages").glob("*.py")]
    for file in [*files, REPO / "streamlit_app.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id == "say":
                (key,) = node.args
                names = {k.arg for k in node.keywords if k.arg}
                for one in _keys(key):
                    found.setdefault(one, set()).update(names)
    return found


def _keys(node: ast.expr) -> list[str]:
    """The keys that an argument may be: a text, or a text whose end is chosen at run time."""
    if isinstance(node, ast.Constant):
        return [node.value]
    assert isinstance(node, ast.JoinedStr)
    begin = node.values[0]
    assert isinstance(begin, ast.Constant)
    found = [key for key in words() if key.startswith(begin.value)]
    assert found, begin.value
    return found


def test_every_text_is_used_and_there() -> None:
    assert set(uses()) == set(words())


def test_every_place_is_filled() -> None:
    for key, names in uses().items():
        places = {name for _, name, _, _ in Formatter().parse(words()[key]) if name}
        assert places <= names, key
