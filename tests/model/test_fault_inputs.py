"""Borders, flat pictures, few steps, overflow and no network: whole edits by every method."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from edit_bench import Bench
from refusals import refusal

from workbench.core.config import METHODS, DragConfig, InversionConfig, LoraConfig
from workbench.core.errors import ModelError
from workbench.core.record import EditRecord, JobState, StopReason
from workbench.core.request import EditRequest, ModelRef, Point, PointPair
from workbench.diffusion import model
from workbench.diffusion.registry import Registry
from workbench.drag.latents import LatentOptimiser
from workbench.drag.tracking import track

W, H = 72, 64


def quick(bench: Bench, method: str, **more: Any) -> EditRequest:
    """A few steps of a method, without a LoRA."""
    drag = dataclasses.replace(DragConfig.preset(method), steps=4, drag_rounds=2)
    given: dict[str, Any] = {
        "mask": None, "lora": LoraConfig(steps=0), "drag": drag,
        "inversion": InversionConfig(steps=4, strength=0.75),
    }  # fmt: skip
    return bench.request(**{**given, **more})


def sound(bench: Bench, record: EditRecord) -> None:
    """The edit is done, and all that it reports is finite and inside the picture."""
    assert record.status is JobState.DONE and record.result is not None
    found = record.result
    assert bench.store.image(found.image).shape == (H, W, 3)
    assert all(math.isfinite(v) for v in [*found.distances, *found.losses])
    for points in found.trajectory:
        assert all(-0.5 <= p.x <= W - 0.5 and -0.5 <= p.y <= H - 0.5 for p in points)


@pytest.mark.parametrize("method", METHODS)
def test_fault_15_points_on_the_last_row_and_column(bench: Bench, method: str) -> None:
    pairs = (
        PointPair(Point(W - 1, H - 1), Point(W - 1, 40)),
        PointPair(Point(20, H - 1), Point(W - 1, H - 1)),
        PointPair(Point(W - 0.5, 10), Point(40, 10)),
    )
    record = bench.edit(quick(bench, method, pairs=pairs))
    sound(bench, record)
    assert record.result is not None
    assert len(record.result.distances) == 3


@pytest.mark.parametrize("method", METHODS)
def test_fault_16_handles_within_a_pixel_of_the_border_and_slanted_targets(
    bench: Bench, method: str
) -> None:
    """The reference's 3x3 patch at a fractional shift reads beyond the map there and fails."""
    edges = [(0, 0), (1, 30), (30, 0.6), (W - 2, 30), (30, H - 1.4), (0, H - 1), (W - 1, 1)]
    targets = [(11, 7), (17, 21), (47, 13), (49, 37), (17, 47), (13, 40), (51, 19)]
    pairs = tuple(PointPair(Point(*a), Point(*b)) for a, b in zip(edges, targets, strict=True))
    sound(bench, bench.edit(quick(bench, method, pairs=pairs)))
    outward = tuple(PointPair(Point(*b), Point(*a)) for a, b in zip(edges, targets, strict=True))
    sound(bench, bench.edit(quick(bench, method, pairs=outward)))


@pytest.mark.parametrize("method", METHODS)
def test_fault_17_arrows_without_length_move_nothing(bench: Bench, method: str) -> None:
    at = PointPair(Point(30, 30), Point(30, 30))
    record = bench.edit(quick(bench, method, pairs=(at, at)))
    sound(bench, record)
    assert record.result is not None
    assert record.result.stop == StopReason.NO_MOTION.name
    assert record.result.iterations == 0


@pytest.mark.parametrize("method", METHODS)
def test_fault_17_equal_handles_and_crossing_arrows(bench: Bench, method: str) -> None:
    pairs = (
        PointPair(Point(20, 30), Point(50, 30)),
        PointPair(Point(20, 30), Point(50, 30)),
        PointPair(Point(50, 30), Point(20, 30)),
        PointPair(Point(35, 15), Point(35, 45)),
    )
    sound(bench, bench.edit(quick(bench, method, pairs=pairs)))


