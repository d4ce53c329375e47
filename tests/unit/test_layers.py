"""Who may know whom: the imports of every module are read (not run) and compared with the rules."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for top in ("workbench", "benchmarks", "training") for path in (REPO / top).rglob("*.py")
)
HEAVY = {"torch", "diffusers", "transformers", "peft"}
LIGHT_FIRST = [
    "workbench",
    "workbench.core.request",
    "workbench.core.record",
    "workbench.core.errors",
    "workbench.core.options",
    "workbench.core.keys",
    "workbench.imaging.coords",
    "workbench.imaging.decode",
    "workbench.canvas.fabric",
    "workbench.canvas.selection",
    "workbench.warping.layers",
    "workbench.storage.cache",
    "workbench.storage.history",
    "workbench.jobs.queue",
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
    if not path.is_relative_to(REPO / "workbench"):
        return False
    rel = path.relative_to(REPO / "workbench").as_posix()
    return any(rel == f or rel.startswith(f + "/") for f in folders)


ARITHMETIC = ("diffusion/unet.py", "diffusion/ddim.py", "diffusion/lora.py", "accel", "drag")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(REPO).as_posix())
def test_layer_rules(path: Path) -> None:
    names = tops(path)
    if not under(path, "ui"):
        assert not names & {"streamlit", "streamlit_drawable_canvas"}
    if under(path, *ARITHMETIC):
        assert not names & {"PIL", "diskcache", "pathlib"}
        own = {n for n in imports(path) if n.startswith("workbench")}
        allowed = ("workbench.diffusion", "workbench.accel", "workbench.drag", "workbench.core")
        assert all(n.startswith(allowed) for n in own), own
    if under(path, "storage", "core", "canvas", "imaging", "sweeps", "warping") or under(
        path, "jobs/queue.py", "jobs/__init__.py"
    ):
        assert not names & HEAVY
    if path.name != "ray_executor.py":
        assert "ray" not in names
    if under(path, "core"):
        assert names <= set(sys.stdlib_module_names) | {"workbench"}
    if path.is_relative_to(REPO / "workbench"):
        assert not names & {"training", "benchmarks"}


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


def test_the_layout_keeps_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of `make house`: modules, lengths, parameters, cycles, the reading path."""
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    house = importlib.import_module("house")
    assert [row for row in house.rows() if row.value > row.limit] == []
    assert house.cycles({"a": {"b"}, "b": {"a"}, "c": set()}) == [["a", "b"]]


def test_every_reference_to_a_document_resolves() -> None:
    """`docs/algorithm.md 2.1` names a heading, `docs/faults.md 37` a row of its table."""
    tests = sorted((REPO / "tests").rglob("*.py"))
    missing = []
    for path in (*SOURCES, *tests):
        text = " ".join(path.read_text(encoding="utf-8").split())
        for name, number in re.findall(r"docs/([a-z_]+\.md)(?: (\d+(?:\.\d+)?))?", text):
            page = REPO / "docs" / name
            said = page.read_text(encoding="utf-8") if page.is_file() else ""
            known = re.findall(r"^(?:#+|\|) (\d+(?:\.\d+)?)\.? ", said, re.MULTILINE)
            if not said or (number and number not in known):
                missing.append(f"{path.relative_to(REPO)}: docs/{name} {number}")
    assert missing == []


def test_every_module_of_the_pages_can_be_the_first_to_be_imported() -> None:
    """Their packages hold code, so a cycle shows only from some of its ends."""
    code = """
import os, sys, traceback
import streamlit  # once, for all
for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            __import__(name)
        except ImportError:
            traceback.print_exc(limit=-2)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""
    names = [
        ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if under(path, "ui")
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *names],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [], done.stderr[-2000:]
