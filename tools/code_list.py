"""Write the table of codes in docs/formats.md: every code of an error, notice, finding or model file.

python tools/code_list.py            rewrite the table
python tools/code_list.py --check    change nothing; exit code 1 when the table is not current
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "formats.md"
TOPS = ("workbench", "benchmarks", "training")
# Where the code stands when it is not given by name: the call and the position of its argument
POSITIONS = {"Notice": 1, "refuse": 1, "Look": 0}
KINDS = {"Look": "model file", "Notice": "notice", "refuse": "Refused",
         "__init__": "ModelError"}  # fmt: skip
START, END = "<!-- codes: tools/code_list.py -->\n", "<!-- end of codes -->\n"


def codes(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(code, kind) of every code that a module spells out; a code that is only passed on has none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "Code":
            yield from ((str(value.value), "finding") for value in _values(node.body))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rsplit(".", 1)[-1]
        given = [k.value for k in node.keywords if k.arg == "code"]
        if name in POSITIONS:
            given += node.args[POSITIONS[name] : POSITIONS[name] + 1]
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value, KINDS.get(name, name)


def _values(body: list[ast.stmt]) -> Iterator[ast.Constant]:
    """Constants that a class assigns to its members."""
    for item in body:
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant):
            yield item.value


def found() -> dict[str, tuple[set[str], set[str]]]:
    """Code -> its kinds, and the rooms that give it."""
    all_codes: dict[str, tuple[set[str], set[str]]] = {}
    for top in TOPS:
        for path in sorted((REPO / top).rglob("*.py")):
            parts = path.relative_to(REPO).parts
            room = parts[1] if top == "workbench" and len(parts) > 2 else parts[0]
            for code, kind in codes(ast.parse(path.read_text(encoding="utf-8"))):
                kinds, rooms = all_codes.setdefault(code, (set(), set()))
                kinds.add(kind)
                rooms.add(room)
    return all_codes


def table() -> str:
    """The rows, sorted by code."""
    rows = ["| code | kind | given by |", "|---|---|---|"]
    for code, (kinds, rooms) in sorted(found().items()):
        rows.append(f"| `{code}` | {', '.join(sorted(kinds))} | {', '.join(sorted(rooms))} |")
    return "\n".join(rows) + "\n"


def rewritten(page: str) -> str:
    """The page with the table as the code stands."""
    between = re.compile(re.escape(START) + ".*" + re.escape(END), re.DOTALL)
    return between.sub(lambda _: START + table() + END, page)


def main() -> int:
    """Rewrite or check the page."""
    page = PAGE.read_text(encoding="utf-8")
    current = rewritten(page)
    if "--check" in sys.argv[1:]:
        return int(current != page)
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
