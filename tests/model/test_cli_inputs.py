"""Bad command lines and bad files: one sentence that says what to do, exit code 2 or 1, nothing written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refusal

from workbench.app import App
from workbench.cli import execute, main
from workbench.cli.requests import read_mask, read_picture, told
from workbench.core.errors import ModelError
from workbench.core.request import EditRequest, Point, PointPair
from workbench.storage.settings import Settings

PAIR = ["--pair", "24,30:40,30"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[:64, :72]
    rgb = np.stack([x * 3, y * 4, (x + y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "robot.png")
    return tmp_path / "robot.png"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["--pair", "24,30:400,30"], "outside-picture"),
        (["--pair", "-9,30:4,30"], "outside-picture"),
        ([], "no-arrow"),
        ([*PAIR, "--model", "sd99"], "unknown-name"),
        ([*PAIR, "--model", "./gone"], "no-file"),
        (["--pair", "1e308,3:4,5"], "outside-picture"),
        ([*PAIR, "--lora-rank", "0"], "out-of-range"),
        ([*PAIR, "--drag-learning-rate", "inf"], "out-of-range"),
        ([*PAIR, "--working-size", "9"], "out-of-range"),
        ([*PAIR, "--lora", "nobody"], "no-lora"),
        ([*PAIR, "--device", "cuda:77"], "no-device"),
        ([*PAIR, "--seed", "-1"], "out-of-range"),
        ([*PAIR, "-o", "no/such/folder/x.png"], "no-folder"),
        ([*PAIR, "-o", "x.jpg"], "bad-name"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    picture: Path, model: Path, given: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["edit", str(picture), "--model", str(model), "--device", "cpu", *given]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    with refusal(code):
        execute(arguments)


def test_what_is_no_picture_or_mask(
    picture: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    wrong = tmp_path / "wrong.png"
    Image.new("L", (10, 20), 255).resize((20, 40)).save(wrong)
    for given, code in (
        ([str(text), *PAIR], "no-picture"),
        ([str(tmp_path / "gone.png"), *PAIR], "no-file"),
        ([str(picture), *PAIR, "--mask", str(wrong)], "mask-size"),
        ([str(picture), *PAIR, "--mask", str(text)], "no-picture"),
        ([str(picture), "--points", str(text)], "not-json"),
        ([str(picture), *PAIR, "-o", str(picture)], "overwrite"),
    ):
        arguments = ["edit", *given, "--model", str(model)]
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
        with refusal(code):
            execute(arguments)


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
    for model, code in (("old.ckpt", "pickle"), (str(tmp_path), "missing-file")):
        arguments = ["edit", str(picture), *PAIR, "--model", model]
        assert main(arguments) == 1
        with refusal(code, kind=ModelError):
            execute(arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is not JSON"),
        ("[]", "at least one"),
        ("[3]", "entry 1 is not a JSON object"),
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
    ("given", "code"),
    [
        ("cache clear --kind nix", "unknown-name"),
        ("cache list --kind nix", "unknown-name"),
        ("cache clear --older-than -1", "out-of-range"),
        ("history list --limit -3", "out-of-range"),
        ("history export {here}", "bad-name"),
        ("history export {here}/all.tar", "bad-name"),
        ("history export {here}/no/all.zip", "no-folder"),
        ("history import {here}/gone.zip", "no-file"),
        ("history import {here}/robot.png", "not-a-zip"),
        ("history show nobody", "bad-id"),
        ("train {here}/robot.png --name ../up", "bad-name"),
        ("loras import {here}/robot.png", "not-safetensors"),
        ("loras show nobody", "no-lora"),
        ("edit {here}/robot.png --pair 1,1:9,9 --lora {here}/bad.safetensors",
         "not-safetensors"),
        ("generate robot -o {here}/robot.png", "no-folder"),
        ("models add storybook {here}", "built-in"),
        ("models add a/b {here}", "bad-name"),
        ("sweep {here}/robot.png --vary method=warp,auto", "no-arrow"),
        ("demo scenes --out {here} --count 1", "bad-name"),
        ("demo train --minutes -1", "out-of-range"),
        ("demo train --device tpu --work {here}/w --out {here}/o", "unknown-name"),
        ("demo evaluate --device tpu", "unknown-name"),
        ("demo evaluate --model {here}", "no-file"),
        ("generate x --generate-steps 1 -o {here}", "out-of-range"),
        ("sweep {here}/robot.png --pair 1,1:9,9 --vary method=nix", "out-of-range"),
        ("replay last", "no-edit"),
        ("replay nobody", "bad-id"),
    ],
)  # fmt: skip
def test_other_commands_say_what_to_do(
    picture: Path, given: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    before = sorted(tmp_path.glob("*.*"))
    arguments = [part.format(here=tmp_path) for part in given.split()]
    with refusal(code):
        execute(arguments)
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
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
