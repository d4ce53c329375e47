"""Keyed widgets keep their value in session state: `value=` counts only when they are first drawn.

A `value=` (or `index=`, `default=`) that follows other state under a fixed `key=` is then ignored
without a word: the name of an imported LoRA stayed empty that way. This test reads the pages' code.
Either the key follows the same state (an f-string of it), or the value is written to session state
in a callback.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(REPO / "workbench" / "ui").rglob("*.py"),
        *(REPO / "pages").glob("*.py"),
        REPO / "streamlit_app.py",
    ]
)
WIDGETS = {"text_input", "text_area", "number_input", "slider", "select_slider", "checkbox", "toggle",
           "selectbox", "multiselect", "radio", "color_picker", "date_input", "time_input",
           "segmented_control", "pills"}  # fmt: skip
STATE = {"session_state", "query_params"}


def widget_results(tree: ast.AST) -> set[str]:
    """Names that are assigned from a widget (also through `left, right = ...` or a method of it)."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            called = node.value.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in WIDGETS | {"file_uploader", "button", "camera_input", "chat_input"}:
                found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return found


def follows_state(value: ast.expr, results: set[str]) -> bool:
    """Whether an expression reads another widget's result or the session's state."""
    for node in ast.walk(value):
        if isinstance(node, ast.Name) and node.id in results:
            return True
        if isinstance(node, ast.Attribute) and node.attr in STATE:
            return True
    return False


def faults(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        results = widget_results(function)
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if call.func.attr not in WIDGETS:
                continue
            given = {k.arg: k.value for k in call.keywords if k.arg}
            key = given.get("key")
            fixed = isinstance(key, ast.Constant) or (
                isinstance(key, ast.JoinedStr) and not follows_state(key, results)
            )
            for name in ("value", "index", "default"):
                value = given.get(name)
                if value is None or key is None or not fixed or not follows_state(value, results):
                    continue
                found.append(
                    f"{path.name}:{call.lineno} {ast.unparse(key)} {name}={ast.unparse(value)}"
                )
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(REPO).as_posix())
def test_no_value_of_a_keyed_widget_follows_other_state(path: Path) -> None:
    assert faults(path) == []


def test_the_test_finds_the_lost_name(tmp_path: Path) -> None:
    """The fault as it was: choose a file, and the name stays empty."""
    code = (
        "def page():\n"
        "    file = st.file_uploader('f', key=f'up_{nonce}')\n"
        "    name = st.text_input('Name', value=file.name if file else '', key=f'name_{nonce}')\n"
        "    st.number_input('n', value=st.session_state['x'], key='n')\n"
        "    st.text_input('ok', value=file.name if file else '', key=f'name_{file.name}')\n"
        "    st.text_input('ok', value='fixed', key='k')\n"
    )
    page = tmp_path / "page.py"
    page.write_text(code)
    assert len(faults(page)) == 2
