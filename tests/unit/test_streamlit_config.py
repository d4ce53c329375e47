"""The pages' configuration: a slip in it makes Streamlit take its defaults, which listen to everybody."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from streamlit import config

FILE = Path(__file__).resolve().parents[2] / ".streamlit" / "config.toml"
KEPT = {
    "server.address": "127.0.0.1",
    "server.enableStaticServing": False,
    "browser.gatherUsageStats": False,
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
}


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """Every option of the file by its dotted name."""
    flat: dict[str, Any] = {}

    def walk(table: dict[str, Any], prefix: str) -> None:
        for name, value in table.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = value

    walk(tomllib.loads(FILE.read_text(encoding="utf-8")), "")
    return flat


def test_streamlit_can_read_it_and_knows_every_option(options: dict[str, Any]) -> None:
    known = config.get_config_options()
    assert sorted(set(options) - set(known)) == []


@pytest.mark.parametrize(("name", "value"), list(KEPT.items()))
def test_it_stays_on_this_machine(options: dict[str, Any], name: str, value: Any) -> None:
    assert options[name] == value


def test_fault_31_no_list_of_files_before_the_navigation_is_known(options: dict[str, Any]) -> None:
    assert options["client.showSidebarNavigation"] is False