@pytest.mark.parametrize("method", METHODS)
def test_fault_18_on_a_picture_of_one_colour_nothing_breaks(bench: Bench, method: str) -> None:
    flat = bench.store.put_image(np.full((H, W, 3), 128, np.uint8))
    sound(bench, bench.edit(quick(bench, method, image=flat)))


@pytest.mark.parametrize("radius", [1, 3, 12])
def test_fault_18_among_equal_features_the_nearest_wins(radius: int) -> None:
    """The reference takes the first: there the handle walks to the top left, a window a step."""
    feature = torch.ones(1, 5, 8, 8)
    points = torch.tensor([[20.0, 9.0], [0.0, 0.0], [31.0, 31.0]])
    templates = torch.ones(3, 5)
    assert track(feature, (32, 32), points, templates, radius).points.equal(points)
    first = track(feature, (32, 32), points, templates, radius, parity=True).points
    assert first[0].tolist() == [max(0, 20 - radius), max(0, 9 - radius)]


@pytest.mark.parametrize("method", ["dragdiffusion", "gooddrag"])
def test_fault_18_handles_that_never_move_end_as_stuck(
    bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With features of one value throughout: no gradient, no step, and the report says so."""
    from workbench.diffusion import unet

    # a detour that keeps the graph: the gradient exists, and is zero
    monkeypatch.setattr(unet.Denoiser, "_weighted", lambda _self, feature: feature * 0 + 1)
    request = quick(bench, method)
    drag = dataclasses.replace(request.drag, steps=40)
    record = bench.edit(dataclasses.replace(request, drag=drag))
    sound(bench, record)
    assert record.result is not None
    assert record.result.stop == StopReason.STUCK.name
    lefts = [p.handle.distance(p.target) for p in request.pairs]
    assert record.result.distances == pytest.approx(lefts, abs=3)


@pytest.mark.parametrize("method", ["dragdiffusion", "gooddrag", "auto"])
def test_fault_22_an_overflow_keeps_the_last_finite_step(
    bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = quick(bench, method)
    if method == "auto":  # its draft optimises nothing
        refined = dataclasses.replace(request.drag, refine=True)
        request = dataclasses.replace(request, drag=refined)
    real, calls = LatentOptimiser.gradient, 0

    def burst(self: LatentOptimiser, loss: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        found = real(self, loss)
        return found * torch.inf if calls == 3 else found

    with monkeypatch.context() as patch:
        patch.setattr(LatentOptimiser, "gradient", burst)
        with refusal("not-finite", kind=ModelError):
            bench.edit(request)
    record = bench.store.records()[0]
    assert record.status is JobState.FAILED and record.result is not None
    assert np.isfinite(bench.store.image(record.result.image)).all()
    kinds = {e.kind for e in bench.cache.entries()}
    assert "state" not in kinds
    again = bench.edit(request)
    sound(bench, again)
    assert again.result is not None
    assert "drag" not in again.result.cached


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("steps", "strength"), [(2, 0.5), (2, 1.0), (4, 1.0)])
def test_few_inverted_steps_are_enough_for_every_method(
    bench: Bench, method: str, steps: int, strength: float
) -> None:
    """GoodDrag's program fails where its rounds take all of them (drag end step >= steps)."""
    drag = dataclasses.replace(DragConfig.preset(method), steps=3)
    inversion = InversionConfig(steps=steps, strength=strength)
    sound(bench, bench.edit(quick(bench, method, drag=drag, inversion=inversion)))


def test_fault_45_the_model_that_ships_needs_no_network(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    class Refused(socket.socket):
        def __init__(self, *_args: Any, **_kwargs: Any) -> None:
            raise AssertionError("a run tried to use the network")

    monkeypatch.setattr(socket, "socket", Refused)
    monkeypatch.setattr(socket, "getaddrinfo", Refused)
    bench.runtime = model.load("storybook", device="cpu")
    request = quick(bench, "auto", model=ModelRef(name="storybook"), working_size=64)
    sound(bench, bench.edit(request))


def test_fault_45_a_model_that_is_not_here_is_asked_for_by_its_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refusal("not-here", kind=ModelError):
        model.load("sd15", device="cpu", registry=Registry())
