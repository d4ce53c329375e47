"""Expect an error by its code and field; the wording may change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from workbench.core.errors import BadInput, WorkbenchError


@contextlib.contextmanager
def refusal(
    code: str, field: str | None = None, kind: type[WorkbenchError] = BadInput
) -> Iterator[pytest.ExceptionInfo[WorkbenchError]]:
    """The block must raise `kind` with this code, and this field where one is given."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    assert field is None or caught.value.field == field, caught.value
