"""Who may know whom: the imports of every module are read (not run) and compared with the rules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCES = sorted((REPO / "workbench").rglob("*.py"))
HEAVY = {"torch", "diffusers", "transformers", "peft"}
LIGHT_FIRST = [
    "workbench",
    "workbench.types",
    "workbench.records",
    "workbench.errors",
    "workbench.options",
    "workbench.keys",
    "workbench.geometry",
    "workbench.images",
    "workbench.canvas",
    "workbench.preview",
    "workbench.piecewarp",
    "workbench.cache",
    "workbench.store",
    "workbench.jobs",
    "workbench.app",
    "workbench.cli",
]


def imports(path: Path) -> set[str]:
    """Every module named in an import statement of a file, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def under(path: Path, *folders: str) -> bool:
    rel = path.relative_to(REPO / "workbench").as_posix()
    return any(rel == f or rel.startswith(f + "/") for f in folders)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(REPO).as_posix())
def test_layer_rules(path: Path) -> None:
    names = tops(path)
    if not under(path, "ui"):
        assert not names & {"streamlit", "streamlit_drawable_canvas"}
    if under(path, "numerics"):
        assert not names & {"streamlit", "PIL", "diskcache", "pathlib"}
    if under(
        path,
        "cache.py",
        "store",
        "archive",
        "jobs.py",
        "jobtable.py",
        "jobboard.py",
        "keys.py",
        "types.py",
    ):
        assert not names & HEAVY
    if path.name != "jobs_ray.py":
        assert "ray" not in names
    if under(path, "types.py", "records.py", "errors.py", "options.py", "keys.py"):
        assert names <= set(sys.stdlib_module_names) | {"workbench"}
    if under(path, "numerics"):
        own = {n for n in imports(path) if n.startswith("workbench")}
        allowed = ("workbench.numerics", "workbench.types", "workbench.records", "workbench.errors")
        assert all(n.startswith(allowed) for n in own), own


def test_first_page_and_help_do_not_wait_for_torch() -> None:
    modules = "\n".join(f"import {m}" for m in LIGHT_FIRST)
    code = f"{modules}\nimport sys\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_pages_do_not_import_torch() -> None:
    pages = [*sorted((REPO / "pages").glob("*.py")), REPO / "streamlit_app.py"]
    assert len(pages) > 1
    for page in pages:
        assert not tops(page) & HEAVY, page.name
