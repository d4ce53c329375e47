"""`bench compare A B`: which differences are beyond the intervals, drag by drag."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.judge import finite
from benchmarks.report import (
    FIGURES,
    Figure,
    good_rows,
    methods_of,
)
from benchmarks.rows import Record, read_records
from benchmarks.stats import paired, ratio
from workbench.core.errors import BadInput


def comparison(a: str, b: str, files: Sequence[Path] | None = None) -> str:
    """B against A as Markdown; see the command's help for what A and B may be.

    Raises:
        BadInput: when a file cannot be read or a method is not in it, or no drag is common.
    """
    if files:
        rows = good_rows(read_records(files))
        left, right = _only(rows, a, str(files[0])), _only(rows, b, str(files[0]))
        return _table(a, left, b, right)
    (file_a, method_a), (file_b, method_b) = _split(a), _split(b)
    rows_a, rows_b = good_rows(read_records([file_a])), good_rows(read_records([file_b]))
    if (method_a is None) != (method_b is None):
        method_a = method_b = method_a or method_b
    if method_a is not None and method_b is not None:
        left, right = _only(rows_a, method_a, str(file_a)), _only(rows_b, method_b, str(file_b))
        return _table(a, left, b, right)
    both = [m for m in methods_of(rows_a) if m in methods_of(rows_b)]
    if not both:
        raise BadInput(f"{file_a} and {file_b} have no method in common.", code="no-common-method")
    parts = [
        _table(
            f"{m} ({file_a.name})", _only(rows_a, m, a), f"{m} ({file_b.name})", _only(rows_b, m, b)
        )
        for m in both
    ]
    return "\n\n".join(parts)


def _split(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:METHOD; a colon may be part of a file's name."""
    if Path(text).is_file() or ":" not in text:
        return Path(text), None
    name, _, method = text.rpartition(":")
    return Path(name), method


def _only(rows: Sequence[Record], method: str, where: str) -> list[Record]:
    found = [r for r in rows if r["method"] == method]
    if not found:
        have = ", ".join(methods_of(rows)) or "none"
        raise BadInput(
            f"{where} has no figures of the method {method!r}; it has: {have}.", code="unknown-name"
        )
    return found


def _table(name_a: str, a: Sequence[Record], name_b: str, b: Sequence[Record]) -> str:
    common = {r["drag"] for r in a} & {r["drag"] for r in b}
    if not common:
        raise BadInput(
            f"{name_a} and {name_b} have no drag in common; were they run on one set?",
            code="no-common-drag",
        )
    out = [
        f"{name_b} against {name_a}, {len(common)} drags in common, 95 % intervals:",
        "",
        f"| figure | {name_a} | {name_b} | difference | ratio | {name_b} is |",
        "|---" * 6 + "|",
    ]
    for figure in FIGURES:
        x, y = ({r["drag"]: finite(r.get(figure.name)) for r in rows} for rows in (a, b))
        both = paired(x, y)
        if both.difference.n == 0:
            continue
        verdict = both.verdict(lower_is_better=figure.lower_is_better)
        out.append(
            f"| {figure.title} | {figure.show(both.a)} | {figure.show(both.b)} | "
            f"{figure.cell(both.difference)} | {Figure('', '').cell(ratio(x, y))} | {verdict} |"
        )
    return "\n".join(out)
