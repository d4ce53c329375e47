"""LoRA files in and out: every naming, identity, and plain diffusers as the judge."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save, save_file

from workbench.core.config import LoraConfig
from workbench.core.errors import BadInput
from workbench.diffusion import model
from workbench.diffusion.ddim import schedule_from
from workbench.diffusion.lora import initial_state, merged, random_draws, train
from workbench.diffusion.lora_files import (
    LoraCard,
    check,
    read,
    write,
)
from workbench.diffusion.model import Runtime
from workbench.editing.lora_library import LoraLibrary
from workbench.storage.history import Store

LATENT = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def micro(micro_sd: Path) -> Runtime:
    return model.load(str(micro_sd), device="cpu")


def trained(run: Runtime, seed: int = 0) -> dict[str, torch.Tensor]:
    mean, std = run.encode(torch.zeros(1, 3, 64, 64))
    config = LoraConfig(steps=3, rank=4, batch_size=1, learning_rate=0.05)
    made = train(
        run.unet, schedule_from(run.scheduler_config, 50), run.prompt("a robot", (64, 64)), config,
        random_draws(mean, std, batch=1, seed=seed), start=initial_state(run.unet, 4, seed),
    )  # fmt: skip
    return made.state


@torch.no_grad()
def predicted(run: Runtime, state: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    text = run.text("a robot")
    with merged(run.unet, state):
        out: torch.Tensor = run.unet(
            LATENT, 500, text.embedding, added_cond_kwargs=run.added(text, (64, 64))
        ).sample
    return out


@contextlib.contextmanager
def plain_diffusers(run: Runtime) -> Iterator[Any]:
    """A diffusers pipeline round the very same modules, with nothing of ours."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    common: dict[str, Any] = {"vae": run.vae, "unet": run.unet, "scheduler": None}
    (tokenizer, encoder), *second = run._encoders
    if second:
        pipe = StableDiffusionXLPipeline(
            text_encoder=encoder, tokenizer=tokenizer, tokenizer_2=second[0][0],
            text_encoder_2=second[0][1], **common,
        )  # fmt: skip
    else:
        pipe = StableDiffusionPipeline(
            text_encoder=encoder, tokenizer=tokenizer, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, **common,
        )  # fmt: skip
    yield pipe
    pipe.unload_lora_weights()


@pytest.mark.parametrize("kind", ["sd1", "sd2v", "sdxl"])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_what_is_trained_here_loads_in_plain_diffusers(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str, layout: str
) -> None:
    run = model.load(str(tiny_model(kind)), device="cpu")
    state = trained(run)
    ours = predicted(run, state)
    assert (ours - predicted(run)).abs().max() > 1e-2
    (tmp_path / "mine.safetensors").write_bytes(write(state, LoraCard(rank=4), layout))
    with plain_diffusers(run) as pipe:
        pipe.load_lora_weights(tmp_path, weight_name="mine.safetensors")
        theirs = predicted(run)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "layout"),
    [
        ("masked/lora_official", "doubled prefix"),
        ("gooddrag_masked/lora_gooddrag", "attention processors"),
    ],
)
def test_the_references_files_are_read(
    micro: Runtime, reference_dir: Path, folder: str, layout: str
) -> None:
    """Both hold the weights of masked/lora_peft under other names."""
    raw = (reference_dir / folder / "pytorch_lora_weights.safetensors").read_bytes()
    file = read(raw, "theirs")
    assert file.layout == layout
    golden = load_file(reference_dir / "masked/lora_peft/pytorch_lora_weights.safetensors")
    expected = {"unet." + k.removeprefix("unet."): v for k, v in golden.items()}
    assert file.weights.keys() == expected.keys()
    assert all(torch.equal(file.weights[k], expected[k]) for k in expected)
    said = check(file, micro.unet, name="theirs", model=micro.fingerprint)
    assert [n.code for n in said] == ["no-picture"]


def test_kohya_round_trip_with_alpha(micro: Runtime) -> None:
    state = trained(micro)
    raw = write(state, LoraCard(), "kohya")
    tensors = dict(read_tensors(raw))
    for key in [k for k in tensors if k.endswith(".alpha")]:
        tensors[key] = torch.tensor(2.0)  # rank 4, so a scale of 1/2
    file = read(save(tensors), "kohya")
    assert (file.layout, file.rank, file.notices) == ("kohya", 4, ())
    for key, tensor in file.weights.items():
        scale = 0.5 if ".lora_B." in key else 1.0
        assert torch.allclose(tensor, state[key] * scale)


