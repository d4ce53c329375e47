"""`auto` and `warp` on a random U-Net: what must hold whatever the model has learnt."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from refusals import refusal
from small_unet import denoiser, normal, schedule, small_unet, text

from workbench.core.config import DragConfig
from workbench.core.errors import Cancelled
from workbench.core.record import StepInfo, StopReason
from workbench.diffusion.ddim import invert
from workbench.diffusion.unet import Prompt
from workbench.drag import methods
from workbench.drag.latents import (
    NotFinite,
    located,
    moved_clean,
    moved_latent,
    reference_of,
    start_index,
)
from workbench.drag.loop import settled, stalled
from workbench.drag.methods import run
from workbench.drag.problem import AutoOptions, DragProblem, Pixels, StopCriteria

Tensor = torch.Tensor
HANDLES = torch.tensor([[10.0, 10.0], [20.0, 22.0]])
TARGETS = torch.tensor([[10.0, 18.0], [14.0, 22.0]])


@pytest.fixture(scope="module")
def unet() -> Any:
    return small_unet()


@pytest.fixture(scope="module")
def trail(unet: Any) -> Tensor:
    return invert(denoiser(unet).eps, normal(1, 4, 8, 8), schedule(), 5)


def pixels() -> Pixels:
    """A picture of 64 px whose inner part moved by 3 px; its 'autoencoder' averages 8x8 pixels."""

    def encode(picture: Tensor) -> Tensor:
        return F.avg_pool2d(picture, 8)[:, [0, 1, 2, 0]]

    picture = normal(1, 3, 64, 64, seed=3).tanh()
    moved, doubt = picture.clone(), torch.zeros(64, 64)
    moved[..., 8:56, 8:56] = picture.roll(3, -1)[..., 8:56, 8:56]
    doubt[8:56, 8:12] = 1
    return Pixels(picture=picture, moved=moved, doubt=doubt, encode=encode)


def problem(unet: Any, trail: Tensor, method: str = "auto", **changes: Any) -> DragProblem:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 1:7, 1:7] = 1
    config = {"feature_block": 3, "steps": 4, "refine": True, **changes.pop("drag", {})}
    given: dict[str, Any] = {
        "unet": unet, "schedule": schedule(), "prompt": Prompt(text()), "inversion_latents": trail,
        "handles": HANDLES, "targets": TARGETS, "feature_grid": (32, 32), "mask": mask,
        "config": dataclasses.replace(DragConfig.preset(method), **config), "pixels": pixels(),
    }  # fmt: skip
    return DragProblem(**{**given, **changes})


@pytest.mark.parametrize("method", ["auto", "warp"])
def test_arrows_without_length_give_the_picture_back(unet: Any, trail: Tensor, method: str) -> None:
    still = run(problem(unet, trail, method, targets=HANDLES, pixels=None))
    none = run(problem(unet, trail, method, handles=HANDLES[:0], targets=HANDLES[:0], pixels=None))
    assert still.stop is none.stop is StopReason.NO_MOTION
    assert still.iterations == none.iterations == 0
    assert torch.allclose(still.latent, none.latent, atol=1e-5)


@pytest.mark.parametrize("method", ["auto", "warp"])
def test_every_run_is_the_same_and_changes_nothing_of_its_caller(
    unet: Any, trail: Tensor, method: str
) -> None:
    given = problem(unet, trail, method)
    before = trail.clone(), HANDLES.clone(), TARGETS.clone()
    first, second = run(given), run(given)
    assert torch.equal(first.latent, second.latent)
    assert first.trajectory[-1].tolist() == second.trajectory[-1].tolist()
    assert all(torch.equal(a, b) for a, b in zip(before, (trail, HANDLES, TARGETS), strict=True))


def test_running_on_equals_having_run_at_once(unet: Any, trail: Tensor) -> None:
    whole = run(problem(unet, trail, drag={"steps": 6}))
    half = run(problem(unet, trail, drag={"steps": 3}))
    rest = run(problem(unet, trail, drag={"steps": 3}, resume=half.state))
    assert rest.iterations == whole.iterations == 6
    assert torch.equal(rest.latent, whole.latent)
    assert rest.losses == whole.losses
    assert [p.tolist() for p in rest.trajectory] == [p.tolist() for p in whole.trajectory]


def test_points_that_have_arrived_stay_supervised(unet: Any, trail: Tensor) -> None:
    """A warped start has every point at its target; the loss is there and still falls."""
    done = run(problem(unet, trail, drag={"steps": 8, "stop_distance": 64.0, "mask_weight": 0.0}))
    assert done.iterations == 8
    assert 0 < done.losses[-1] < done.losses[0]


def test_cancelling_takes_effect_at_the_next_step(unet: Any, trail: Tensor) -> None:
    heard: list[int] = []

    def on_step(step: StepInfo) -> None:
        if step.stage == "drag":
            heard.append(step.step)
            if step.step == 2:
                raise Cancelled("enough")

    with pytest.raises(Cancelled):
        run(problem(unet, trail), on_step)
    assert heard == [0, 1, 2]


def test_numbers_that_break_are_reported(unet: Any, trail: Tensor) -> None:
    broken = trail.clone()
    broken[0, 0, 0, 2, 2] = float("nan")
    with refusal("not-finite", kind=NotFinite):
        run(problem(unet, broken))


def test_a_run_has_stalled_when_the_points_come_no_nearer() -> None:
    stop = StopCriteria(stall=4)
    assert not stalled([9, 8, 7, 6], stop)
    assert not stalled([9.0, 9, 9, 8.4, 9], stop)  # nearer by more than half a pixel
    assert stalled([9, 8.8, 8.7, 9, 9], stop)
    assert stalled([9, 8, 7, 6, 7, 8, 7, 6], stop)


def test_a_run_that_brings_the_points_no_nearer_ends_and_says_so(unet: Any, trail: Tensor) -> None:
    far = HANDLES + torch.tensor([[0.0, 20.0], [0.0, -20.0]])  # a random model gets nowhere
    options = AutoOptions(stop=StopCriteria(stall=3, doubt=0.0))
    given = problem(unet, trail, targets=far, auto=options, drag={"steps": 60})
    found = run(given)
    assert found.stop is StopReason.STUCK
    assert 3 < found.iterations < 60


def test_a_run_has_settled_when_its_loss_no_longer_falls() -> None:
    stop = StopCriteria(least=4, window=2, gain=0.1)
    assert not settled([5, 5], stop)
    assert settled([5, 5, 5, 5], stop)
    assert not settled([5, 5, 4, 4], stop)
    assert settled([9, 9, 5, 5, 4.9, 4.9], stop)


def test_the_moved_picture_is_put_together_with_its_own_noise(unet: Any, trail: Tensor) -> None:
    """z = sqrt(a) E(moved) + sqrt(1-a) eps in cells that changed; elsewhere the original's latent."""
    given = problem(unet, trail, "warp")
    reference = reference_of(given)
    index = start_index(given, 201)
    t = given.timesteps[index]
    assert t <= 201
    found = moved_latent(given, reference, index)
    plain = reference.latents[index]
    same = (found - plain).abs().amax(1)[0] < 1e-5
    assert not same.all()
    assert same[0].all()
    assert same[:, -1].all()
    a = given.schedule.alpha(t)
    eps = (plain - a**0.5 * trail[0]) / (1 - a) ** 0.5
    clean = (found - (1 - a) ** 0.5 * eps) / a**0.5
    assert clean[0, 0][~same].allclose(clean[0, 3][~same], atol=1e-4)  # as `encode` makes them
    assert torch.equal(
        moved_latent(problem(unet, trail, "warp", pixels=None), reference, index), plain
    )


