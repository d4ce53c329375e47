"""The ground-truth benchmark on the shipped model: rows of sanity, locators, picking up after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scenes_run
from benchmarks.locate import (
    DIFT_TIMESTEP,
    FeatureMap,
    Features,
    Recipe,
    peak,
    published,
    seed_of,
)
from benchmarks.rows import read_records, rows_of
from benchmarks.scenes import drag_set
from workbench import edit
from workbench.cli import BAD_INPUT, OK, main
from workbench.core.request import Point, PointPair
from workbench.diffusion import model
from workbench.diffusion.model import Runtime
from workbench.drag.tracking import Disc
from workbench.imaging.decode import decode

SANITY = "nothing,truth,roundtrip,moved"
QUICK = ["--drags", "1", "--seed", "5", "--threads", "1", "--lora-steps", "1"]


@pytest.fixture(scope="module")
def storybook() -> Runtime:
    return model.load("storybook", device="cpu")


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {method: r for (_, method), r in rows_of(read_records([path])).items()}


def test_a_run_its_sanity_its_strip_and_its_resumption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, strips = tmp_path / "rows.jsonl", tmp_path / "strips"
    args = ["bench", "scenes", *QUICK, "--inversion-steps", "4", "--out", str(out)]
    assert main([*args, "--method", f"{SANITY},warp", "--strips", str(strips)]) == OK
    found = rows(out)
    assert list(found) == [*SANITY.split(","), "warp"]

    nothing, truth, ceiling = found["nothing"], found["truth"], found["roundtrip"]
    assert nothing["mae_ratio"] == 1 and nothing["ssim_ratio"] == 1
    assert nothing["share_template"] == pytest.approx(1, abs=0.02)
    assert nothing["share_features"] == pytest.approx(1, abs=0.2)
    assert truth["mae_ratio"] == 0 and truth["ssim"] == 1 and truth["ssim_ratio"] == 0
    assert truth["left_template"] < 3 and truth["left_features"] < 5
    assert 0 < ceiling["mae_ratio"] < 0.8
    assert found["moved"]["left_template"] < 0.4 * nothing["left_template"]
    for method in ("nothing", "moved", "warp"):
        assert found[method]["outside_max"] == 0  # composited: not a level differs

    warp = found["warp"]
    assert warp["edit_key"] and warp["stop"] == "ONE_STEP" and warp["cpu"] > 0
    assert set(warp["cached"]) >= {"lora", "invert", "reference"}  # the edit did not pay for them
    prepared = next(r for r in read_records([out]) if r["kind"] == "prepared")
    assert prepared["cpu"] > 0 and prepared["seconds"]["lora"] > 0

    setup = read_records([out])[0]
    assert setup["set"] == 5 and setup["lora"]["steps"] == 1
    assert setup["environment"]["threads"] == "1" and setup["model"].startswith("wb1:")
    assert setup["drag"]["warp"]["method"] == "warp"

    (strip,) = strips.glob("*.png")
    assert strip.name.startswith("001-face-")
    assert decode(strip.read_bytes()).width > 5 * 256  # source, three methods, truth
    assert "| warp | 1 |" in capsys.readouterr().out

    # killed while it wrote a line: what is whole stays, the rest is measured again, nothing twice
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:4]) + lines[4][:40])
    assert main([*args, "--method", SANITY]) == OK
    kinds = [json.loads(text) for text in out.read_text().splitlines()]
    assert [r.get("method") for r in kinds if r["kind"] == "row"] == SANITY.split(",")

    other = [a if a != "5" else "6" for a in args]
    capsys.readouterr()
    assert main([*other, "--method", "nothing"]) == BAD_INPUT
    assert "was made with set 5, not 6" in capsys.readouterr().err


def test_both_candidates_of_a_draft_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    args = ["bench", "scenes", *QUICK, "--method", "auto", "--out", str(out)]
    assert main(args) == OK
    assert list(rows(out)) == ["auto"] and "Choice of auto" not in capsys.readouterr().out
    assert main([*args, "--judge"]) == OK  # the row is there, but not its candidates
    assert "Choice of auto" in capsys.readouterr().out
    found = rows(out)
    assert set(found) == {"auto", "auto:moved", "auto:drawn"}
    delivered = "moved" if found["auto"]["choice"]["result"] == "moved" else "drawn"
    for name in ("mae_ratio", "open_mae", "open_ssim", "image"):
        assert found["auto"][name] == found[f"auto:{delivered}"][name]
    assert 0 < found["auto"]["open_share"] < 1
    before = out.read_text().count('"row"')
    assert main([*args, "--judge"]) == OK
    assert out.read_text().count('"row"') == before


def test_a_drag_that_fails_is_a_row_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.core.errors import ModelError

    def fail(*_args: Any, **_more: Any) -> None:
        raise ModelError("The numbers became NaN.")

    monkeypatch.setattr(edit, "run_edit", fail)
    monkeypatch.setattr(scenes_run, "prepare", lambda *_a, **_k: {
        "seconds": {}, "cached": [], "psnr": None, "losses": []})  # fmt: skip
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "scenes", *QUICK, "--method", "warp,nothing", "--out", str(out)]) == OK
    found = rows(out)
    assert found["warp"]["error"] == "The numbers became NaN."
    assert found["nothing"]["mae_ratio"] == 1


def test_features_find_what_was_moved(storybook: Runtime) -> None:
    drag = drag_set(2, 5)[1]
    pictures = drag.pictures()
    locator = Features(storybook, Recipe(ensemble=1))
    source = locator.view(pictures.source, drag.before.caption, seed_of(drag.key))
    truth = locator.view(pictures.truth, drag.before.caption, seed_of(drag.key))
    for pair in drag.pairs:
        assert locator.find(source, source, pair).point.distance(pair.handle) < 2
        assert locator.find(source, truth, pair).point.distance(pair.target) < 5


def test_the_same_name_gives_the_same_noise(storybook: Runtime) -> None:
    rgb = drag_set(1, 5)[0].pictures().source
    locator = Features(storybook, Recipe(ensemble=1, shifts=1))
    a, b = (locator.view(rgb, "a face", seed_of("one")) for _ in range(2))
    c = locator.view(rgb, "a face", seed_of("two"))
    assert a.values.equal(b.values) and not a.values.equal(c.values)


def test_only_the_published_model_and_recipe_are_called_dift(storybook: Runtime) -> None:
    assert published(storybook) is None
    assert Features(storybook).name == f"storybook.up2.t{DIFT_TIMESTEP}.e4.s2"


def test_the_peak_lies_between_samples_and_inside_the_disc() -> None:
    import torch

    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    grid = FeatureMap(torch.zeros(1, 16, 20), (1.5, 1.5), (4.0, 4.0), (80, 64))
    like = -0.02 * ((x - 7.3) ** 2 + (y - 5.6) ** 2)
    like[14, 18] = 0.9  # another thing that looks the same, far away
    pair = PointPair(Point(20, 24), Point(36, 24))
    found = peak(like, grid, Disc.around(pair))
    assert found.point.distance(Point(1.5 + 4 * 7.3, 1.5 + 4 * 5.6)) < 1.0


def test_the_search_disc_may_lie_between_samples() -> None:
    import torch

    grid = FeatureMap(torch.zeros(1, 2, 2), (15.5, 15.5), (32.0, 32.0), (64, 64))
    found = peak(torch.zeros(2, 2), grid, Disc(Point(31.5, 0), 3.0))
    assert np.isfinite([found.point.x, found.point.y]).all()
