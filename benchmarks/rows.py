"""The file of a quality benchmark: JSON lines, appended as they are measured, picked up after a kill.

    {"kind": "setup", ...}      one per run: what was asked for, with what, on what
    {"kind": "prepared", ...}   per drag: seconds of LoRA, inversion and the original's pass
    {"kind": "row", ...}        per drag and method

What follows a setup was made by that run. Of several rows of one drag and method the last counts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from workbench.core.config import METHODS
from workbench.core.errors import BadInput
from workbench.core.request import EditRequest

Record = dict[str, Any]
SAME = (
    "benchmark", "set", "set_version", "scenes_version", "model", "lora", "inversion", "seed",
    "locator",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"refined": ("auto", {"refine": True})}


class ResultLog:
    """An open result file; use as a context manager."""

    def __init__(self, path: Path, *, resume: bool = True) -> None:
        """Read what is there already; `resume` False starts the file over.

        Raises:
            BadInput: when the file is none of ours.
        """
        self.path = path
        self.records: list[Record] = []
        self._file: TextIO | None = None
        self._whole = 0  # bytes up to the end of the last whole line
        if resume and path.is_file():
            self.records, self._whole = _read(path)

    def __enter__(self) -> ResultLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a" if self._whole else "w", encoding="utf-8")
            if self._whole:
                self._file.truncate(self._whole)
        except OSError as exc:
            raise BadInput(f"{self.path} cannot be written ({exc.strerror}).") from exc
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self, setup: Record) -> None:
        """Write the head of a run.

        Raises:
            BadInput: when the file holds another set of drags, model or preparation.
        """
        for old in (r for r in self.records if r["kind"] == "setup"):
            for name in SAME:
                if old.get(name) != setup.get(name):
                    raise BadInput(
                        f"{self.path} was made with {name} {old.get(name)!r}, not "
                        f"{setup.get(name)!r}; choose another file or --no-resume.",
                        code="other-run",
                    )
        self.add({"kind": "setup", **setup})

    def add(self, record: Record) -> None:
        """Append a record; it is on its way to the disk when this returns."""
        assert self._file is not None, "the log is closed"
        self.records.append(record)
        self._file.write(json.dumps(_plain(record), allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def has(self, drag: str, method: str, edit: str | None) -> bool:
        """True if a drag was measured by a method under the same request."""
        found = self.rows().get((drag, method))
        return found is not None and not found.get("error") and found.get("edit_key") == edit

    def rows(self) -> dict[tuple[str, str], Record]:
        """The rows by drag and method."""
        return rows_of(self.records)


def _plain(value: Any) -> Any:
    """NaN and infinity as null, which is what JSON has for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _read(path: Path) -> tuple[list[Record], int]:
    """Records, and how many bytes they take: a run that was killed may leave half a line."""
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise BadInput(f"{path} cannot be read ({exc.strerror}).", code="unreadable") from exc
    whole = raw.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(raw[:whole].splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as exc:
            raise BadInput(
                f"{path}, line {number}, is not JSON; is this a result file?", code="not-json"
            ) from exc
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            raise BadInput(
                f"{path}, line {number}, is not a record of a benchmark.", code="not-a-record"
            )
        records.append(record)
    if records and records[0]["kind"] != "setup":
        raise BadInput(f"{path} does not begin with the setup of a benchmark.", code="no-setup")
    return records, whole


def read_records(paths: Sequence[Path]) -> list[Record]:
    """The records of one or more files (the shards of a run), one after the other.

    Raises:
        BadInput: when a file cannot be read, is none of ours, or is of another set than the first.
    """
    records: list[Record] = []
    first: Record | None = None
    for path in paths:
        found, _ = _read(path)
        if not found:
            raise BadInput(f"{path} is empty.", code="empty")
        head = found[0]
        if first is None:
            first = head
        for name in SAME:
            if first.get(name) != head.get(name):
                raise BadInput(
                    f"{path} was made with {name} {head.get(name)!r}, {paths[0]} with "
                    f"{first.get(name)!r}; only shards of one run belong together.",
                    code="other-run",
                )
        records += found
    return records


def rows_of(records: Iterable[Record]) -> dict[tuple[str, str], Record]:
    """The rows by drag and method; the last one counts."""
    return {(r["drag"], r["method"]): r for r in records if r["kind"] == "row"}


def requests_by_method(base: EditRequest, methods: Sequence[str]) -> dict[str, EditRequest | None]:
    """The edit that each method makes of `base`, with the method's own defaults.

    None for rows that no method makes ("nothing", "truth", ...).
    """
    made: dict[str, EditRequest | None] = {}
    for name in methods:
        method, options = VARIANTS.get(name, (name, {}))
        request = base.with_method(method) if method in METHODS else None
        if request is not None and options:
            request = dataclasses.replace(
                request, drag=dataclasses.replace(request.drag, **options)
            )
        made[name] = request
    return made
