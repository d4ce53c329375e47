"""Errors that a caller can tell apart, and interrupts deferred while state is being restored.

    WorkbenchError            anything the workbench raises on purpose; str() is the user's sentence
    ├── BadInput              the request cannot be carried out as given; fix the input (exit code 2)
    ├── ModelError            the model is missing, damaged or gave NaN; fix model or settings
    │   └── OutOfMemory       a ModelError: the device ran out of memory; choose a smaller setting
    ├── StoreError            history or export could not be read or written; nothing half-written
    └── Cancelled             the user asked to stop; not a failure (exit code 130)

Every message is one sentence that says what happened, with the value and the limit, and what to do.
Programs and tests read `code`, `field` and `values`; the wording may change at any time.
Numerics raise nothing but `Cancelled` (passed through from a callback) and `ModelError` (NaN).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


class WorkbenchError(Exception):
    """Base of all deliberate errors.

    Attributes:
        code: the kind of fault in kebab case, such as "out-of-range"; "" where nothing branches on it.
        field: the input at fault, as the request's JSON names it ("lora.rank"), or "".
        values: the numbers and names that the text mentions.
    """

    def __init__(self, text: str = "", *, code: str = "", field: str = "", **values: Any) -> None:
        """`text` is the sentence for the user; where it names the field, it does so by `field`."""
        super().__init__(text)
        self.code, self.field, self.values = code, field, values

    def with_field(self, name: str) -> str:
        """The sentence with the field under another name, such as its option: "--lora-rank"."""
        return str(self).replace(self.field, name, 1) if self.field else str(self)


class BadInput(WorkbenchError):
    """The input is at fault; the text names the value, the limit and what to do."""


class ModelError(WorkbenchError):
    """The model is missing, of a wrong kind, damaged, or its numbers became NaN."""


class OutOfMemory(ModelError):
    """The device ran out of memory; the text names a smaller setting that fits."""


class StoreError(WorkbenchError):
    """History, export or import failed as a whole; what was there before is unchanged."""


class Cancelled(WorkbenchError):
    """The job was stopped by its user, within one step of the request."""


class Notice(str):
    """A sentence for the user about something that is not a failure; `code` names its kind."""

    code: str

    def __new__(cls, text: str, code: str = "") -> Notice:
        """Text, and the code that programs and tests read."""
        made = super().__new__(cls, text)
        made.code = code
        return made


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
