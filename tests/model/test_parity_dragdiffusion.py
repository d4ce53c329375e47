"""The `dragdiffusion` method against what the authors' own program computed, within its gates.

Gates and cases: tests/data/reference/README.md. All on the micro model, float32, one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import Case, Micro, load_case, load_micro, worst
from safetensors.torch import load_file

from workbench import drag as methods
from workbench.core.config import LoraConfig
from workbench.core.record import Stop
from workbench.diffusion import ddim
from workbench.diffusion.lora import Draw, merged, train
from workbench.diffusion.lora_keys import to_peft_keys
from workbench.drag import DragOutcome, Reference
from workbench.drag.denoise import denoise
from workbench.drag.loop import drag, mask_loss, motion_loss
from workbench.drag.tracking import samples

CASES = ("masked", "nomask", "odd", "gen")
REAL = ("masked", "nomask", "odd")


@pytest.fixture(scope="module")
def micro(micro_sd: Path) -> Micro:
    return load_micro(micro_sd)


@pytest.fixture(scope="module")
def cases(reference_dir: Path) -> dict[str, Case]:
    return {name: load_case(reference_dir / name) for name in CASES}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case], micro: Micro) -> Iterator[Case]:
    """A case with its LoRA in the weights."""
    found = cases[request.param]
    with merged(micro.unet, found.adapter):
        yield found


@pytest.fixture(scope="module")
def outcome(cases: dict[str, Case], micro: Micro) -> Any:
    """`outcome(name)`: the whole method, from the recorded trail, run once per case."""

    @lru_cache
    def run(name: str) -> DragOutcome:
        with merged(micro.unet, cases[name].adapter):
            return methods.run(cases[name].problem(micro))

    return run


def test_text_embedding(case: Case, micro: Micro) -> None:
    assert worst(case.text(micro), case.tensors["drag_text"]) < 1e-4


def test_mask_on_the_latent(case: Case) -> None:
    assert torch.equal(case.mask, case.tensors["mask_latent"])


@pytest.mark.parametrize("name", REAL)
def test_latent_and_inversion(name: str, cases: dict[str, Case], micro: Micro) -> None:
    case = cases[name]
    with merged(micro.unet, case.adapter), torch.no_grad():
        latent = micro.vae.encode(case.pixels).latent_dist.mean * 0.18215
        trail = ddim.invert(case.denoiser(micro).eps, latent, micro.schedule, 35)
    assert worst(case.pixels, case.tensors["source_tensor"]) < 1e-6
    assert worst(latent, case.tensors["vae_latent"]) < 1e-4
    assert worst(trail, case.tensors["inv_latents"]) < 1e-4
    assert worst(trail[-1], case.tensors["init_code"]) < 1e-4


def test_reference_feature_on_the_lattice(case: Case, micro: Micro) -> None:
    """F0 at every lattice point, though it is never upsampled; guided rows before weighting."""
    with torch.no_grad():
        feature = case.denoiser(micro).feature(case.tensors["init_code"], 681)
    expected = case.tensors["F0_full"]
    if len(expected) == 2:  # guidance: (1-c) u and c v side by side, c = s / (2 s - 1)
        c = 7.5 / 14
        expected = torch.cat([(1 - c) * expected[:1], c * expected[1:]], dim=1)
    rows, cols = case.lattice
    grid = torch.cartesian_prod(torch.arange(rows).float(), torch.arange(cols).float())
    found = samples(feature, case.lattice, grid).T.reshape(1, -1, rows, cols)
    assert worst(found, expected) < 1e-4


def test_every_gradient_from_the_recorded_latent(case: Case, micro: Micro) -> None:
    """1e-5 at every update; one jump is allowed, and must be one L1 term that changed its sign."""
    denoiser, config = case.denoiser(micro), case.config()
    start, latents = case.tensors["init_code"], case.tensors["drag_latents"]
    grads, points = case.tensors["drag_grads"], torch.from_numpy(case.arrays["points"])
    mask = case.mask if bool(case.mask.any()) else None
    with torch.no_grad():
        _, eps = denoiser.both(start, 681)
        original = micro.schedule.step(start, eps, 681)
    jumps = 0
    for k in range(len(grads)):
        z = (start if k == 0 else latents[k - 1]).clone().requires_grad_(True)
        at = case.handles if k == 0 else points[k - 1]
        feature, eps = denoiser.both(z, 681)
        distance = (case.targets - at).norm(dim=1)
        loss = motion_loss(
            feature, case.lattice, at, case.targets,
            radius=1, max_shift=1.0, active=(distance >= 2).float(),
        )  # fmt: skip
        gap = torch.zeros_like(z)
        if mask is not None:
            previous = micro.schedule.step(z, eps, 681)
            gap = (previous - original) * (1 - mask)
            loss = loss + config.mask_weight * mask_loss(previous, original, mask)
        (grad,) = torch.autograd.grad(loss, z, retain_graph=True)
        if k == 0 and mask is not None:
            continue  # the mask term is |0| here: the gradient is the sign of rounding noise
        assert abs(float(loss.detach()) - case.arrays["loss"][k]) < 1e-4
        if worst(grad, grads[k]) >= 1e-5:
            jumps += 1
            tiny = (gap.detach().abs() < 1e-6) & (gap.detach() != 0)
            assert tiny.sum() == 1
            (term,) = torch.autograd.grad(config.mask_weight * gap[tiny].abs().sum(), z)
            # the reference had it exactly 0 (sign 0), or on the other side of 0
            assert min(worst(grad - n * term, grads[k]) for n in (1, 2)) < 1e-5
    assert jumps <= max(1, len(grads) // 100)


def test_first_update_from_our_own_reference(case: Case, micro: Micro) -> None:
    """With both sides of the mask term from one program it is exactly 0, its gradient too."""
    problem = case.problem(micro)
    reference = methods.reference_of(problem)
    first: list[torch.Tensor] = []
    drag(
        problem.denoiser(), problem.start, 681,
        handles=case.handles, targets=case.targets, origins=case.handles, lattice=case.lattice,
        reference=reference.features[681], reference_previous=reference.latents[1],
        mask=problem.used_mask(), settings=case.config(steps=1),
        on_gradient=lambda _k, grad: first.append(grad),
    )  # fmt: skip
    assert worst(first[0], case.tensors["drag_grads"][0]) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_free_running_drag(name: str, cases: dict[str, Case], outcome: Any) -> None:
    case, done = cases[name], outcome(name)
    expected = torch.from_numpy(case.arrays["points"])
    tracked = torch.stack(done.trajectory[1 : 1 + len(expected)])
    same = (tracked == expected).all(dim=2).float().mean()
    assert same >= 0.95
    final = torch.from_numpy(case.arrays["handle_final"])
    assert worst(tracked[-1], final) <= 1
    assert done.iterations == len(case.arrays["loss"])
    assert np.allclose(done.losses[:10], case.arrays["loss"][:10], atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_first_ten_latents(name: str, cases: dict[str, Case], micro: Micro) -> None:
    """Free-running: the latent after each of the first ten updates."""
    case = cases[name]
    problem = case.problem(micro, steps=10)
    latents: list[torch.Tensor] = []
    with merged(micro.unet, case.adapter):
        reference = methods.reference_of(problem, kv_limit=0)
        drag(
            problem.denoiser(), problem.start, 681,
            handles=case.handles, targets=case.targets, origins=case.handles,
            lattice=case.lattice, reference=reference.features[681],
            reference_previous=reference.latents[1], mask=problem.used_mask(),
            settings=problem.config, on_step=lambda now: latents.append(now.latent),
        )  # fmt: skip
    assert len(latents) == 11
    assert worst(torch.stack(latents[1:]), case.tensors["drag_latents"][:10]) < 1e-4


def test_why_each_case_stops(outcome: Any) -> None:
    assert {name: outcome(name).stop for name in CASES} == {
        "masked": Stop.STEP_LIMIT,
        "nomask": Stop.REACHED,
        "odd": Stop.STEP_LIMIT,
        "gen": Stop.STEP_LIMIT,
    }


@pytest.mark.parametrize("replayed", [False, True], ids=["pairs", "replay"])
def test_denoising_with_shared_attention(case: Case, micro: Micro, replayed: bool) -> None:
    """From the recorded edited latent; the original beside it, or its states replayed."""
    problem = case.problem(micro, parity=not replayed)
    reference = methods.reference_of(problem)
    expected = case.tensors["denoise_latents_msa"]
    assert worst(reference.latents, expected[:, :1]) < 1e-4
    steps: list[torch.Tensor] = []
    clean = denoise(
        problem, problem.denoiser(), reference, case.tensors["updated_code"], problem.timesteps,
        lambda step: steps.append(step.clean() if step.step == step.total else torch.empty(0)),
    )  # fmt: skip
    assert len(steps) == 35
    assert torch.equal(steps[-1], clean)
    assert worst(clean, expected[-1, 1:]) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_final_picture(name: str, cases: dict[str, Case], outcome: Any, micro: Micro) -> None:
    case = cases[name]
    with torch.no_grad():
        pixels = micro.vae.decode(outcome(name).latent / 0.18215).sample
    pixels = F.interpolate((pixels / 2 + 0.5).clamp(0, 1), case.size, mode="bilinear")
    found = (pixels[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy().astype(int)
    assert np.abs(found - case.result).max() <= 8


def test_reference_survives_safetensors(cases: dict[str, Case], micro: Micro) -> None:
    problem = cases["masked"].problem(micro)
    made = methods.reference_of(problem)
    back = Reference.from_tensors(made.to_tensors())
    assert torch.equal(back.latents, made.latents)
    assert back.fits(problem.config)
    assert made.kv is not None
    assert back.kv is not None
    assert back.kv.states.keys() == made.kv.states.keys()
    assert len(back.kv.states) == 35 * 6


def test_lora_training_replays(cases: dict[str, Case], micro: Micro) -> None:
    """Recorded start, latents, noise and timesteps: losses within 1e-5, weights within 1e-4."""
    case = cases["masked"]
    rng = load_file(case.folder / "train_rng.safetensors")
    name = "pytorch_lora_weights.safetensors"
    start = load_file(case.folder / "lora_init_peft" / name)
    expected = load_file(case.folder / "lora_peft" / name)
    before = {k: v.clone() for k, v in micro.unet.state_dict().items()}
    heard: list[int] = []

    def draws(step: int) -> Draw:
        return Draw(rng["model_input"][step], rng["noise"][step], rng["timesteps"][step])

    done = train(
        micro.unet, micro.schedule, case.text(micro),
        LoraConfig(steps=20, rank=16, batch_size=4), draws,
        start=start, on_step=lambda k, _total, _loss: heard.append(k),
    )  # fmt: skip
    assert heard == list(range(1, 21))
    assert np.allclose(done.losses, case.arrays["lora_loss"], atol=1e-5)
    assert done.state.keys() == expected.keys()
    assert max(worst(done.state[k], expected[k]) for k in expected) < 1e-4
    after = micro.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_every_naming_of_the_same_lora_converts(reference_dir: Path, micro: Micro) -> None:
    name = "pytorch_lora_weights.safetensors"
    expected = load_file(reference_dir / "masked" / "lora_peft" / name)
    for folder in ("masked/lora_official", "gooddrag_masked/lora_gooddrag"):
        found = to_peft_keys(load_file(reference_dir / folder / name))
        assert not found.left_out
        assert found.state.keys() == expected.keys()
        assert all(torch.equal(found.state[k], expected[k]) for k in expected)
