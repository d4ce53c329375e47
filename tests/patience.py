"""Waiting in tests: for an event, never for a time, with a limit that only a hang reaches."""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

HANG = 240.0  # s; a machine that is busy ten times over stays below it, pytest's own limit above


def until(condition: Callable[[], Any], every: float = 0.005) -> None:
    """Wait until something holds."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(every)


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended and waited for when the block is left, however it is left.

    Ctrl-C reaches it also where the tests run in the background of a shell, which has its children
    ignore it, and theirs.
    """
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, text=True, preexec_fn=heard, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
