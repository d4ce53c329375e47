"""The command line on a random model: files in, files out, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import HANG, started, until
from PIL import Image
from safetensors.torch import load_file

from workbench.cli import main
from workbench.core.record import STAGES
from workbench.doctor import Finding, verdict
from workbench.editing import memory
from workbench.imaging import decode
from workbench.jobs import run_job

REPO = Path(__file__).resolve().parents[2]
SMALL = ["--working-size", "64", "--lora-steps", "2", "--lora-rank", "2", "--lora-batch-size", "1",
         "--inversion-steps", "4", "--inversion-strength", "0.5", "--device", "cpu"]  # fmt: skip
PAIR = ["--pair", "24,30:40,30"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[:64, :72]
    rgb = np.stack([x * 3, y * 4, (x + y) % 256], axis=-1).astype(np.uint8)
    rgb[24:40, 16:32] = (210, 40, 40)
    Image.fromarray(rgb).save(tmp_path / "robot.png")
    return tmp_path / "robot.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    painted = np.zeros((64, 72), np.uint8)
    painted[12:52, 8:60] = 255
    Image.fromarray(painted).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture
def small(model: Path) -> list[str]:
    return ["--model", str(model), *SMALL, "--drag-steps", "2", "--drag-refine", "--quiet"]


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_edit_writes_picture_and_strip(
    picture: Path, mask: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    code = main(["edit", str(picture), *PAIR, "--mask", str(mask), "--prompt", "a robot",
                 "-o", str(out), *small, "--json"])  # fmt: skip
    assert code == 0
    record = said(capsys)
    assert record["status"] == "done"
    assert record["request"]["pairs"] == [[24, 30, 40, 30]]
    assert record["request"]["lora"]["rank"] == 2
    assert record["result"]["change_outside_mask"] == 0
    before, after = decode.decode(picture.read_bytes()), decode.decode(out.read_bytes())
    outside = np.asarray(Image.open(mask)) == 0
    assert np.array_equal(after.rgb[outside], before.rgb[outside])
    strip = decode.decode(Path(record["files"]["strip"]).read_bytes())
    assert strip.width > 2 * before.width
    assert after.edit is not None
    assert after.edit["request"]["prompt"] == "a robot"


def test_edit_in_words_and_again_from_the_cache(
    picture: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["edit", str(picture), *PAIR, "-o", str(tmp_path / "out.png"), *small]
    assert main(given) == 0
    first = capsys.readouterr()
    assert "Left to go (px): 1:" in first.out
    assert "one was proposed from the arrows" in first.out
    assert first.err == ""
    assert main(given) == 0
    assert "from the cache: lora, invert, reference, drag" in capsys.readouterr().out


def test_a_clean_environment_and_progress_on_stderr(
    picture: Path, model: Path, tmp_path: Path, own_cache: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "edit", str(picture), *PAIR, "--whole", "--model",
         str(model), *SMALL, "--drag-steps", "2", "--drag-refine", "-o", str(tmp_path / "o.png"), "--json"],
        cwd=REPO, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"
    assert STAGES["lora"] in done.stderr
    assert "Traceback" not in done.stderr
    assert (own_cache / "history" / "FORMAT").exists()


def test_transparent_pictures_keep_their_alpha(
    picture: Path, small: list[str], tmp_path: Path
) -> None:
    rgba = Image.open(picture).convert("RGBA")
    alpha = np.full((64, 72), 255, np.uint8)
    alpha[:, 60:] = 40
    rgba.putalpha(Image.fromarray(alpha))
    rgba.save(tmp_path / "glass.png")
    out = tmp_path / "out.png"
    assert main(["edit", str(tmp_path / "glass.png"), *PAIR, "-o", str(out), *small]) == 0
    after = np.asarray(Image.open(out))
    assert after.shape == (64, 72, 4)
    assert np.array_equal(after[..., 3], alpha)


def test_train_then_edit_then_replay(
    picture: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = tmp_path / "robot.safetensors"
    common = [*small[: small.index("--drag-steps")], "--quiet"]
    code = main(["train", str(picture), "--prompt", "r", "-o", str(lora), "--name", "robot",
                 "--reconstruction", str(tmp_path / "back.png"), *common, "--json"])  # fmt: skip
    assert code == 0
    made = said(capsys)
    assert len(made["losses"]) == 2
    assert all("lora_" in k for k in load_file(lora))
    assert decode.decode((tmp_path / "back.png").read_bytes()).rgb.shape == (64, 72, 3)

    out = tmp_path / "out.png"
    assert (
        main(["edit", str(picture), "--prompt", "r", *PAIR, "-o", str(out), *small, "--json"]) == 0
    )
    record = said(capsys)
    assert set(record["result"]["cached"]) == {"lora", "invert", "reference"}

    assert main(["replay", record["id"], "--quiet", "--json", "--device", "cpu"]) == 0
    again = said(capsys)
    assert (again["identical"], again["max"], again["mean"]) == (True, 0, 0.0)
    assert record["environment"]["arithmetic"].startswith("lora-")
    assert again["environment"] == {}
    assert again["replayed"] != record["id"]

    assert main(["loras", "show", "robot", "--json"]) == 0
    assert said(capsys)["prompt"] == "r"
    kohya = tmp_path / "kohya.safetensors"
    assert main(["loras", "export", "robot", "-o", str(kohya), "--layout", "kohya"]) == 0
    assert all(k.startswith("lora_unet_") for k in load_file(kohya))
    assert main(["edit", str(picture), *PAIR, "-o", str(out), "--lora", str(kohya), *small]) == 0
    capsys.readouterr()
    assert main(["loras", "remove", "robot"]) == 0
    assert main(["replay", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "--quiet"]) == 2


@pytest.mark.parametrize(
    ("expected", "mean", "code"), [(0.0, 0.1, 1), (1.0, 0.5, 0), (1.0, 1.5, 1), (None, 9.0, 0)]
)
def test_a_replay_fails_when_it_differs_by_more_than_it_should(
    expected: float | None, mean: float, code: int, picture: Path, small: list[str],
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert main(["edit", str(picture), *PAIR, "-o", str(tmp_path / "o.png"), *small]) == 0
    real = run_job.edit

    def off(app: Any, *given: Any, **more: Any) -> Any:
        """As the edit, its picture off by `mean` levels."""
        record = real(app, *given, **more)
        rgb = app.store.image(record.result.image).copy()
        values = rgb.reshape(-1)[: round(mean * rgb.size / 50)]
        values[:] = np.where(values > 200, values - 50, values + 50)
        image = app.store.put_image(rgb).id
        return dataclasses.replace(record, result=dataclasses.replace(record.result, image=image))

    monkeypatch.setattr(run_job, "edit", off)
    monkeypatch.setattr(memory, "expected_difference", lambda _then, _now: expected)
    capsys.readouterr()
    done = main(["replay", "last", "--quiet", "--json", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert (done, err) == (code, "")
    found = json.loads(out)
    assert found["mean"] == pytest.approx(mean, abs=0.01)
    assert (found["expected"], found["as_expected"]) == (expected, code == 0)


def test_history_travels_and_replays_elsewhere(
    picture: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out.png"
    assert main(["edit", str(picture), *PAIR, "-o", str(out), *small, "--json"]) == 0
    edit = said(capsys)["id"]
    zip_file = tmp_path / "mine.zip"
    assert main(["history", "export", str(zip_file), "--with-lora"]) == 0
    assert main(["history", "verify", "--quiet"]) == 0
    assert "0 problems" in capsys.readouterr().out
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "another"))
    assert main(["history", "import", str(zip_file), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["replay", edit, "--quiet", "--json", "--device", "cpu"]) == 0
    again = said(capsys)
    assert again["identical"] is True
    assert main(["history", "list", "--json"]) == 0
    records = {r["id"]: r for r in said(capsys)}
    assert len(records) == 2
    assert records[again["replayed"]]["result"]["cached"] == ["lora"]  # it came along
    assert main(["history", "show", "last", "--json"]) == 0
    assert said(capsys)["id"] == again["replayed"]
    saved = tmp_path / "saved.png"
    assert main(["history", "save", edit, "-o", str(saved)]) == 0
    assert saved.read_bytes() == out.read_bytes()
    assert main(["history", "bin", edit]) == 0
    assert main(["history", "empty-bin"]) == 2
    assert main(["history", "empty-bin", "--yes"]) == 0
    capsys.readouterr()
    assert main(["history", "list", "--json"]) == 0
    assert len(said(capsys)) == 1


def test_cache_is_listed_and_cleared(
    picture: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edit", str(picture), *PAIR, "-o", str(tmp_path / "o.png"), *small]) == 0
    capsys.readouterr()
    assert main(["cache", "list", "--json"]) == 0
    kinds = {e["kind"] for e in said(capsys)}
    assert kinds == {"lora", "inversion", "reference", "state", "features"}
    assert main(["cache", "clear", "--kind", "state"]) == 0
    assert "1 entries" in capsys.readouterr().out
    assert main(["cache", "clear", "--older-than", "1"]) == 0
    assert "0 entries" in capsys.readouterr().out
    assert main(["cache", "size", "--json"]) == 0
    assert set(said(capsys)["kinds"]) == kinds - {"state"}
    assert main(["cache", "clear"]) == 0
    assert main(["cache", "list"]) == 0
    assert "The cache is empty." in capsys.readouterr().out


def test_generate(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", "a robot", "-o", str(tmp_path), "--count", "2", "--model", str(model),
             "--generate-steps", "3", "--generate-width", "64", "--generate-height", "64",
             "--generate-seed", "7", "--quiet", "--json", "--device", "cpu"]  # fmt: skip
    assert main(given) == 0
    made = said(capsys)
    assert [p["config"]["seed"] for p in made["pictures"]] == [7, 8]
    assert decode.decode((tmp_path / "generated-7.png").read_bytes()).rgb.shape == (64, 64, 3)
    assert main([*given, "--generate-width", "65"]) == 2
    assert "multiple of 8" in capsys.readouterr().err


def test_a_generated_picture_is_dragged_without_inversion(
    model: Path, tmp_path: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    top = tmp_path / "made" / "here"
    given = ["generate", "a robot", "-o", str(top), "--model", str(model), "--generate-steps", "4",
             "--generate-width", "64", "--generate-height", "64", "--quiet"]  # fmt: skip
    assert main(given) == 0
    made = next(top.glob("*.png"))
    capsys.readouterr()
    for prompt, own in (([], True), (["--prompt", "a robot"], True), (["--prompt", "x"], False)):
        out = tmp_path / "o.png"
        edit = ["edit", str(made), *PAIR, *small, *prompt, "-o", str(out), "--json"]
        assert main(edit) == 0
        record = said(capsys)
        assert (record["request"]["generation"] is not None) is own
        assert ("lora" in record["result"]["seconds"]) is not own
        assert record["request"]["prompt"] == ("a robot" if own else "x")
    # a result of ours carries a card, too, but it is no generated picture
    assert main(["edit", str(out), *PAIR, *small, "-o", str(tmp_path / "p.png"), "--json"]) == 0
    assert said(capsys)["request"]["generation"] is None


def test_a_result_that_is_edited_again_goes_on_from_its_edit(
    picture: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def edit(file: Path, out: str) -> Any:
        given = ["edit", str(file), *PAIR, "-o", str(tmp_path / out), *small, "--json"]
        assert main(given) == 0
        return said(capsys)

    first = edit(picture, "a.png")
    assert first["request"]["parent"] is None
    second = edit(tmp_path / "a.png", "b.png")
    assert second["request"]["parent"] == first["id"]
    assert edit(tmp_path / "b.png", "c.png")["request"]["parent"] == second["id"]
    sweep = ["sweep", str(tmp_path / "a.png"), *PAIR, "--vary", "drag.steps=1,3", *small]
    assert main([*sweep, "-o", str(tmp_path / "sheet.png"), "--json"]) == 0
    cells = said(capsys)["cells"]
    assert main(["history", "show", cells[1]["edit"], "--json"]) == 0
    assert said(capsys)["request"]["parent"] == first["id"]

    # painted over elsewhere, or a stranger to this history: a picture like any other
    made = decode.decode((tmp_path / "a.png").read_bytes())
    other = made.rgb.copy()
    other[0, 0] ^= 1
    (tmp_path / "other.png").write_bytes(decode.encode_png(other, edit=made.edit))
    assert edit(tmp_path / "other.png", "d.png")["request"]["parent"] is None
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "another"))
    assert edit(tmp_path / "a.png", "e.png")["request"]["parent"] is None


def test_batch_skips_what_is_done_and_goes_on_after_a_failure(
    picture: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"lora.steps": 2, "lora.rank": 2, "lora.batch_size": 1, "inversion.steps": 4,
               "inversion.strength": 0.5, "drag.steps": 2}  # fmt: skip
    jobs = {
        "defaults": {
            "picture": "robot.png",
            "working_size": 64,
            "options": options,
            "mask": "whole",
        },
        "edits": [
            {"out": "a.png", "pairs": [[24, 30, 40, 30]]},
            {"out": "b.png", "pairs": [[24, 30, 400, 30]]},
            {"out": "c.png", "pairs": [[24, 30, 24, 40]]},
        ],
    }
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs))
    given = ["batch", str(file), "--model", str(model), "--device", "cpu", "--quiet", "--json"]
    assert main(given) == 1
    rows = said(capsys)
    assert [r["state"] for r in rows] == ["done", "failed", "done"]
    assert "outside the 72x64 image" in rows[1]["error"]
    assert (tmp_path / "c-strip.png").exists()
    assert main(given) == 1
    assert [r["state"] for r in said(capsys)] == ["there already", "failed", "there already"]


def test_models_are_shown_added_and_removed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list", "--json"]) == 0
    assert {"storybook", "sd15", "sdxl"} <= {m["name"] for m in said(capsys)}
    assert main(["models", "show", str(model), "--json"]) == 0
    facts = said(capsys)
    assert facts["native_size"] == 64
    assert facts["prediction"] == "epsilon"
    assert main(["models", "add", "tiny", str(model), "--native-size", "64"]) == 0
    capsys.readouterr()
    assert main(["models", "show", "tiny", "--json"]) == 0
    assert said(capsys)["fingerprint"] == facts["fingerprint"]
    assert main(["models", "add", "sd15", str(model)]) == 2
    assert main(["models", "add", "x", "no such thing"]) == 2
    assert main(["models", "add", "far", "owner/model"]) == 0
    assert main(["models", "remove", "tiny"]) == 0
    assert main(["models", "show", "tiny"]) == 2


def test_doctor_reports(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = {f["what"]: f for f in said(capsys)}
    assert {"torch", "diffusers", "device cpu", "disk", "cache", "history", "model sd15"} <= set(
        found
    )
    assert found["torch"]["state"] == "ok"
    assert found["cache"]["state"] == "ok"
    assert code == (1 if any(f["state"] == "problem" for f in found.values()) else 0)
    assert "models download sd15" in found["model sd15"]["text"]
    main(["doctor"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("ok  workbench")
    assert verdict([Finding(**f) for f in found.values()]) in shown


def test_doctor_says_what_to_do(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench import doctor
    from workbench.diffusion import device

    monkeypatch.setattr(doctor, "_LEAST_DISK", 1e9)
    monkeypatch.setattr(doctor, "_unused_gpus", lambda: True)
    main(["doctor"])
    out = capsys.readouterr().out
    assert "clear the cache, or set WORKBENCH_CACHE elsewhere" in out
    assert "this torch is built without CUDA" in out
    assert "2 warnings; the rest is in order." in out
    monkeypatch.setattr(device, "memory", lambda _where: device.Memory(10**9, 16 * 10**9))
    main(["doctor"])
    assert "an edit wants 2 GB, so close other programs" in capsys.readouterr().out


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fault_42_signals_cancel(
    picture: Path, model: Path, tmp_path: Path, own_cache: Path, number: signal.Signals, times: int
) -> None:
    """A long job ends with the step at hand, and with a record that says so; a second signal, while the
    model is put back as it was, changes nothing, and no internal line is seen.
    """
    command = [
        sys.executable, "-m", "workbench", "edit", str(picture), *PAIR, "--whole", "--model",
        str(model), *SMALL, "--drag-steps", "2000", "-o", str(tmp_path / "o.png"),
        "--lora-steps", "2000",
    ]  # fmt: skip
    pending = own_cache / "history" / "pending"
    with started(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "WORKBENCH_CACHE": str(own_cache)},
    ) as process:  # fmt: skip
        until(lambda: process.poll() is not None or list(pending.glob("*.json")), every=0.1)
        assert process.poll() is None, process.communicate()[1]
        for _ in range(times):
            process.send_signal(number)
        _, err = process.communicate(timeout=HANG)
    assert process.returncode == 130, err
    assert err.rstrip().endswith("workbench: Cancelled.")
    assert not re.search(r"Traceback|ERROR|WARNING|Exception|workbench\.\w+", err), err
    assert not (tmp_path / "o.png").exists()
    (record,) = [json.loads(f.read_bytes()) for f in (own_cache / "history/edits").glob("*.json")]
    assert record["status"] == "cancelled"
    assert list(pending.glob("*.json")) == []
