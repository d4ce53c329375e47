"""The quick part of `make attack`: no hostile file gets past, and the table can fall short."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import attack


@pytest.mark.filterwarnings("ignore")
def test_the_quick_attack_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert attack.main(["--quick"]) == 0, capsys.readouterr().out


def test_what_falls_short_is_noticed() -> None:
    def hostile(item: str) -> None:
        if item == "raise":
            raise ValueError(item)
        if item == "die":
            os.kill(os.getpid(), 9)
        if item == "hold":
            time.sleep(0 * len(b"x" * (64 << 20)))

    wrong, _, _ = attack.apart(hostile, ["raise"])
    assert "ValueError" in wrong[0]
    wrong, _, _ = attack.apart(hostile, ["die"])
    assert "status 9" in wrong[0]
    _, held, _ = attack.apart(hostile, ["hold"])
    assert held > 32
