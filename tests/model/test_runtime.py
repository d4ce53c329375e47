"""A loaded model: numbers against the authors' program, text, precision, and nothing left behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file
from tiny_models import KINDS

from workbench.core.errors import ModelError
from workbench.diffusion import device, model
from workbench.diffusion.model import Runtime, differences, snapshot, unchanged


@pytest.fixture(scope="module")
def micro(micro_sd: Path) -> Runtime:
    return model.load(str(micro_sd), device="cpu")


@pytest.mark.parametrize("case", ["masked", "nomask", "odd"])
def test_text_and_latent_equal_the_authors_program(
    micro: Runtime, reference_dir: Path, case: str
) -> None:
    import json

    golden = load_file(reference_dir / case / "tensors.safetensors")
    prompt = json.loads((reference_dir / case / "case.json").read_text())["prompt"]
    assert torch.allclose(micro.text(prompt).embedding, golden["drag_text"], atol=1e-4)
    mean, std = micro.encode(golden["source_tensor"])
    assert torch.allclose(mean, golden["vae_latent"], atol=1e-4)
    assert (std > 0).all()
    assert mean.dtype == std.dtype == torch.float32


def test_decoding_stays_in_range(micro: Runtime) -> None:
    pixels = micro.decode(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 20)
    assert pixels.shape == (2, 3, 64, 64)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert pixels.dtype == torch.float32


def test_fault_23_long_prompt_is_cut_and_named(micro: Runtime) -> None:
    text = micro.text("robot " * 300 + "laser")
    assert text.embedding.shape[1] == 77
    assert text.dropped.endswith("laser")
    assert text.notice is not None
    assert "left out" in text.notice
    assert micro.text("a robot").notice is None


@pytest.mark.parametrize(
    "prompt", ["", "\U0001f916\U0001f9be", "a\0b\x07\n\t", "<b>**x**</b>", "ξ" * 900]
)
def test_fault_23_any_prompt_encodes(micro: Runtime, prompt: str) -> None:
    embedding = micro.text(prompt).embedding
    assert embedding.shape == (1, 77, 32)
    assert torch.isfinite(embedding).all()


def test_prompts_are_kept_but_not_for_ever(micro: Runtime) -> None:
    first = micro.text("kept")
    assert micro.text("kept") is first
    for i in range(40):
        micro.text(f"other {i}")
    assert micro.text("kept") is not first
    assert torch.equal(micro.text("kept").embedding, first.embedding)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_loads_and_predicts(
    tiny_model: Callable[[str], Path], kind: str
) -> None:
    run = model.load(str(tiny_model(kind)), device="cpu")
    latent, _ = run.encode(torch.zeros(1, 3, 64, 64))
    text = run.text("a robot")
    with torch.no_grad():
        out = run.unet(
            latent, 681, text.embedding, added_cond_kwargs=run.added(text, (64, 64))
        ).sample
    assert out.shape == latent.shape
    assert torch.isfinite(out).all()
    assert run.is_sdxl == (kind == "sdxl")
    assert run.factor == 8
    assert run.native_size == (128 if kind == "sdxl" else 64)
    assert run.scheduler_config["prediction_type"] == (
        "v_prediction" if kind == "sd2v" else "epsilon"
    )


def test_sdxl_text_equals_diffusers(tiny_model: Callable[[str], Path]) -> None:
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    run = model.load(str(tiny_model("sdxl")), device="cpu")
    first, second = run._encoders
    assert isinstance(first[0], CLIPTokenizer)
    pipe = StableDiffusionXLPipeline(
        vae=run.vae, unet=run.unet, scheduler=None, text_encoder=first[1], tokenizer=first[0],
        text_encoder_2=second[1], tokenizer_2=second[0],
    )  # fmt: skip
    expected, _, pooled, _ = pipe.encode_prompt("a robot fires", device=torch.device("cpu"),
                                                do_classifier_free_guidance=False)  # fmt: skip
    text = run.text("a robot fires")
    assert text.pooled is not None
    assert torch.allclose(text.embedding, expected, atol=1e-6)
    assert torch.allclose(text.pooled, pooled, atol=1e-6)
    added = run.added(text, (96, 64))
    assert added is not None
    assert added["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]]


def test_precision_is_chosen(micro_sd: Path) -> None:
    half = model.load(str(micro_sd), device="cpu", dtype="bf16")
    assert half.unet.dtype == torch.bfloat16
    assert half.dtype_name == "bf16"
    assert half.encode(torch.zeros(1, 3, 64, 64))[0].dtype == torch.float32
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert device.choose_dtype("auto", cpu, 10**9) == torch.float32
    assert device.choose_dtype("auto", gpu, 10**9) == torch.float16
    assert device.choose_dtype("auto", gpu, 15 * 10**6) == torch.float32


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"device": "cuda:99"}, "no-device"),
        ({"device": "tpu9"}, "unknown-name"),
        ({"dtype": "fp8"}, "unknown-name"),
    ],
)
def test_unknown_device_or_precision(micro_sd: Path, given: dict[str, str], code: str) -> None:
    with refusal(code):
        model.load(str(micro_sd), **{"device": "cpu", **given})


def test_float16_autoencoder_of_xl_stays_float32(tiny_model: Callable[[str], Path]) -> None:
    run = model.load(str(tiny_model("sdxl")), device="cpu", dtype="fp16")
    assert run.vae.dtype == torch.float32
    assert run.unet.dtype == torch.float16


def test_shipped_model_missing_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from workbench.diffusion.registry import BUILTIN

    gone = dataclasses.replace(BUILTIN[0], path=str(tmp_path / "weights"))
    with refusal("not-here", kind=ModelError):
        model.load(gone)


def test_fault_37_low_memory_and_jobs_leave_no_trace(micro: Runtime) -> None:
    before = snapshot(micro.unet), snapshot(micro.vae)
    with micro.job(), micro.low_memory():
        assert micro.unet.is_gradient_checkpointing
        assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError), micro.job(), micro.low_memory():
        1 / 0  # noqa: B018
    assert (snapshot(micro.unet), snapshot(micro.vae)) == before


def test_fault_37_traces_are_found_and_removed(
    micro: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusers.models.attention_processor import AttnProcessor
    from peft import LoraConfig

    unet = micro.unet
    before = snapshot(unet)
    with caplog.at_level(logging.ERROR), unchanged(unet):
        unet.up_blocks[2].register_forward_hook(lambda *_: None)
        unet.set_attn_processor(AttnProcessor())
        unet.requires_grad_(True)
        unet.train()
        unet.enable_gradient_checkpointing()
        torch.set_grad_enabled(False)
    assert snapshot(unet) == before
    assert "left the model changed" in caplog.text
    with unchanged(unet):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "left over")
    assert not getattr(unet, "peft_config", None)
    assert set(differences(before, snapshot(unet))) <= {"versions"}


def test_memory_is_measured() -> None:
    found = device.memory("cpu")
    assert 0 < found.free <= found.total


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognised(error: Exception, is_it: bool) -> None:
    assert device.is_out_of_memory(error) is is_it
