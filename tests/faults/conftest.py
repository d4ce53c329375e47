"""A history, and a good zip of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from archive_tools import make_source

from workbench.storage.archive.write import export_zip
from workbench.storage.history import Store


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def good(source: Store) -> bytes:
    return export_zip(source)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")
