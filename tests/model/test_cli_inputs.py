"""Bad command lines and bad files: one sentence that says what to do, exit code 2 or 1, nothing written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refusal

from workbench.app import App
from workbench.cli import main
from workbench.cli.requests import read_mask, read_picture, told
from workbench.core.request import EditRequest, Point, PointPair
from workbench.storage.settings import Settings

PAIR = ["--pair", "24,30:40,30"]


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("sd1")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[:64, :72]
    rgb = np.stack([x * 3, y * 4, (x + y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "robot.png")
    return tmp_path / "robot.png"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--pair", "24,30:400,30"], "Point 1 target (400.0, 30.0) is outside the 72x64 image"),
        (["--pair", "-9,30:4,30"], "handle (-9.0, 30.0) is outside"),
        ([], "give at least one --pair"),
        ([*PAIR, "--model", "sd99"], "There is no model 'sd99'"),
        ([*PAIR, "--model", "./gone"], "There is no model at './gone'"),
        (["--pair", "1e308,3:4,5"], "handle (1e+308, 3.0) is outside"),
        ([*PAIR, "--lora-rank", "0"], "--lora-rank is 0; it must be a whole number from 1 to 128"),
        ([*PAIR, "--drag-learning-rate", "inf"], "--drag-learning-rate is inf"),
        ([*PAIR, "--working-size", "9"], "working size is 9"),
        ([*PAIR, "--lora", "nobody"], "There is no LoRA 'nobody'"),
        ([*PAIR, "--device", "cuda:77"], "'cuda:77' is not there"),
        ([*PAIR, "--seed", "-1"], "seed is -1"),
        ([*PAIR, "-o", "no/such/folder/x.png"], "does not exist"),
        ([*PAIR, "-o", "x.jpg"], "does not end in .png"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    picture: Path, model: Path, given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["edit", str(picture), "--model", str(model), "--device", "cpu", *given])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_what_is_no_picture_or_mask(
    picture: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    wrong = tmp_path / "wrong.png"
    Image.new("L", (10, 20), 255).resize((20, 40)).save(wrong)
    for given, words in (
        ([str(text), *PAIR], "could not be recognised as a picture"),
        ([str(tmp_path / "gone.png"), *PAIR], "There is no file"),
        ([str(picture), *PAIR, "--mask", str(wrong)], "20x40 px but the picture is 72x64 px"),
        ([str(picture), *PAIR, "--mask", str(text)], "could not be recognised as a picture"),
        ([str(picture), "--points", str(text)], "is not valid JSON"),
        ([str(picture), *PAIR, "-o", str(picture)], "would overwrite the picture"),
    ):
        assert main(["edit", *given, "--model", str(model)]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1


def test_an_inverted_mask_is_said_and_can_be_turned_round(
    picture: Path, tmp_path: Path, own_cache: Path
) -> None:
    app = App(Settings(folder=own_cache))
    try:
        read = read_picture(app, picture)
        pixels = np.full((64, 72), 255, np.uint8)
        pixels[20:40, 16:50] = 0
        Image.fromarray(pixels).save(tmp_path / "m.png")
        pairs = (PointPair(Point(24, 30), Point(40, 30)),)
        request = EditRequest(image=read.asset, pairs=pairs)
        for invert, codes in ((False, ["mask-inverted", "mask-area"]), (True, ["mask-area"])):
            mask, said = read_mask(
                app, read.asset, read.rgb, pairs, tmp_path / "m.png", invert=invert
            )
            assert (mask is not None, said) == (True, [])
            given = dataclasses.replace(request, mask=mask)
            assert [n.code for n in told(app, given, strict=False)] == codes
            if not invert:
                with refusal("strict") as caught:
                    told(app, given, strict=True)
                assert [f["code"] for f in caught.value.values["findings"]] == ["mask-inverted"]
            else:
                told(app, given, strict=True)
    finally:
        app.close()


def test_a_model_that_cannot_be_opened_is_code_1(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, words in (("old.ckpt", "is a pickle"), (str(tmp_path), "lacks unet/config.json")):
        assert main(["edit", str(picture), *PAIR, "--model", model]) == 1
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is no JSON"),
        ("[]", "at least one"),
        ("[3]", "entry 1 is no JSON object"),
        ('[{"picture": "robot.png"}]', "lacks 'out'"),
        ('[{"picture": "robot.png", "out": "a.png", "colour": 1}]', "does not know 'colour'"),
        ('[{"picture": "robot.png", "out": "robot.png"}]', "would overwrite"),
        ('[{"picture": "robot.png", "out": "a.png", "pairs": [[1, 2]]}]', "four numbers"),
        ('[{"picture": "r", "out": "a.png"}, {"picture": "r", "out": "a.png"}]', "two entries"),
        ('[{"picture": "robot.png", "out": "a.png", "pairs": [[1,2,3,4]], "method": "magic"}]',
         "choose one of"),
        ('[{"picture": "robot.png", "out": "a.png", "pairs": [[1,2,3,4]], "options": {"x": 1}}]',
         "no option 'x'"),
    ],
)  # fmt: skip
def test_bad_batch_files(
    picture: Path, text: str, words: str, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "jobs.json"
    file.write_text(text)
    code = main(["batch", str(file), "--model", str(model), "--quiet"])
    out, err = capsys.readouterr()
    assert code != 0
    assert words in err + out
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("cache clear --kind nix", "There is no kind 'nix' in the cache; there are: lora"),
        ("cache list --kind nix", "There is no kind 'nix'"),
        ("cache clear --older-than -1", "--older-than is -1; it must be 0 days or more"),
        ("history list --limit -3", "--limit is -3; give 0 for all"),
        ("history export {here}", "does not end in .zip"),
        ("history export {here}/all.tar", "does not end in .zip"),
        ("history export {here}/no/all.zip", "does not exist; make it first"),
        ("history import {here}/gone.zip", "There is no file"),
        ("history import {here}/robot.png", "it is no zip, or its end is missing"),
        ("history show nobody", "an id has 26 characters"),
        ("train {here}/robot.png --name ../up", "cannot be a LoRA's name"),
        ("loras import {here}/robot.png", "robot.png is not a .safetensors file"),
        ("loras show nobody", "There is no LoRA 'nobody'"),
        ("edit {here}/robot.png --pair 1,1:9,9 --lora {here}/bad.safetensors",
         "bad.safetensors is not a safetensors file"),
        ("generate robot -o {here}/robot.png", "is a file; name a folder"),
        ("models add storybook {here}", "'storybook' is a built-in model"),
        ("models add a/b {here}", "is no name for a model"),
        ("sweep {here}/robot.png --vary method=warp,auto", "give at least one --pair"),
        ("demo scenes --out {here} --count 1", "is no picture's name"),
        ("demo train --minutes -1", "--minutes is -1; give more than 0"),
        ("demo train --device tpu --work {here}/w --out {here}/o", "There is no device 'tpu'"),
        ("demo evaluate --device tpu", "There is no device 'tpu'"),
        ("demo evaluate --model {here}", "There is no model in"),
        ("generate x --generate-steps 1 -o {here}", "--generate-steps is 1"),
        ("sweep {here}/robot.png --pair 1,1:9,9 --vary method=nix", "method is 'nix'"),
        ("replay last", "The history is empty"),
        ("replay nobody", "an id has 26 characters"),
    ],
)  # fmt: skip
def test_other_commands_say_what_to_do(
    picture: Path, given: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    before = sorted(tmp_path.glob("*.*"))
    assert main([part.format(here=tmp_path) for part in given.split()]) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert err.count("\n") == 1
    assert "not foreseen" not in err
    assert out == ""
    assert sorted(tmp_path.glob("*.*")) == before


def test_a_folder_that_cannot_be_used_is_named(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(picture))  # a file
    for given in (["history", "list"], ["cache", "size"]):
        assert main(given) == 1
        err = capsys.readouterr().err
        assert f"it is in {picture}; WORKBENCH_CACHE names another" in err
        assert err.count("\n") == 1
