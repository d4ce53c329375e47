"""Ctrl-C and SIGTERM: the first asks the work to stop at its next step, the second stops at once.

Work that does not come to a next step within two seconds (an import, the reading of a large model)
is stopped as if asked a second time. What is being put back as it was (the model, a record) is
finished first. Nothing half-written is left either way: files get their names
in one step.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from workbench.core.interrupts import interrupt
from workbench.jobs.job import CancelToken

_PATIENCE = 2.0


@contextlib.contextmanager
def stopping(token: CancelToken, patience: float = _PATIENCE) -> Iterator[None]:
    """Let signals set `token` while the block runs; the old handlers come back afterwards.

    Raises:
        KeyboardInterrupt: in the block, at the second signal or when the first was not heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    timer: threading.Timer | None = None

    def heard(_number: int, _frame: FrameType | None) -> None:
        nonlocal timer
        if token.cancelled:
            interrupt()
            return
        token.set()
        timer = threading.Timer(patience, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, heard) for n in numbers]
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
