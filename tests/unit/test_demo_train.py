"""All stages end to end with the real classes at a tiny size: a folder that diffusers loads."""

import itertools
import json
import logging
import shutil
import time
import types

import pytest
import torch
from refusals import refusal

from training import card, config
from training.cli import main
from training.config import TrainOptions
from training.evaluate import EvaluateOptions, evaluate
from training.loop import read_tensors
from training.samples import contact_sheet
from training.train import export, train
from workbench.core.errors import ModelError

MINUTES = 0.02


@pytest.fixture(scope="module", autouse=True)
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", autouse=True)
def own_time(patch):
    """A clock that goes on by a twentieth of a second whenever it is read: some steps, on any machine."""
    ticks = itertools.count(1000.0, 0.05)
    clock = types.SimpleNamespace(**{**vars(time), "monotonic": lambda: next(ticks)})
    for module in ("bank", "classifier", "loop", "samples", "train"):
        patch.setattr(f"training.{module}.time", clock)


@pytest.fixture(scope="module", autouse=True)
def tiny(patch):
    patch.setitem(config.VAE, "block_out_channels", (4, 4, 8, 8))
    patch.setitem(config.VAE, "norm_num_groups", 4)
    patch.setitem(config.UNET, "block_out_channels", (8, 8, 16, 16))
    patch.setitem(config.UNET, "norm_num_groups", 4)
    patch.setitem(config.UNET, "attention_head_dim", 2)
    patch.setitem(config.UNET, "cross_attention_dim", 16)
    for name in ("hidden_size", "intermediate_size", "projection_dim"):
        patch.setitem(config.TEXT, name, 16)
    patch.setattr("training.vae_train.MEASURED_SCENES", 4)
    patch.setattr("training.unet_train.JUDGED_ON_CPU", 4)
    patch.setattr("training.bank.CAPTION_SCENES", 50)
    patch.setattr("training.samples.SHEET_SCENES", 1)
    patch.setattr("training.samples.SHEET_STEPS", 2)


