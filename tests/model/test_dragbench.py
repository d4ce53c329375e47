"""`bench dragbench` on tiny sets: the four distances, resumption, refused samples, honest names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_bench import picture
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import dragbench_run
from benchmarks.distances import (
    Distances,
    Extractor,
    best,
    discs,
    similarities,
)
from benchmarks.locate import (
    Features,
    Recipe,
    published,
    seed_of,
)
from benchmarks.readers import Sample
from benchmarks.rows import read_records, rows_of
from workbench import edit
from workbench.app import App
from workbench.cli import BAD_INPUT, OK, main
from workbench.core.errors import ModelError
from workbench.core.request import Point, PointPair
from workbench.diffusion import model
from workbench.diffusion.model import Runtime
from workbench.diffusion.registry import ModelSpec
from workbench.imaging.decode import decode, encode_png
from workbench.storage.settings import Settings

PAIR = PointPair(Point(24, 30), Point(44, 30))

DEFINITIONS = ("global", "mask", "discs", "global_e1")


@pytest.fixture(scope="module")
def micro(micro_sd: Path) -> Runtime:
    spec = ModelSpec(name="micro", path=str(micro_sd), native_size=64)
    return model.load(spec, device="cpu")


@pytest.fixture(autouse=True)
def registered(own_cache: Path, micro_sd: Path) -> None:
    """`--model micro`: its features are those of pictures of 64 px, not of 512."""
    own_cache.mkdir(exist_ok=True)
    table = f'[micro]\npath = "{micro_sd.as_posix()}"\nnative_size = 64\n'
    own_cache.joinpath("models.toml").write_text(table, encoding="utf-8")


def sample(**more: Any) -> Sample:
    mask = np.zeros((64, 72), np.bool_)
    mask[8:56, 8:64] = True
    base: dict[str, Any] = {
        "name": "robots/one", "category": "robots", "rgb": picture(72, 64), "mask": mask,
        "pairs": (PAIR,), "prompt": "a robot",
    }  # fmt: skip
    return Sample(**{**base, **more})


def folder(top: Path, *names: str) -> Path:
    """DragBench's layout; each picture differs a little."""
    for i, name in enumerate(names):
        one = top / name
        one.mkdir(parents=True)
        made = sample(rgb=picture(72, 64, seed=10 * i))
        (one / "original_image.png").write_bytes(encode_png(made.rgb))
        meta = {"prompt": "a robot", "points": [[24, 30], [44, 30]],
                "mask": made.mask.astype(np.uint8)}  # type: ignore[union-attr]  # fmt: skip
        (one / "meta_data.pkl").write_bytes(pickle.dumps(meta))
    return top


# --- the command ------------------------------------------------------------------------------------------


