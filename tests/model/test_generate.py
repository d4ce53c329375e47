"""Pictures from a prompt: equal to diffusers' own pipeline, and exact as the start of a drag."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path as File

import pytest
import torch
from refusals import refusal

from workbench.core.config import SCHEDULERS, GenerationConfig
from workbench.core.errors import Cancelled, ModelError
from workbench.core.record import StepInfo
from workbench.core.request import GenerateTask, ModelRef
from workbench.diffusion import model
from workbench.diffusion.ddim import schedule_from
from workbench.diffusion.model import Runtime, snapshot
from workbench.editing.text_to_image import (
    Path,
    cached_path,
    generate,
    sample_path,
)
from workbench.storage.cache import Cache
from workbench.storage.history import Store

CONFIG = GenerationConfig(steps=8, guidance=5.0, seed=3, width=64, height=72, negative_prompt="fog")


@pytest.fixture(scope="module")
def micro(micro_sd: File) -> Runtime:
    return model.load(str(micro_sd), device="cpu")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_equals_diffusers_pipeline(micro: Runtime, name: str) -> None:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

    config = dataclasses.replace(CONFIG, scheduler=name)
    path = sample_path(micro, "a robot", config)
    if name == "ddim":
        scheduler = DDIMScheduler.from_config(micro.scheduler_config)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(
            micro.scheduler_config, use_karras_sigmas=name.endswith("karras")
        )
    (tokenizer, encoder) = micro._encoders[0]
    pipe = StableDiffusionPipeline(
        vae=micro.vae, text_encoder=encoder, tokenizer=tokenizer, unet=micro.unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "a robot", negative_prompt="fog", num_inference_steps=8, guidance_scale=5.0, width=64,
        height=72, latents=path.latents[:1].clone(), output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(path.final, expected, atol=2e-4)
    assert len(path.timesteps) == 8


@pytest.mark.parametrize("kind", ["sd2v", "sdxl"])
def test_other_architectures(tiny_model: Callable[[str], File], kind: str) -> None:
    run = model.load(str(tiny_model(kind)), device="cpu")
    path = sample_path(run, "a robot", dataclasses.replace(CONFIG, steps=3))
    assert path.final.shape == (1, 4, 9, 8)
    assert torch.isfinite(path.final).all()


def test_latents_of_visited_timesteps_are_the_samplers_own(micro: Runtime) -> None:
    path = Path.from_bytes(sample_path(micro, "x", CONFIG).to_bytes())
    schedule = schedule_from(micro.scheduler_config, 8)
    for i, t in enumerate(schedule.timesteps):
        assert torch.equal(path.at(schedule, t), path.latents[i : i + 1])


def test_latents_between_lie_on_the_ddim_step(micro: Runtime) -> None:
    """Any level inside a step, continued by the rest of that step, ends where the step ends."""
    path = sample_path(micro, "x", CONFIG)
    schedule = schedule_from(micro.scheduler_config, 8)
    first, second = schedule.timesteps[2:4]
    between = path.at(schedule, (first + second) // 2)
    eps = path.noises[2:3]
    on = schedule.noised(schedule.clean(between, eps, (first + second) // 2), eps, second)
    assert torch.allclose(on, path.latents[3:4], atol=1e-5)


def test_same_seed_same_bits_other_seed_other_picture(micro: Runtime) -> None:
    first, again = (sample_path(micro, "x", CONFIG) for _ in range(2))
    assert torch.equal(first.final, again.final)
    other = sample_path(micro, "x", dataclasses.replace(CONFIG, seed=4))
    assert not torch.equal(first.final, other.final)


def test_fault_37_freeu_changes_the_picture_and_leaves_no_trace(micro: Runtime) -> None:
    before = snapshot(micro.unet)
    marks = [dict(vars(b)) for b in micro.unet.up_blocks]
    plain = sample_path(micro, "x", CONFIG)
    free = sample_path(micro, "x", dataclasses.replace(CONFIG, freeu_b1=1.4, freeu_s1=0.6))
    assert snapshot(micro.unet) == before
    assert [dict(vars(b)) for b in micro.unet.up_blocks] == marks
    assert torch.equal(sample_path(micro, "x", CONFIG).final, plain.final)
    assert not torch.equal(free.final, plain.final)


def test_several_candidates_and_the_cache(micro: Runtime, tmp_path: File) -> None:
    store, cache = Store(tmp_path / "history"), Cache(tmp_path / "derived")
    task = GenerateTask(prompt="a robot", config=CONFIG, model=ModelRef(name="m"), count=2)
    steps: list[StepInfo] = []
    made = generate(task, runtime=micro, cache=cache, store=store, on_step=steps.append)
    assert [p["config"]["seed"] for p in made["pictures"]] == [3, 4]
    assert store.image(made["pictures"][0]["image"]).shape == (72, 64, 3)
    counts = [s.step for s in steps]
    assert counts == sorted(counts)
    assert counts[-1] == steps[-1].total == 2 * CONFIG.steps
    assert sorted({(s.part, s.parts) for s in steps}) == [(1, 2), (2, 2)]
    again = generate(task, runtime=micro, cache=cache, store=store)
    assert again == made
    _, hit = cached_path(micro, cache, "a robot", CONFIG, micro.fingerprint)
    assert hit


def test_cancel_while_generating(micro: Runtime, tmp_path: File) -> None:
    store, cache = Store(tmp_path / "history"), Cache(tmp_path / "derived")

    def stop(info: StepInfo) -> None:
        if info.step > 1:
            raise Cancelled("Cancelled.")

    task = GenerateTask(prompt="x", config=CONFIG, count=1)
    with pytest.raises(Cancelled):
        generate(task, runtime=micro, cache=cache, store=store, on_step=stop)
    assert cache.entries() == []


def test_fault_22_nan_is_a_model_error(micro: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "workbench.diffusion.unet.Denoiser.eps", lambda _self, z, _t: z * float("nan")
    )
    with refusal("not-finite", kind=ModelError):
        sample_path(micro, "x", CONFIG)


def test_impossible_sizes_are_named(micro: Runtime, tmp_path: File) -> None:
    with refusal("out-of-range"):
        GenerationConfig(width=100)
    store, cache = Store(tmp_path / "history"), Cache(tmp_path / "derived")
    huge = GenerateTask(prompt="x", config=GenerationConfig(width=4096, height=4096))
    with refusal("too-large"):
        generate(huge, runtime=micro, cache=cache, store=store)
