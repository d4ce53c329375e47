"""How a JSON file of the history is sealed, opened and brought up to date.

Every file carries its format number and, as its last line, a checksum over all bytes before it, so
that a damaged or hand-edited one is noticed (over the bytes and not over the data: that takes a
tenth of the time, and thousands of records are read at once).

The writer writes the current format only; readers exist for all: `MIGRATIONS[n]` turns format n into
n + 1 and is never changed again (frozen samples of every format lie in tests/data/formats/). One
number counts for all kinds of files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.keys import digest
from workbench.core.record import RECORD_FORMAT

FORMAT = RECORD_FORMAT

Migration = Callable[[str, dict[str, Any]], dict[str, Any]]  # (kind, data); kind: edits, notes, ...
MIGRATIONS: dict[int, Migration] = {}  # 1 is the first format there is


def seal(data: Mapping[str, Any]) -> bytes:
    """JSON bytes of `data` with the format number and the checksum.

    Raises:
        BadInput: when the data holds NaN or something that JSON does not know.
    """
    body = {k: v for k, v in data.items() if k != "check"} | {"format": FORMAT}
    try:
        text = json.dumps(body, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False)
        head = text.removesuffix("\n}").encode()
    except (ValueError, TypeError) as exc:
        raise BadInput(f"This cannot be kept in the history: {exc}.") from exc
    return head + _tail(head)


def unseal(raw: bytes, kind: str) -> dict[str, Any]:
    """The data of a sealed file in today's format; `kind` is the name of its folder.

    Raises:
        BadInput: saying in which way the file cannot be read.
    """
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"It is no JSON ({exc}).") from exc
    if not isinstance(data, dict):
        raise BadInput("It is no JSON object.")
    version = data.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BadInput(f"It names no format (found {version!r:.40}).")
    if version > FORMAT:
        raise BadInput(
            f"It has format {version}, and this workbench reads up to {FORMAT}; "
            "open it with a newer workbench."
        )
    head = raw[: -len(_tail(b""))]
    if raw != head + _tail(head):
        raise BadInput("It was changed or damaged after it was written (its checksum is wrong).")
    data.pop("check")
    return migrate(kind, data)


def migrate(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Bring data of any past format to the current one, step by step."""
    while data["format"] < FORMAT:
        version = data["format"]
        data = MIGRATIONS[version](kind, data)
        data["format"] = version + 1
    return data


def _tail(head: bytes) -> bytes:
    return f',\n "check": "{digest(head)}"\n}}'.encode()


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number")
