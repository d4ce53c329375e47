"""Write the last column of docs/faults.md: the test files of each row, from the tests' names.

python tools/fault_table.py            rewrite the table; names rows that have no test
python tools/fault_table.py --check    change nothing; exit code 1 when the table is not current
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "faults.md"
_TEST = re.compile(r"^\s*def test_fault_0*([0-9]+)_", re.MULTILINE)
_ROW = re.compile(r"^\| ([0-9]+) \|(.*\|.*)\|[^|]*\|$", re.MULTILINE)


def tests_by_row() -> dict[int, dict[str, int]]:
    """Row -> test file (relative to the project) -> number of tests."""
    found: dict[int, dict[str, int]] = {}
    for path in sorted((REPO / "tests").rglob("test_*.py")):
        for row in _TEST.findall(path.read_text(encoding="utf-8")):
            files = found.setdefault(int(row), {})
            name = path.relative_to(REPO / "tests").as_posix()
            files[name] = files.get(name, 0) + 1
    return found


def table(text: str) -> str:
    """The page with its last column as the tests stand."""
    found = tests_by_row()

    def row(match: re.Match[str]) -> str:
        files = "<br>".join(f"`{name}`" for name in found.get(int(match[1]), {}))
        return f"| {match[1]} |{match[2]}| {files or ' '} |"

    return _ROW.sub(row, text)


def main() -> int:
    """Rewrite or check the page."""
    text = PAGE.read_text(encoding="utf-8")
    current = table(text)
    rows = {int(m[1]) for m in _ROW.finditer(text)}
    missing = sorted(rows - set(tests_by_row()))
    if missing:
        sys.stderr.write(f"rows without a test: {', '.join(map(str, missing))}\n")
    if "--check" in sys.argv[1:]:
        return int(current != text)
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
