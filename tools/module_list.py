"""Write docs/modules.md: every module, from the first sentence of its docstring.

python tools/module_list.py            rewrite the page
python tools/module_list.py --check    change nothing; exit code 1 when the page is not current
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "modules.md"
HEAD = """# Every module

Written by `python tools/module_list.py`. "imports" is the heaviest library that a module needs in order to be
imported; what is imported inside functions does not count. What belongs where:
[architecture.md](architecture.md).

"""
HEAVY = {"torch": "torch", "diffusers": "torch", "transformers": "torch", "peft": "torch",
         "PIL": "Pillow", "streamlit": "Streamlit", "diskcache": "diskcache", "numpy": "numpy",
         "ray": "Ray"}  # fmt: skip
ORDER = ("torch", "Streamlit", "Ray", "diskcache", "Pillow", "numpy")


def first_sentence(path: Path) -> str:
    """Of a module's docstring, on one line, without the full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[^.\d])\.(?= [A-Z`]|$)", line)[0].strip().replace("|", "\\|")


def needs(path: Path) -> str:
    """Which heavy libraries a module imports when it is imported, the heaviest."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:  # top level only
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found |= {HEAVY[n.split(".")[0]] for n in names if n.split(".")[0] in HEAVY}
    return next((name for name in ORDER if name in found), "")


def listing() -> str:
    """One table per package."""
    packages: dict[str, list[Path]] = {}
    for top in ("workbench", "benchmarks", "training"):
        for path in sorted((REPO / top).rglob("*.py")):
            packages.setdefault(path.parent.relative_to(REPO).as_posix(), []).append(path)
    packages["pages"] = [REPO / "streamlit_app.py", *sorted((REPO / "pages").glob("*.py"))]
    out = []
    for name, paths in packages.items():
        own = next((p for p in paths if p.name == "__init__.py"), None)
        about = f": {first_sentence(own)}" if own else ""
        out += [f"### `{name}/`{about}", "", "| module | | imports |", "|---|---|---|"]
        for path in paths:
            if path != own:
                out.append(f"| `{path.name}` | {first_sentence(path)} | {needs(path)} |")
        out.append("")
    return "\n".join(out)


def main() -> int:
    """Rewrite or check the page."""
    current = HEAD + listing()
    if "--check" in sys.argv[1:]:
        return int(current != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
