"""The examples of the first page: whole, small, and of photographs that anybody may use."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.make_examples import FOLDER, PHOTOS
from workbench.app import App
from workbench.canvas.drawing import Drawing
from workbench.canvas.rasterize import rasterise
from workbench.imaging.decode import decode
from workbench.storage.settings import Settings
from workbench.ui.shell.backend import Backend
from workbench.ui.upload.intake import open_example

LISTED = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", LISTED, ids=[e["file"] for e in LISTED])
def test_an_example_has_a_drag_and_a_result_that_keeps_the_rest(entry: dict) -> None:
    before, after = (
        decode((FOLDER / entry[k]).read_bytes(), entry[k]).rgb for k in ("file", "after")
    )
    assert before.shape == after.shape
    assert max(before.shape) <= 1024
    assert entry["title"]
    assert entry["prompt"]
    drawing = Drawing.from_json(entry["drawing"])
    height, width = before.shape[:2]
    mask = rasterise(drawing, width, height)
    for pair in drawing.pairs:
        for p in (pair.handle, pair.target):
            assert mask[round(p.y), round(p.x)]
    gap = np.abs(before.astype(int) - after).mean(axis=2)
    assert gap[mask].mean() > 3 * gap[~mask].mean()  # WebP alone changes what was left alone


def test_a_photograph_opens_with_the_model_that_knows_photographs(tmp_path: Path) -> None:
    app = App(Settings(folder=tmp_path))
    backend = Backend(app)
    models = {e["file"]: open_example(backend, e).get("model") for e in LISTED}
    app.close()
    assert models["otter.webp"] == models["cat.webp"] == "album"
    assert models["robot-784.png"] == "storybook"


def test_photographs_are_listed_with_their_sources_and_stay_small() -> None:
    files = [Path(p[0]) for p in PHOTOS]
    assert {f.name for f in files} <= {e["file"] for e in LISTED}
    sources = (FOLDER / "SOURCES.md").read_text(encoding="utf-8")
    assert all(f"`{f.name}`" in sources for f in files)
    kept = [FOLDER / f for f in files] + [FOLDER / f"{f.stem}-after.webp" for f in files]
    assert sum(f.stat().st_size for f in kept) < 1_200_000
