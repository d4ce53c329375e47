"""`auto` and `warp` on a random U-Net: what must hold whatever the model has learnt."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_unet import denoiser, normal, schedule, small_unet, text

from workbench.errors import Cancelled
from workbench.methods import DragProblem, DragStep, run
from workbench.numerics.anchored import Patience, settled
from workbench.numerics.ddim import invert
from workbench.numerics.optimiser import NotFinite
from workbench.records import Stop
from workbench.types import DragConfig

Tensor = torch.Tensor
HANDLES = torch.tensor([[10.0, 10.0], [20.0, 22.0]])
TARGETS = torch.tensor([[10.0, 18.0], [14.0, 22.0]])


@pytest.fixture(scope="module")
def unet() -> Any:
    return small_unet()


@pytest.fixture(scope="module")
def trail(unet: Any) -> Tensor:
    return invert(denoiser(unet).eps, normal(1, 4, 8, 8), schedule(), 5)


def problem(unet: Any, trail: Tensor, method: str = "auto", **changes: Any) -> DragProblem:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 1:7, 1:7] = 1
    config = {"feature_block": 3, "steps": 4, **changes.pop("drag", {})}
    given: dict[str, Any] = {
        "unet": unet, "schedule": schedule(), "text": text(), "trail": trail,
        "handles": HANDLES, "targets": TARGETS, "lattice": (32, 32), "mask": mask,
        "config": dataclasses.replace(DragConfig.preset(method), **config),
    }  # fmt: skip
    return DragProblem(**{**given, **changes})


@pytest.mark.parametrize("method", ["auto", "warp"])
def test_arrows_without_length_give_the_picture_back(unet: Any, trail: Tensor, method: str) -> None:
    still = run(problem(unet, trail, method, targets=HANDLES))
    none = run(problem(unet, trail, method, handles=HANDLES[:0], targets=HANDLES[:0]))
    assert still.stop is none.stop is Stop.NO_MOTION
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
    assert rest.costs == whole.costs


def test_points_that_have_arrived_stay_supervised(unet: Any, trail: Tensor) -> None:
    """A warped start has every point at its target; the loss is there and still falls."""
    done = run(problem(unet, trail, drag={"steps": 8, "stop_distance": 64.0, "mask_weight": 0.0}))
    assert done.iterations == 8
    assert 0 < done.losses[-1] < done.losses[0]


def test_cancelling_takes_effect_at_the_next_step(unet: Any, trail: Tensor) -> None:
    heard: list[int] = []

    def on_step(step: DragStep) -> None:
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
    with pytest.raises(NotFinite, match="became infinite after"):
        run(problem(unet, broken))


def test_a_run_has_settled_when_its_loss_no_longer_falls() -> None:
    patience = Patience(least=4, window=2, gain=0.1)
    assert not settled([5, 5], patience)
    assert settled([5, 5, 5, 5], patience)
    assert not settled([5, 5, 4, 4], patience)
    assert settled([9, 9, 5, 5, 4.9, 4.9], patience)