def read_tensors(raw: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    found: dict[str, torch.Tensor] = load(raw)
    return found


def test_identity_card_travels(micro: Runtime) -> None:
    card = LoraCard(
        model="wb1:1", model_name="micro", image="wb1:2", image_name="robot.png", prompt="ξ \U0001f916",
        rank=4, steps=3, seed=7, config={"rank": 4},
    )  # fmt: skip
    assert read(write(trained(micro), card)).card == card


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rank": "four"}', '{"config": 3}', '{"steps": true}']
)
def test_a_damaged_card_is_an_empty_one(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert LoraCard.from_text(text) == LoraCard()
    assert "damaged" in caplog.text


def test_lora_of_another_model_or_picture(micro: Runtime) -> None:
    file = read(write(trained(micro), LoraCard(
        model=micro.fingerprint, image="wb1:a", image_name="robot.png"
    )))  # fmt: skip
    known = {"name": "my robot", "model": micro.fingerprint}
    assert check(file, micro.unet, image="wb1:a", **known) == []
    (warning,) = check(file, micro.unet, image="wb1:b", **known)
    assert warning.code == "other-picture"
    assert "robot.png" in warning
    with refusal("other-model"):
        check(file, micro.unet, name="my robot", model="wb1:other")
    (warning,) = check(file, micro.unet, name="my style", model="wb1:other", style=True)
    assert warning.code == "other-model"


def test_lora_of_another_architecture_is_refused(
    micro: Runtime, tiny_model: Callable[[str], Path]
) -> None:
    other = model.load(str(tiny_model("sdxl")), device="cpu")
    file = read(write(trained(other), LoraCard()))
    with refusal("misfit"):
        check(file, micro.unet, name="xl", model=micro.fingerprint, style=True)


def test_text_encoder_weights_are_named_as_unused(micro: Runtime) -> None:
    state = dict(trained(micro))
    state["text_encoder.layers.0.q_proj.lora_A.weight"] = torch.zeros(4, 32)
    file = read(write(state, LoraCard()))
    notices = check(file, micro.unet, name="s", model=micro.fingerprint, style=True)
    assert [n.code for n in notices] == ["text-part"]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "empty"),
        (b"\x80\x04\x95 a pickle", "pickle"),
        (save({"conv.weight": torch.zeros(1)}), "unknown-tensor"),
        (save({"unet.conv_in.lora_A.weight": torch.full((1, 2), torch.nan)}), "not-finite"),
        (save({"unet.conv_in.lora_A.weight": torch.zeros(1, 2)}), "half"),
        (save({"model.diffusion_model.out.2.bias": torch.zeros(1)}), "unet"),
        (save({"unet.conv_in.lora_A.weight": torch.zeros(1, 2)})[:-1], "cut-short"),
    ],
)
def test_fault_24_what_is_no_lora(raw: bytes, code: str) -> None:
    with refusal(code):
        read(raw, "mine")


def test_library_keeps_names_apart(micro: Runtime, tmp_path: Path) -> None:
    store = Store(tmp_path / "history")
    library = LoraLibrary(tmp_path / "loras", store)
    raw = write(trained(micro), LoraCard(prompt="x"))
    assert library.entries() == []
    library.put("My robot (2)", raw)
    with refusal("name-taken"):
        library.put("My robot (2)", raw)
    library.put("My robot (2)", raw, replace=True)
    (entry,) = library.entries()
    assert (entry.name, entry.bytes) == ("My robot (2)", len(raw))
    ref = library.reference("My robot (2)", 0.5)
    assert (store.blob(ref.id), ref.name, ref.weight) == (raw, "My robot (2)", 0.5)
    elsewhere = tmp_path / "elsewhere.safetensors"
    save_file(read_tensors(raw), elsewhere)
    assert library.reference(str(elsewhere)).name == "elsewhere"
    library.remove("My robot (2)")
    assert library.entries() == []
    assert store.blob(ref.id) == raw  # what an edit uses stays


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 65, "a\0b", "nul."])
def test_fault_12_names_cannot_leave_the_library(name: str, tmp_path: Path) -> None:
    library = LoraLibrary(tmp_path / "loras", Store(tmp_path / "history"))
    with pytest.raises(BadInput):
        library.put(name, b"x")
    with pytest.raises(BadInput):
        library.get(name)