def options(tmp_path, **changes):
    base = {
        "out": tmp_path / "weights",
        "work": tmp_path / "work",
        "device": "cpu",
        "vae_minutes": MINUTES,
        "bank_minutes": MINUTES,
        "unet_minutes": MINUTES,
        "vae_batch": 2,
        "unet_batch": 2,
        "bank_scenes": 4,
        "precision": "fp32",
        "keep_bank": True,
    }
    return TrainOptions(**{**base, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All stages run once: (folder with `weights` and `work`, what was reported)."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(options(folder))


@pytest.fixture
def trained(made, tmp_path):
    """A copy of that in `tmp_path`; what was reported."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    return made[1]


def test_stages_need_the_ones_before(tmp_path):
    with refusal("missing-stage"):
        train(options(tmp_path, stages=("bank",)))
    with refusal("missing-stage"):
        train(options(tmp_path, stages=("export",)))


def test_stages_one_after_the_other_resumed_and_continued(tmp_path, trained, caplog):
    from diffusers import StableDiffusionPipeline

    caplog.set_level(logging.INFO)
    first, folder = trained, tmp_path / "weights"
    assert not (tmp_path / "weights.partial").exists()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        ["a red robot", ""], num_inference_steps=2, guidance_scale=3.0, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert made.shape == (2, 3, 256, 256)
    assert torch.isfinite(made).all()
    assert pipeline.vae.config.scaling_factor == pytest.approx(1, abs=0.1)
    for path in folder.rglob("*.safetensors"):
        tensors, _ = read_tensors(path)
        assert {t.dtype for t in tensors.values()} == {torch.float16}, path.name

    written = card.read_card(folder)
    assert written["training"]["unet"]["steps"] == first["unet"]["steps"] > 0
    seen, steps = written["training"]["vae"]["pictures_seen"], first["vae"]["steps"]
    assert steps <= seen <= 2 * steps  # two crops, or one whole picture
    assert set(written["files"]) == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    for name, facts in written["files"].items():
        assert facts == card.weight_files(folder)[name]

    # The second run goes on from the checkpoint, with the stored bank.
    caplog.clear()
    again = options(tmp_path, stages=("unet", "export"), resume=True)
    second = train(again)
    assert second["unet"]["steps"] > first["unet"]["steps"]
    assert "read from the work folder" in caplog.text

    # A third starts from the shipped folder alone and adds to what its card says.
    third = options(tmp_path, work=tmp_path / "other", source=folder, stages=("unet", "export"))
    train(third)
    grown = card.read_card(folder)
    assert grown["training"]["started_from"]["unet"]["steps"] == second["unet"]["steps"]
    assert grown["training"]["vae"] == written["training"]["vae"]
    for path in folder.rglob("*.json"):  # a person's folders are nobody else's business
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name

    figures = evaluate(
        folder,
        EvaluateOptions(
            device="cpu", scenes=4, samples=2, steps=2, classifier_seconds=0.5,
            sheet=tmp_path / "sheet.png",
        ),
    )  # fmt: skip
    assert (tmp_path / "sheet.png").exists()
    assert (tmp_path / "sheet-reconstructed.png").exists()
    final = card.read_card(folder)
    assert final["evaluation"] == figures
    assert final["training"] == grown["training"]
    assert figures["prompt_adherence"]["samples"] == 2
    assert 0 <= figures["prompt_adherence"]["both"] <= figures["prompt_adherence"]["kind"] <= 1


def test_an_export_that_is_too_large_leaves_the_old_model(tmp_path, trained, monkeypatch):
    run = options(tmp_path)
    before = card.weight_files(run.out)
    monkeypatch.setattr(config, "WEIGHT_LIMIT", 1_000)
    with refusal("too-large"):
        export(run)
    assert card.weight_files(run.out) == before


def test_a_damaged_card_is_told(tmp_path):
    (tmp_path / card.CARD).write_text("{", encoding="utf-8")
    with refusal("damaged", kind=ModelError):
        card.read_card(tmp_path)
    (tmp_path / card.CARD).write_text("[]", encoding="utf-8")
    with refusal("wrong-type", kind=ModelError):
        card.read_card(tmp_path)


def test_the_contact_sheet_keeps_order_and_gaps():
    pictures = torch.zeros(3, 3, 4, 4)
    pictures[1, 0] = 1
    sheet = contact_sheet(pictures, columns=2, gap=1)
    assert sheet.size == (11, 11)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    assert sheet.getpixel((1, 1)) == (0, 0, 0)
    assert sheet.getpixel((6, 1)) == (255, 0, 0)
    assert sheet.getpixel((6, 6)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--unet-minutes", "-1"], "unet_minutes is -1"),
        (["train", "--from", "no-such-folder"], "not a folder"),
        (["evaluate", "--model", "no-such-folder"], "There is no model"),
        (["evaluate", "--steps", "0"], "--steps is 0"),
        (["evaluate", "--samples", "0"], "0 samples"),
        (["scenes", "--count", "0"], "--count is 0"),
        (["scenes", "--kind", "teapot"], "'teapot' is unknown"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_scenes_command_draws_a_sheet(tmp_path, capsys):
    from PIL import Image

    path = tmp_path / "new" / "sheet.png"
    code = main(
        ["scenes", "--count", "3", "--columns", "3", "--kind", "face", "--captions", "--out",
         str(path)]
    )  # fmt: skip
    assert code == 0
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 260 + 4, 264)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_train_command_reports_json(tmp_path, capsys):
    code = main(
        ["train", "--stage", "vae", "--minutes", str(MINUTES), "--vae-batch", "1", "--device",
         "cpu", "--precision", "fp32", "--work", str(tmp_path / "work"), "--out",
         str(tmp_path / "out")]
    )  # fmt: skip
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["vae"]["steps"] >= 1
    assert (tmp_path / "work" / "vae" / "config.json").exists()


def test_photos_command_trains_on_a_folder_of_pictures(tmp_path, capsys):
    from PIL import Image

    from training.card import read_card

    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for index in range(4):
        Image.effect_noise((256, 256), 40 + 20 * index).convert("RGB").save(folder / f"{index}.png")
        rows.append({"file": f"{index}.png", "caption": f"grain number {index}", "licence": "CC0",
                     "held_out": index == 3})  # fmt: skip
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "captions.jsonl").write_text(lines, encoding="utf-8")
    code = main(
        ["photos", str(folder), "--vae-minutes", str(MINUTES), "--bank-minutes", str(MINUTES),
         "--unet-minutes", str(MINUTES), "--vae-batch", "2", "--batch", "2", "--bank-scenes", "2",
         "--device", "cpu", "--precision", "fp32", "--work", str(tmp_path / "work"), "--out",
         str(tmp_path / "out")]
    )  # fmt: skip
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["vae"]["held_out"]) == set(report["unet"]["held_out"]) == {"photos", "scenes"}
    assert report["unet"]["bank_pictures"] >= 3 * 4 + 2
    assert read_card(tmp_path / "out")["photos"]["sources"] == [
        {"source": "", "licence": "CC0", "pictures": 3}
    ]
    assert (tmp_path / "work" / "sheets" / "last.png").exists()

    figures = evaluate(
        tmp_path / "out",
        EvaluateOptions(
            device="cpu", scenes=2, samples=1, steps=1, classifier_seconds=0.1, photos=folder
        ),
    )
    assert figures["photos"]["pictures"] == 1
    assert figures["photos"]["psnr_db"] > 0
