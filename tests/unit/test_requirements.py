"""requirements.txt: everything that is imported, nothing else, each pinned to one release."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
OPTIONAL = {"ray", "triton"}  # requirements-ray.txt; with torch where torch can use it
OURS = {"workbench", "benchmarks", "training", "pages"}


def imported() -> set[str]:
    """The first names of all modules that the program imports, wherever in a file that stands."""
    names = set()
    for file in (
        REPO / "streamlit_app.py",
        *(f for d in sorted(OURS) for f in (REPO / d).rglob("*.py")),
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - OURS


def pins() -> dict[str, str]:
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.partition("#")[0].strip() for line in lines]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in pinned if line)
    return dict(line.split("==") for line in pinned if line)


def test_what_is_imported_is_pinned_and_what_is_pinned_is_imported() -> None:
    owners = importlib.metadata.packages_distributions()
    packages = {
        distribution.lower().replace("_", "-")
        for name in imported() - OPTIONAL
        for distribution in owners[name]
    }
    assert packages == set(pins())


def test_the_tests_run_on_what_is_pinned() -> None:
    here = {name: importlib.metadata.version(name).partition("+")[0] for name in pins()}
    assert here == pins()
