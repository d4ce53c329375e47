"""`doctor --model M --drag`: every step is measured or its failure named, on one page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.cli import main
from workbench.cli.doctor import psnr

STEPS = ["files", "load", "round trip", "prompt", "inversion", "drag"]


def report(
    model: Path | str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, Any, str]:
    out = folder / "report.html"
    code = main(
        ["doctor", "--drag", "--model", str(model), "--device", "cpu", "-o", str(out), "--json"]
    )
    return code, json.loads(capsys.readouterr().out)["steps"], out.read_text("utf-8")


def test_a_random_model_is_loaded_and_falls_short_by_name(
    tiny_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, steps, page = report(tiny_model("sd1"), tmp_path, capsys)
    assert [s["name"] for s in steps] == STEPS
    states = {s["name"]: s["state"] for s in steps}
    assert states["files"] == states["load"] == "ok"
    assert states["round trip"] == states["inversion"] == "problem"  # random weights draw nothing
    assert code == 1
    assert all(s["text"] for s in steps)
    assert all(s["seconds"] >= 0 for s in steps)
    assert page.count("data:image/png;base64,") >= 4
    assert "<script" not in page


def test_what_is_no_model_fails_at_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = tmp_path / "model.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n")
    code, steps, page = report(pointer, tmp_path, capsys)
    assert code == 1
    assert [s["state"] for s in steps] == ["problem", "problem", *["skipped"] * 4]
    assert "Git LFS pointer" in steps[0]["text"]
    assert "Git LFS pointer" in page


def test_options_that_belong_to_the_proof(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", "storybook"]) == 2
    assert "--drag" in capsys.readouterr().err


def test_psnr() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a) == 99.0
    assert abs(psnr(a, a + 16) - 24.05) < 0.01
