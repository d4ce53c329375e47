"""`sweep` on the command line: a grid of edits, one sheet, one table; what is there is not run again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.app import App
from workbench.cli import main

SMALL = ["--working-size", "64", "--lora-steps", "2", "--lora-rank", "2", "--lora-batch-size", "1",
         "--inversion-steps", "4", "--inversion-strength", "0.5", "--device", "cpu", "--quiet",
         "--pair", "24,30:40,30", "--whole"]  # fmt: skip
VARY = ["--vary", "method=warp,dragdiffusion", "--vary", "drag.steps=1,2"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[:64, :72]
    rgb = np.stack([x * 3, y * 4, (x + y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "robot.png")
    return tmp_path / "robot.png"


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_grid_of_edits_and_nothing_twice(
    picture: Path,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, table = tmp_path / "sheet.png", tmp_path / "table.csv"
    given = ["sweep", str(picture), *VARY, *SMALL, "--model", str(tiny_model("sd1"))]
    assert main([*given, "-o", str(out), "--csv", str(table), "--json"]) == 0
    cells = said(capsys)["cells"]
    assert [c["state"] for c in cells] == ["done"] * 4
    assert cells[0]["edit"] == cells[1]["edit"], "a warp has no steps: one edit for both"
    assert len({c["edit"] for c in cells}) == 3
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 320
        assert sheet.height > 2 * 280
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(r["method"], r["drag.steps"], r["steps"]) for r in rows] == [
        ("warp", "1", "0"), ("warp", "2", "0"), ("dragdiffusion", "1", "1"), ("dragdiffusion", "2", "2"),
    ]  # fmt: skip
    app = App()
    try:
        before = {r.id for r in app.store.records()}
        assert len(before) == 3
    finally:
        app.close()

    assert main([*given, "-o", str(out), "--json"]) == 0
    assert {c["edit"] for c in said(capsys)["cells"]} == before


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        (["drag.steps"], "NAME=V,V"),
        (["drag.magic=1,2"], "no parameter 'drag.magic'"),
        (["drag.steps=1,2500"], "2500 is not possible"),
        (["drag.steps=1"], "a sweep has 2 to 36"),
        (["drag.steps=" + ",".join(map(str, range(37)))], "37 runs"),
        (["drag.steps=1,2", "drag.steps=3,4"], "varied twice"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_runs(
    picture: Path, tmp_path: Path, vary: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for text in vary for part in ("--vary", text)]
    assert main(["sweep", str(picture), *given, *SMALL, "-o", str(tmp_path / "s.png")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "s.png").exists()
