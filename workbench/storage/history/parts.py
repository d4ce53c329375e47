"""The small files beside an edit's record: what may change later, and what is under way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.request import EditRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What may change about an edit after it was made. `binned` is when it went to the bin."""

    title: str = ""
    note: str = ""
    favourite: bool = False
    binned: str = ""
    imported: str = ""  # name of the archive that it came from
    lora: str = ""  # id of the trained LoRA that came along, a safetensors file of the history

    @classmethod
    def from_json(cls, _name: str, data: Mapping[str, Any]) -> Notes:
        """Read the fields; unknown ones are dropped.

        Raises:
            BadInput: when a field has the wrong type.
        """
        parts = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        for name, value in parts.items():
            if not isinstance(value, bool if name == "favourite" else str):
                raise BadInput(f"Its {name} has the wrong type.")
        return cls(**parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An edit under way, and whose it is."""

    id: str
    request: EditRequest
    owner: str = ""
    started: str = ""
    process: str = ""  # name of the ProcessLock that lives as long as the process
    host: str = ""
    pid: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> Pending:
        """Read what `Store.begin` wrote.

        Raises:
            BadInput: when a part is missing or wrong.
        """
        try:
            return cls(
                id=name,
                request=EditRequest.from_json(data["request"], strict=False),
                owner=str(data["owner"]),
                started=str(data["started"]),
                process=str(data["process"]),
                host=str(data["host"]),
                pid=int(data["pid"]),
                environment=dict(data["environment"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise BadInput(f"It is incomplete ({exc}).") from exc