def rows(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = rows_of(read_records([path])).values()
    return {(r["sample"], r["method"]): r for r in found}


def test_a_run_its_names_and_its_resumption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = folder(tmp_path / "set", "animals/b", "animals/a", "other/c")
    broken = top / "other" / "d"
    broken.mkdir()
    (broken / "meta_data.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    out, pictures = tmp_path / "rows.jsonl", tmp_path / "pictures"
    args = ["bench", "dragbench", str(top), "--out", str(out), "--model", "micro",
            "--lora-steps", "0", "--inversion-steps", "2", "--working-size", "64",
            "--method", "nothing,warp"]  # fmt: skip
    assert main([*args, "--limit", "1"]) == OK
    assert list(rows(out)) == [("animals/a", "nothing"), ("animals/a", "warp")]
    assert main([*args, "--pictures", str(pictures)]) == OK
    shown = capsys.readouterr().out
    found = rows(out)
    assert len(found) == 6
    assert [(r["sample"], r["why"]) for r in read_records([out]) if r["kind"] == "refused"] == [
        ("other/d", found_why(out))
    ]
    assert "asks for os.system" in found_why(out)

    # without Stable Diffusion 2.1 the published name is not used, and that is said
    assert "is not on this disk" in shown and "| warp | 3 | 3 |" in shown
    for row in found.values():
        assert not [k for k in row if k.startswith("md")]
        for name in DEFINITIONS:
            assert len(row[f"own_{name}_each"]) == 1
            assert row[f"own_{name}"] == pytest.approx(row[f"own_{name}_each"][0], abs=1e-4)
        assert {"dai_1", "dai_5", "dai_10", "dai_20"} <= set(row)
    nothing = found["animals/a", "nothing"]
    assert nothing["ssim"] == 1 and nothing["outside_max"] == 0
    assert nothing["own_global"] == pytest.approx(20)  # the feature is where it was
    # of a cell of 8 px that is nearest to all its pixels the first counts, as published
    assert 12 / 72 <= nothing["own_discs"] <= np.hypot(28 / 72, 8 / 64)
    warp = found["animals/a", "warp"]
    assert warp["ssim"] < 1 and warp["outside_max"] == 0 and warp["stop"] == "ONE_STEP"
    kept = pictures / "warp" / "animals" / "b" / "dragged_image.png"
    assert decode(kept.read_bytes()).rgb.shape == (64, 72, 3)
    assert not (pictures / "warp" / "animals" / "a").exists()  # was measured before

    # all is there: nothing is measured again; another model's figures do not go into the file
    before = len([r for r in read_records([out]) if r["kind"] == "row"])
    assert main(args) == OK
    assert len([r for r in read_records([out]) if r["kind"] == "row"]) == before == 6
    assert main(["bench", "dragbench", "--report", str(out)]) == OK
    other = ["3" if a == "2" else a for a in args]
    assert main(other) == BAD_INPUT
    assert "was made with inversion" in capsys.readouterr().err


def found_why(path: Path) -> str:
    return str(next(r["why"] for r in read_records([path]) if r["kind"] == "refused"))


def test_figures_do_not_depend_on_order_or_place(tmp_path: Path) -> None:
    """The same picture, first among others and alone under another name: the same numbers."""
    common = ["--model", "micro", "--lora-steps", "1", "--inversion-steps", "2",
              "--working-size", "64", "--method", "warp"]  # fmt: skip
    both, alone = folder(tmp_path / "both", "x/1", "x/2"), tmp_path / "alone"
    (alone / "y").mkdir(parents=True)
    (both / "x" / "2").rename(alone / "y" / "0")
    folder(both / "again", "z/1", "z/2")
    found = []
    for top in (both, alone):
        out = tmp_path / f"{top.name}.jsonl"
        assert main(["bench", "dragbench", str(top), "--out", str(out), *common]) == OK
        found.append({r["drag"]: r for r in rows(out).values()})
    (shared,) = set(found[0]) & set(found[1])
    a, b = (f[shared] for f in found)
    assert a["sample"] != b["sample"]
    figures = [k for k in a if k.startswith(("own_", "dai", "ssim", "outside"))]
    assert len(figures) > 10
    assert {k: a[k] for k in figures} == {k: b[k] for k in figures}


def test_a_method_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_more: Any) -> None:
        raise ModelError("The numbers became NaN.")

    monkeypatch.setattr(edit, "run_edit", fail)
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "dragbench", str(folder(tmp_path / "set", "a/1")), "--out", str(out),
                 "--model", "micro", "--method", "warp"]) == OK  # fmt: skip
    assert rows(out)["a/1", "warp"]["error"] == "The numbers became NaN."


def test_what_cannot_be_begun_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, sentence in (
        ([], "Give the FOLDER"),
        ([str(tmp_path), "--out", "x"], "holds no drags"),
        ([str(tmp_path), "--out", "x", "--limit", "-1"], "--limit is -1"),
        ([str(tmp_path), "--method", "magic"], "magic"),
    ):
        assert main(["bench", "dragbench", *args]) == BAD_INPUT
        assert sentence in capsys.readouterr().err


# --- the definitions --------------------------------------------------------------------------------------


