"""The parts of `dragdiffusion` against what the authors' own program computed.

Cases: tests/data/reference/README.md. Tolerances: gates.py. The updates of a drag, and what comes out
in the end: test_parity_updates.py. All on the micro model, float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gates
import pytest
import torch
from golden import Case, Micro, load_case
from safetensors.torch import load_file

from workbench.diffusion.lora import merged
from workbench.diffusion.lora_format import parse
from workbench.drag.latents import denoise, reference_of
from workbench.drag.problem import Reference

pytestmark = pytest.mark.numerics

CASES = ("masked", "nomask", "odd", "gen")
REAL = ("masked", "nomask", "odd")


@pytest.fixture(scope="module")
def cases(reference_dir: Path) -> dict[str, Case]:
    return {name: load_case(reference_dir / name) for name in CASES}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case], micro: Micro) -> Iterator[Case]:
    """A case with its LoRA in the weights."""
    found = cases[request.param]
    with merged(micro.unet, found.adapter):
        yield found


def test_text_embedding(case: Case, micro: Micro) -> None:
    gates.text(case, micro)


def test_mask_on_the_latent(case: Case, micro: Micro) -> None:
    gates.mask(case, micro)


@pytest.mark.parametrize("name", REAL)
def test_latent_and_inversion(name: str, cases: dict[str, Case], micro: Micro) -> None:
    with merged(micro.unet, cases[name].adapter):
        gates.inversion(cases[name], micro)


def test_reference_feature_on_the_feature_grid(case: Case, micro: Micro) -> None:
    gates.feature(case, micro)


@pytest.mark.parametrize("replayed", [False, True], ids=["pairs", "replay"])
def test_denoising_with_shared_attention(case: Case, micro: Micro, replayed: bool) -> None:
    gates.denoising(case, micro, replayed=replayed)


def test_progress_of_denoising(cases: dict[str, Case], micro: Micro) -> None:
    """Step by step, the last step's clean latent being the result."""
    problem = cases["nomask"].problem(micro)
    steps: list[torch.Tensor] = []
    clean = denoise(
        problem, problem.denoiser(), reference_of(problem), problem.start, problem.timesteps,
        lambda step: steps.append(step.clean() if step.step == step.total else torch.empty(0)),
    )  # fmt: skip
    assert len(steps) == 35
    assert torch.equal(steps[-1], clean)


def test_reference_survives_safetensors(cases: dict[str, Case], micro: Micro) -> None:
    problem = cases["masked"].problem(micro)
    made = reference_of(problem)
    back = Reference.from_tensors(made.to_tensors())
    assert torch.equal(back.latents, made.latents)
    assert back.fits(problem.config)
    assert made.kv is not None
    assert back.kv is not None
    assert back.kv.states.keys() == made.kv.states.keys()
    assert len(back.kv.states) == 35 * 6


def test_lora_training_replays(cases: dict[str, Case], micro: Micro) -> None:
    before = {k: v.clone() for k, v in micro.unet.state_dict().items()}
    gates.training(cases["masked"], micro)
    after = micro.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_every_naming_of_the_same_lora_converts(reference_dir: Path, micro: Micro) -> None:
    name = "pytorch_lora_weights.safetensors"
    expected = load_file(reference_dir / "masked" / "lora_peft" / name)
    for folder in ("masked/lora_official", "gooddrag_masked/lora_gooddrag"):
        found = parse(load_file(reference_dir / folder / name), {})
        assert found.state.keys() == expected.keys()
        assert all(torch.equal(found.state[k], expected[k]) for k in expected)
