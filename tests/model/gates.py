"""What must agree with the authors' programs, and how closely: the checks of the parity tests.

They are functions, so that test_mutations.py can show that each kind of mistake turns one of them red.
All tolerances are absolute unless said otherwise, and stand beside the largest deviation that correct
programs were found to have: our own on three kinds of processor (no AVX, AVX2, AVX-512) with one and
two threads, against the recorded tensors. `python tests/model/noise_floor.py` measures them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from forced import Forced, difference
from golden import Case, Micro, worst
from safetensors.torch import load_file

from workbench.core.config import LoraConfig
from workbench.diffusion import ddim, lora
from workbench.diffusion.unet import Prompt
from workbench.drag.latents import denoise, reference_of
from workbench.drag.tracking import samples

Tensor = torch.Tensor

LATENT = 1e-4  # VAE, inversion, features; measured 2e-5 after 38 steps
STEP = 1e-5  # one denoising step: 8e-7
GRADIENT = 1e-5  # from a recorded latent, turned signs apart: 1.6e-6
LOSS = 2e-5  # relative, from a recorded latent: 4e-6
ADAM = 5e-6  # its latent, from recorded gradients: 1e-6
CLEAN = 2e-4  # edited latent after 35 steps with shared attention, under guidance: 4e-5
LEVELS = 2  # of 255, in the picture of such a latent: 1, where a number is rounded down
FREE_WORST = 80  # of 255, in the picture of a free run: 33 when its start changes in its last bit
FREE_MEAN = 4.0  # 1.7 in the same twenty runs; a drag the other way differs by 39
TRAINED = 1e-4  # LoRA weights after 20 steps
TRAINING_LOSS = 1e-5


def text(case: Case, micro: Micro) -> None:
    assert worst(case.text(micro), case.tensors["drag_text"]) < LATENT


def mask(case: Case, _micro: Micro) -> None:
    assert torch.equal(case.mask, case.tensors["mask_latent"])


def inversion(case: Case, micro: Micro) -> None:
    """Picture to latent, and latent to noise."""
    with torch.no_grad():
        latent = micro.vae.encode(case.pixels).latent_dist.mean * 0.18215
        expected = case.tensors["inv_latents"]
        trail = ddim.invert(case.denoiser(micro).eps, latent, micro.schedule, len(expected) - 1)
    assert worst(case.pixels, case.tensors["source_tensor"]) < 1e-6
    assert worst(latent, case.tensors["vae_latent"]) < LATENT
    assert worst(trail, expected) < LATENT


def feature(case: Case, micro: Micro) -> None:
    """F0 at every grid point, though it is never upsampled; guided rows before weighting."""
    with torch.no_grad():
        found = case.denoiser(micro).feature(case.tensors["init_code"], case.timestep(0))
    expected = case.tensors["F0_full_first" if case.gooddrag else "F0_full"]
    if len(expected) == 2:  # guidance: (1-c) u and c v side by side, c = s / (2 s - 1)
        c = 7.5 / 14
        expected = torch.cat([(1 - c) * expected[:1], c * expected[1:]], dim=1)
    rows, cols = case.feature_grid
    grid = torch.cartesian_prod(torch.arange(rows).float(), torch.arange(cols).float())
    at_points = samples(found, case.feature_grid, grid).T.reshape(1, -1, rows, cols)
    assert worst(at_points, expected) < LATENT


def updates(case: Case, micro: Micro, seen: Forced) -> None:
    """Latent, gradient, Adam's step and points of every update of a run that was led."""
    assert seen.grads
    for i, start in enumerate(seen.starts):
        assert worst(start, case.start_of_round(i)) < STEP, f"start of round {i}"
    for k, grad in enumerate(seen.grads):
        assert difference(case, micro, k, grad) < GRADIENT, f"gradient of update {k}"
        assert worst(seen.latents[k], case.tensors["drag_latents"][k]) < ADAM, f"step {k}"
    count = len(case.tensors["drag_grads"])
    for k, points in seen.points.items():
        entered = case.gooddrag and k < count and case.round_of(k) != case.round_of(max(k - 1, 0))
        if k < count and not entered:  # on entering a round they are tracked once more
            assert torch.equal(points, case.points_at(k)), f"points after {k} updates"


def account(case: Case, seen: Forced) -> None:
    """Losses, trackings and length of a whole run that was led."""
    done = seen.outcome
    assert done is not None
    recorded = case.arrays["loss"]
    assert done.iterations == len(seen.grads) == len(recorded)
    assert np.allclose(done.losses, recorded, rtol=LOSS, atol=0)
    points = torch.from_numpy(case.arrays["track_points" if case.gooddrag else "points"])
    trackings = torch.stack(done.trajectory[1:])  # ours ends with one more, after the last update
    assert torch.equal(trackings[: len(points)], points)
    assert len(points) <= len(trackings) <= len(points) + 1
    assert torch.equal(trackings[-1], torch.from_numpy(case.arrays["handle_final"]))


def denoising(case: Case, micro: Micro, *, replayed: bool) -> None:
    """From the recorded edited latent; the original beside it, or its states replayed."""
    problem = case.problem(micro, parity=not replayed)
    reference = reference_of(problem)
    expected = case.tensors["denoise_latents_msa"]
    assert worst(reference.latents, expected[:, :1]) < LATENT
    clean = denoise(
        problem, problem.denoiser(), reference, case.tensors["updated_code"], problem.timesteps
    )
    assert worst(clean, expected[-1, 1:]) < CLEAN


def result(case: Case, micro: Micro, seen: Forced) -> None:
    """Clean latent and picture of a whole run that was led."""
    assert seen.outcome is not None
    assert worst(seen.outcome.latent, case.clean) < CLEAN
    assert np.abs(picture(micro, case, seen.outcome.latent) - case.result).max() <= LEVELS


def picture(micro: Micro, case: Case, clean: Tensor) -> np.ndarray[Any, Any]:
    """Decode a clean latent as the authors' programs do: int [H,W,3], levels 0..255."""
    with torch.no_grad():
        pixels = micro.vae.decode(clean / 0.18215).sample
    pixels = F.interpolate((pixels / 2 + 0.5).clamp(0, 1), case.size, mode="bilinear")
    levels: np.ndarray[Any, Any] = (pixels[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    return levels.astype(int)


def training(case: Case, micro: Micro, steps: int = 20) -> None:
    """LoRA training from recorded weights, latents, noise and timesteps."""
    rng = load_file(case.folder / "train_rng.safetensors")
    name = "pytorch_lora_weights.safetensors"
    start = load_file(case.folder / "lora_init_peft" / name)
    expected = load_file(case.folder / "lora_peft" / name)

    def draws(step: int) -> lora.TrainBatch:
        return lora.TrainBatch(rng["model_input"][step], rng["noise"][step], rng["timesteps"][step])

    heard: list[int] = []
    done = lora.train(
        micro.unet, micro.schedule, Prompt(case.text(micro)),
        LoraConfig(steps=steps, rank=16, batch_size=4), draws,
        start=start, on_step=lambda k, _total, _loss: heard.append(k),
    )  # fmt: skip
    assert heard == list(range(1, steps + 1))
    assert np.allclose(done.losses, case.arrays["lora_loss"][:steps], atol=TRAINING_LOSS)
    assert done.state.keys() == expected.keys()
    if steps == 20:
        assert max(worst(done.state[k], expected[k]) for k in expected) < TRAINED
