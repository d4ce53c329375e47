"""Hold back the second Ctrl-C or SIGTERM while something is put back as it was."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_depth = 0
_pending = False


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Run the block to its end; an interrupt that came meanwhile is raised after it.

    Only the main thread is ever interrupted; in others this does nothing.
    """
    global _depth, _pending
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth and _pending:
            _pending = False
            raise KeyboardInterrupt


def interrupt() -> None:
    """Raise KeyboardInterrupt now, or at the end of the `held` block that is running.

    Raises:
        KeyboardInterrupt: where nothing is held.
    """
    global _pending
    if not _depth:
        raise KeyboardInterrupt
    _pending = True
