"""Decode a picture in a process of its own, with limits on memory, processor time and waiting.

A helper stays warm and takes one file after the other; a file that exceeds a limit costs the helper,
not the server, and the next one is started. Frames on both pipes: 4 bytes length and JSON, then the
bytes that it announces. Parent and helper are the same program; nothing is unpickled.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import BadInput, Notice

MOST_MEMORY = 2**30  # bytes of data that the helper may hold
MOST_SECONDS = 10  # of processor time per file
MOST_WAITING = 60.0  # seconds
_ROOT = Path(__file__).resolve().parents[2]


Found = tuple[Sequence[Any], tuple[str, ...], dict[str, Any] | None]
"""Arrays (uint8 or None), sentences for the user, our own metadata."""


class _Helper:
    """One process; `ask` is called by one thread at a time."""

    def __init__(self) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.imaging.decode"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
        )  # fmt: skip

    def ask(self, what: str, raw: bytes, label: str) -> Any:
        """The answer; EOFError or OSError when the helper died of a limit."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(MOST_WAITING, self.process.kill)
        timer.start()
        try:
            _send(self.process.stdin, {"what": what, "label": label}, [raw])
            return _receive(self.process.stdout)
        finally:
            timer.cancel()

    def end(self) -> None:
        """Stop the process."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self.process.wait()


_lock = threading.Lock()
_helper: _Helper | None = None


def run(what: str, raw: bytes, label: str) -> Found:
    """Do the work that `serve` knows as `what` in the helper.

    Raises:
        BadInput: as they do; code "exhausting" when a limit was reached.
    """
    global _helper
    with _lock:
        if _helper is not None and _helper.process.poll() is not None:
            close()
        if _helper is None:
            _helper = _Helper()
        try:
            head, parts = _helper.ask(what, raw, label)
        except (EOFError, OSError) as exc:
            _helper.end()
            _helper = None
            raise BadInput(
                f'"{label}" took more than {MOST_SECONDS} s or {MOST_MEMORY / 2**30:.0f} GB to decode; scale '
                "it down, or save it as PNG or JPEG with another program.",
                code="exhausting",
            ) from exc
    if "error" in head:
        raise BadInput(head["error"], code=head["code"], field=head["field"])
    arrays = [
        np.frombuffer(part, np.uint8).reshape(shape) if shape else None
        for part, shape in zip(parts, head["shapes"], strict=True)
    ]
    return arrays, tuple(Notice(text, code) for text, code in head["notices"]), head["edit"]


def close() -> None:
    """End the helper; the next file starts another."""
    global _helper
    if _helper is not None:
        _helper.end()
        _helper = None


atexit.register(close)


def _send(pipe: Any, head: dict[str, Any], parts: list[Any]) -> None:
    text = json.dumps({**head, "sizes": [len(p) for p in parts]}).encode()
    pipe.write(struct.pack("<I", len(text)) + text)
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _receive(pipe: Any) -> tuple[dict[str, Any], list[bytearray]]:
    (length,) = struct.unpack("<I", _exactly(pipe, 4))
    head: dict[str, Any] = json.loads(_exactly(pipe, length))
    return head, [_exactly(pipe, size) for size in head["sizes"]]


def _exactly(pipe: Any, count: int) -> bytearray:
    raw = bytearray(count)
    view, done = memoryview(raw), 0
    while done < count:
        got = pipe.readinto(view[done:])
        if not got:
            raise EOFError
        done += got
    return raw


def _limit() -> None:
    """Allow ten more seconds, and the memory of one picture; not on Windows, which has no limits."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + MOST_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(work: Mapping[str, Callable[[bytes, str], Found]]) -> None:
    """The helper: answer until the parent closes the pipe."""
    while True:
        try:
            head, (given,) = _receive(sys.stdin.buffer)
            raw = bytes(given)
        except (EOFError, struct.error):
            return
        _limit()
        parts: list[Any] = []
        answer: dict[str, Any] = {"shapes": []}
        try:
            arrays, notices, edit = work[head["what"]](raw, head["label"])
            answer["notices"] = [(str(n), getattr(n, "code", "")) for n in notices]
            answer["edit"] = edit
            array: Any
            for array in arrays:
                answer["shapes"].append(list(array.shape) if array is not None else None)
                parts.append(
                    np.ascontiguousarray(array).data.cast("B") if array is not None else b""
                )
        except BadInput as exc:
            parts, answer = [], {"error": str(exc), "code": exc.code, "field": exc.field}
        _send(sys.stdout.buffer, answer, parts)