def test_a_draft_leaves_every_cell_that_can_be_trusted(unet: Any, trail: Tensor) -> None:
    """Only the cells with doubtful pixels are the model's; nothing is trained or optimised."""
    given = problem(unet, trail, drag={"refine": False})
    cells = methods.doubtful_cells(given)
    assert cells is not None
    assert cells[0, 0].sum() == 6
    seen: list[str] = []
    found = run(given, lambda info: seen.append(info.stage))
    assert set(seen) == {"denoise"}
    assert found.iterations == 0
    assert found.stop is StopReason.ONE_STEP
    clean = moved_clean(given)
    assert torch.equal(torch.where(cells, clean, found.latent), clean)
    assert not torch.equal(found.latent, clean)
    assert torch.equal(run(given).latent, found.latent)


def test_a_draft_without_doubt_is_the_moved_picture(unet: Any, trail: Tensor) -> None:
    sure = dataclasses.replace(pixels(), doubt=torch.zeros(64, 64))
    given = problem(unet, trail, drag={"refine": False}, pixels=sure)
    assert torch.equal(run(given).latent, moved_clean(given))
    none = run(problem(unet, trail, drag={"refine": False}, pixels=None))
    assert none.stop is StopReason.NO_MOTION
    assert torch.equal(none.latent, trail[0])


def test_a_point_that_did_not_move_is_located_at_its_handle(unet: Any, trail: Tensor) -> None:
    given = problem(unet, trail, "warp")
    points, distances, costs = located(given, given.denoiser(), trail[0])
    assert torch.equal(points, HANDLES)
    assert torch.equal(distances, (TARGETS - HANDLES).norm(dim=1))
    assert costs.abs().max() < 1e-5


def test_the_start_level_is_the_first_that_is_not_above(unet: Any, trail: Tensor) -> None:
    given = problem(unet, trail)
    assert given.timesteps == (401, 301, 201, 101, 1)
    assert [start_index(given, level) for level in (1000, 401, 400, 101, 50, 0)] == [
        0,
        0,
        1,
        3,
        4,
        4,
    ]
