from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from refusals import refusal

from workbench.storage.settings import FILE, Settings


def env(folder: Path, **more: str) -> dict[str, str]:
    return {"WORKBENCH_CACHE": str(folder), **more}


def test_defaults_file_environment(tmp_path: Path) -> None:
    first = Settings.load(env(tmp_path))
    assert (first.device, first.model, first.folder) == ("auto", "auto", tmp_path)
    dataclasses.replace(first, model="sd15", threads=2, ui={"brush": 12}).save()
    second = Settings.load(env(tmp_path))
    assert (second.model, second.threads, second.ui) == ("sd15", 2, {"brush": 12})
    third = Settings.load(env(tmp_path, WORKBENCH_MODEL="sdxl", WORKBENCH_CACHE_GB="2.5"))
    assert (third.model, third.cache_bytes, third.threads) == ("sdxl", 2_500_000_000, 2)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b'{"threads": "two"}', b'{"ui": 3}', b"\xff\xfe"]
)
def test_damaged_file_counts_as_absent(
    raw: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(raw)
    assert Settings.load(env(tmp_path)) == Settings(folder=tmp_path)
    assert "damaged" in caplog.text


def test_unknown_keys_of_a_newer_version_are_dropped(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"threads": 3, "from_the_future": 1}')
    assert Settings.load(env(tmp_path)).threads == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORKBENCH_DTYPE", "fp8"), ("WORKBENCH_THREADS", "many"), ("WORKBENCH_CACHE_GB", "nan")],
)
def test_bad_environment_is_named(name: str, value: str, tmp_path: Path) -> None:
    with refusal("environment", name):
        Settings.load(env(tmp_path, **{name: value}))


def test_workers() -> None:
    assert Settings().devices() == ["auto"]
    assert Settings(device="cuda:0, cuda:1").devices() == ["cuda:0", "cuda:1"]
    assert Settings(device="").devices() == ["auto"]
