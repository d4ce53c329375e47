"""The parts of `gooddrag` against what its authors' own program computed.

Cases: tests/data/reference/README.md, second part. Tolerances: gates.py. The updates of its rounds, and
what comes out in the end: test_parity_updates.py. Micro model, float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gates
import pytest
import torch
from golden import Case, Micro, load_case, worst

from workbench.diffusion.lora import merged
from workbench.diffusion.unet import mutual_self_attention
from workbench.drag.latents import reference_of
from workbench.drag.loop import anchor_patches
from workbench.drag.tracking import samples

pytestmark = pytest.mark.numerics

CASES = ("gooddrag_masked", "gooddrag_nomask")


@pytest.fixture(scope="module")
def cases(reference_dir: Path) -> dict[str, Case]:
    return {name: load_case(reference_dir / name) for name in CASES}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case], micro: Micro) -> Iterator[Case]:
    found = cases[request.param]
    with merged(micro.unet, found.adapter):
        yield found


def test_inputs(case: Case, micro: Micro) -> None:
    gates.text(case, micro)
    gates.mask(case, micro)
    gates.inversion(case, micro)
    gates.feature(case, micro)


def test_reference_chain(case: Case, micro: Micro) -> None:
    """F0 and the original's latents at every timestep, the one after the last round included."""
    problem = case.problem(micro)
    reference = reference_of(problem)
    denoiser = problem.denoiser()
    assert worst(reference.latents[1:9], case.tensors["orig_prev"]) < gates.LATENT
    for i, t in enumerate(case.arrays["feature_t"].tolist()):
        found = reference.feature(denoiser, t, i)
        assert worst(found, case.tensors["F0_native"][i]) < gates.LATENT
        vectors = samples(found, case.feature_grid, case.handles)
        assert worst(vectors, case.tensors["anchor_vec"][i]) < gates.LATENT
        anchors = anchor_patches(found, case.feature_grid, case.handles, 4)
        assert worst(anchors, case.tensors["anchor_patch"][i]) < gates.LATENT
    assert worst(reference.latents, case.tensors["denoise_latents"][:, :1]) < gates.LATENT


def test_one_denoise_step(case: Case, micro: Micro) -> None:
    """Without sharing after a round, with it afterwards."""
    problem = case.problem(micro)
    denoiser, rows = problem.denoiser(), case.tensors["denoise_latents"]
    shared_from = case.info["mutual_attention_from_step"]
    timesteps = case.arrays["denoise_t"].tolist()
    with torch.no_grad(), mutual_self_attention(micro.unet, 10) as board:
        for i, t in enumerate(timesteps):
            board.mode = "pairs" if i >= shared_from else "off"
            found = micro.schedule.step(rows[i], denoiser.eps(rows[i], t), t)
            expected = rows[i + 1].clone()
            if i + 1 < case.info["rounds_entered"]:  # rows[i + 1] is already dragged there
                expected[1] = case.tensors["round_start"][i + 1]
            assert worst(found, expected) < gates.STEP