def test_upsampling_is_torchs_and_the_match_is_the_published_one() -> None:
    """Against `interpolate` and `CosineSimilarity`, which the published programs call."""
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(6, 5, 7, generator=generator) for _ in range(2))
    size = (50, 37)
    pairs = [PAIR, PointPair(Point(49, 36), Point(0, 0))]
    for nearest in (False, True):
        how = {"mode": "nearest"} if nearest else {"mode": "bilinear", "align_corners": False}
        full = [
            torch.nn.functional.interpolate(f[None], size[::-1], **how)[0]  # type: ignore[arg-type]
            for f in (before, after)
        ]
        maps = similarities(before, after, pairs, size, nearest=nearest)
        for pair, found in zip(pairs, maps, strict=True):
            vector = full[0][:, int(pair.handle.y), int(pair.handle.x)][:, None, None]
            wanted = torch.nn.functional.cosine_similarity(vector, full[1], dim=0)
            assert np.allclose(found, wanted.numpy(), atol=1e-5)


def test_the_four_definitions_differ_where_they_should(micro: Runtime) -> None:
    """A likeness far away costs `global`, not `discs`; one outside the mask costs `mask` nothing."""
    one = sample()
    measured = Distances(one, Extractor.of(micro))(one.rgb)
    assert set(measured) == set(DEFINITIONS)
    like = np.zeros((64, 72), np.float32)
    like[60, 70] = 1.0  # outside mask and discs
    like[10, 10] = 0.9  # inside the mask only
    like[30, 43] = 0.8  # near the target
    (near,) = discs([PAIR], (72, 64))
    assert best(like, None) == (70, 60)
    assert best(like, one.mask) == (10, 10)
    assert best(like, near) == (43, 30)


@given(
    hx=st.integers(0, 71), hy=st.integers(0, 63), tx=st.integers(0, 71), ty=st.integers(0, 63)
)  # fmt: skip
def test_discs_hold_both_ends_and_reach_no_further(hx: int, hy: int, tx: int, ty: int) -> None:
    (mask,) = discs([PointPair(Point(hx, hy), Point(tx, ty))], (72, 64))
    assert mask[hy, hx] and mask[ty, tx]
    radius = max(5.0, np.hypot(hx - tx, hy - ty) / np.sqrt(2))
    y, x = np.nonzero(mask)
    reach = np.minimum(np.hypot(x - hx, y - hy), np.hypot(x - tx, y - ty))
    assert reach.max() <= radius + 1e-9


def test_no_mask_means_the_whole_picture(micro: Runtime) -> None:
    one = sample(mask=None)
    measured = Distances(one, Extractor.of(micro))(picture(72, 64, seed=60))
    assert measured["mask"] == measured["global"]
    with pytest.raises(ValueError, match="the source"):
        Distances(one, Extractor.of(micro))(picture(64, 64))


def test_the_published_recipe_draws_its_latents(micro: Runtime) -> None:
    rgb = picture(72, 64)
    mean = Features(micro, Recipe(ensemble=2, shifts=1))
    drawn = Features(micro, Recipe(ensemble=2, shifts=1, posterior=True))
    a, b, c = (f.view(rgb, "x", seed_of("x")).values for f in (mean, drawn, drawn))
    assert b.equal(c) and not a.equal(b)


def test_only_stable_diffusion_2_1_gets_the_published_name(
    own_cache: Path, micro: Runtime, micro_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of that name is not enough; where the real one is, it is used beside the editing one."""
    app = App(Settings(folder=own_cache, device="cpu", threads=1, model="micro"))
    found, sentence = dragbench_run.extractor_for(app, micro)
    assert (found.dift, found.prefix, found.runtime) == (False, "own", micro)
    assert found.name == "micro.up2.t261.e8"
    assert "not md_..." in sentence

    named = model.load(ModelSpec(name="sd21", path=str(micro_sd)), device="cpu")
    assert published(named) is None  # its text is 32 numbers wide, not 1024

    named.unet.register_to_config(cross_attention_dim=1024)
    monkeypatch.setattr(dragbench_run, "find_files", lambda *_a: None)  # as if it were on the disk
    monkeypatch.setattr(dragbench_run.model, "load", lambda *_a, **_k: named)
    found, sentence = dragbench_run.extractor_for(app, micro)
    app.close()
    assert (found.dift, found.prefix, found.runtime) == (True, "md", named)
    assert found.recipe == Recipe(timestep=261, block=2, ensemble=8, shifts=1, posterior=True)
    assert sentence == "Mean distance: DIFT (sd21.up1.t261.e8)."
