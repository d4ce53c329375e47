"""The job board: one small file per job, so that a reload after a restart still finds its job.

Nothing here is needed for the work: what cannot be written is a line in the log.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from workbench.core.errors import StoreError
from workbench.storage.files import ProcessLock, is_ulid, write_atomic

log = logging.getLogger(__name__)

_FILE = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\.json")
_MOST_BYTES = 2**20
_ENDED = ("done", "failed", "cancelled", "interrupted")


class Board:
    """`<folder>/<job id>.json`; the oldest ended ones beyond `keep` are removed at start-up."""

    def __init__(self, folder: str | Path, keep: int = 500) -> None:
        """Use `folder`; never fails (see the log)."""
        self.folder = Path(folder)
        self._process: ProcessLock | None = None
        try:
            self._process = ProcessLock(self.folder)
            self._process.sweep()
            self._prune(keep)
        except OSError as exc:
            log.warning("the job board cannot be used (%s); jobs run without it", exc.strerror)

    def write(self, line: dict[str, Any]) -> None:
        """Keep a job's state; what had not ended when this process dies reads as interrupted."""
        if self._process is None:
            return
        self._process.renew()
        body = {**line, "process": self._process.name, "host": self._process.host}
        try:
            raw = json.dumps(body, default=_left_out).encode()
            for field in ("payload", "result"):  # too large a file would not be read again
                if len(raw) > _MOST_BYTES:
                    body[field] = None
                    raw = json.dumps(body, default=_left_out).encode()
            path = self.folder / f"{line['id']}.json"
            write_atomic(path, raw, temp=self.folder / "temp", durable=False)
        except (StoreError, TypeError, ValueError) as exc:
            log.warning("job %s is not on the board: %s", line["id"], exc)

    def find(self, job_id: str) -> dict[str, Any] | None:
        """What is kept of a job, or None; its "lives" says whether its process still runs."""
        line = self._read(self.folder / f"{job_id}.json") if is_ulid(job_id) else None
        return None if line is None else {**line, "lives": self._lives(line)}

    def load(self) -> list[dict[str, Any]]:
        """All jobs on the board, oldest first."""
        lines = (self._read(path) for path in self._paths())
        return [line for line in lines if line is not None]

    def close(self) -> None:
        """Let go of the folder."""
        if self._process is not None:
            self._process.close()

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _FILE.fullmatch(p.name))

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            if path.stat().st_size > _MOST_BYTES:
                return None
            line = json.loads(path.read_text(encoding="utf-8"))
            good = line["id"] == path.stem and all(
                isinstance(line[k], str) for k in ("kind", "owner", "state")
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as exc:
            log.warning("the job board's %s cannot be read: %s", path.name, exc)
            return None
        return line if good else None

    def _prune(self, keep: int) -> None:
        ended = [line for line in self.load() if line["state"] in _ENDED or not self._lives(line)]
        for line in ended[: max(0, len(ended) - keep)]:
            (self.folder / f"{line['id']}.json").unlink(missing_ok=True)

    def _lives(self, line: dict[str, Any]) -> bool:
        name, host = str(line.get("process", "")), str(line.get("host", ""))
        return self._process is not None and self._process.lives(name, host)


def _left_out(_value: object) -> None:
    """JSON of what has none: nothing (a payload may hold arrays; the board does not need them)."""
