"""Losses against the long way round; the loop's promises: stop, borders, NaN, cancel, running on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from refusals import refusal
from small_unet import denoiser, normal, small_unet, text
from test_graphs import Tape

from workbench.core.config import DragConfig
from workbench.core.errors import Cancelled, ModelError
from workbench.core.record import StepInfo
from workbench.diffusion.unet import Denoiser, Prompt, frozen
from workbench.drag.latents import LatentOptimiser, NotFinite
from workbench.drag.loop import DragLoop, anchor_patches, mask_loss, motion_loss
from workbench.drag.problem import DragProblem, DragState, Original, StopCriteria, Supervision

Tensor = torch.Tensor
FEATURE_GRID = (32, 32)


@pytest.fixture(scope="module")
def unet() -> Any:
    return small_unet()


def points(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows).reshape(-1, 2)


# --- losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_motion_loss_equals_the_long_way(radius: int) -> None:
    feature = normal(1, 5, 8, 8)
    handle, target = points((14.0, 12.0)), points((18.0, 15.0))
    found = motion_loss(
        feature, FEATURE_GRID, handle, target, radius=radius, max_shift=1.0, active=torch.ones(1)
    )
    full = F.interpolate(feature, FEATURE_GRID, mode="bilinear")
    side, (dr, dc) = 2 * radius + 1, (0.8, 0.6)  # (4, 3) / 5

    def cut(i: int, j: int) -> Tensor:
        r, c = 14 - radius + i, 12 - radius + j
        return full[:, :, r : r + side, c : c + side]

    moved = (
        (1 - dr) * (1 - dc) * cut(0, 0)
        + dr * (1 - dc) * cut(1, 0)
        + (1 - dr) * dc * cut(0, 1)
        + dr * dc * cut(1, 1)
    )
    assert found.item() == pytest.approx(side**2 * F.l1_loss(cut(0, 0), moved).item(), rel=1e-5)


def test_shift_ends_at_the_target() -> None:
    """With a long enough reach the moved patch sits exactly on the target."""
    feature = normal(1, 5, 8, 8)
    handle, target = points((14.0, 12.0)), points((18.0, 15.0))
    anchors = anchor_patches(feature, FEATURE_GRID, target, 2)
    found = motion_loss(
        feature, FEATURE_GRID, handle, target,
        radius=2, max_shift=9.0, active=torch.ones(1), anchors=anchors,
    )  # fmt: skip
    assert found.item() == pytest.approx(0.0, abs=1e-5)


def test_points_add_up_and_arrived_ones_count_nothing() -> None:
    feature = normal(1, 5, 8, 8).requires_grad_()
    handles = points((10.0, 10.0), (20.0, 12.0), (7.0, 25.0))
    targets = handles + points((3.0, 0.0), (0.0, 5.0), (-2.0, -2.0))

    def loss(active: list[float], rows: slice = slice(None)) -> Tensor:
        return motion_loss(
            feature, FEATURE_GRID, handles[rows], targets[rows],
            radius=1, max_shift=1.0, active=torch.tensor(active),
        )  # fmt: skip

    single = [loss([1.0], slice(i, i + 1)).item() for i in range(3)]
    assert loss([1.0, 1.0, 1.0]).item() == pytest.approx(sum(single), rel=1e-5)
    assert loss([0.0, 1.0, 0.0]).item() == pytest.approx(single[1], rel=1e-5)
    (grad,) = torch.autograd.grad(loss([0.0, 0.0, 0.0]), feature)
    assert not grad.any()


@pytest.mark.parametrize("where", [(0.0, 0.0), (31.0, 31.0), (31.0, 7.0), (0.0, 31.0)])
@pytest.mark.parametrize("anchored", [False, True])
def test_handles_on_the_border_give_finite_losses(
    where: tuple[float, float], anchored: bool
) -> None:
    """docs/faults.md 15, 16: last row or column, patches and shifts that reach outside."""
    feature = normal(1, 5, 8, 8).requires_grad_()
    handle = points(where)
    anchors = anchor_patches(feature.detach(), FEATURE_GRID, handle, 4) if anchored else None
    for target in ((0.0, 0.0), (31.0, 31.0), (31.0, 0.0), (-3.0, 40.0)):
        loss = motion_loss(
            feature, FEATURE_GRID, handle, points(target),
            radius=4, max_shift=4.0, active=torch.ones(1), anchors=anchors,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(loss, feature)
        assert loss.isfinite()
        assert grad.isfinite().all()


def test_a_clipped_patch_averages_over_what_is_left() -> None:
    feature = normal(1, 5, 8, 8)
    found = motion_loss(
        feature, FEATURE_GRID, points((0.0, 10.0)), points((9.0, 10.0)),
        radius=1, max_shift=1.0, active=torch.ones(1),
    )  # fmt: skip
    full = F.interpolate(feature, FEATURE_GRID, mode="bilinear")
    mean = F.l1_loss(full[:, :, 0:2, 9:12], full[:, :, 1:3, 9:12])
    assert found.item() == pytest.approx(9 * mean.item(), rel=1e-5)  # the weight stays 9


def test_no_way_to_go_is_no_gradient() -> None:
    """docs/faults.md 17: handle equal to target."""
    feature = normal(1, 5, 8, 8).requires_grad_()
    at = points((10.0, 10.0))
    loss = motion_loss(feature, FEATURE_GRID, at, at, radius=1, max_shift=1.0, active=torch.ones(1))
    (grad,) = torch.autograd.grad(loss, feature)
    assert loss.item() == 0
    assert not grad.any()


def test_mask_term_sums_outside_only() -> None:
    a, b = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    outside = (a - b).abs()[(mask == 0).expand_as(a)].sum()
    assert mask_loss(a, b, mask).item() == pytest.approx(outside.item(), rel=1e-5)
    assert mask_loss(a, b, torch.ones_like(mask)).item() == 0


# --- optimiser --------------------------------------------------------------------------------------


def test_first_update_moves_every_touched_element_by_the_rate() -> None:
    latent = normal(1, 4, 8, 8)
    optimiser = LatentOptimiser(latent, 0.01)
    grad = normal(1, 4, 8, 8, seed=1)
    grad[..., :4] = 0
    optimiser.apply(grad)
    moved = optimiser.latent.detach() - latent
    assert torch.allclose(moved[..., 4:], -0.01 * grad[..., 4:].sign(), atol=1e-5)
    assert not moved[..., :4].any()


def test_adam_continues_where_it_stood() -> None:
    grads = normal(6, 1, 4, 8, 8)
    whole = LatentOptimiser(normal(1, 4, 8, 8, seed=1), 0.02)
    for grad in grads:
        whole.apply(grad)
    part = LatentOptimiser(normal(1, 4, 8, 8, seed=1), 0.02)
    for grad in grads[:3]:
        part.apply(grad)
    rest = LatentOptimiser(part.latent, 0.02, state=part.state())
    for grad in grads[3:]:
        rest.apply(grad)
    assert torch.equal(rest.latent, whole.latent)


def test_an_overflowing_half_precision_update_moves_nothing() -> None:
    optimiser = LatentOptimiser(normal(1, 4, 8, 8), 0.01, half=True)
    optimiser.apply(normal(1, 4, 8, 8, seed=1))
    before, moments = optimiser.latent.detach().clone(), optimiser.state()
    broken = normal(1, 4, 8, 8, seed=2)
    broken[0, 0, 0, 0] = float("inf")
    optimiser.apply(broken)
    after = optimiser.state()
    assert torch.equal(optimiser.latent.detach(), before)
    assert moments is not None
    assert after is not None
    assert torch.equal(moments.exp_avg, after.exp_avg)
    assert float(optimiser.scale) == 32768
    optimiser.apply(normal(1, 4, 8, 8, seed=3))
    assert not torch.equal(optimiser.latent.detach(), before)


def test_scaled_gradients_are_the_gradients() -> None:
    latent = normal(1, 4, 8, 8)
    plain, half = LatentOptimiser(latent, 0.01), LatentOptimiser(latent, 0.01, half=True)
    a, b = (o.gradient((o.latent**2).sum()) for o in (plain, half))
    assert torch.allclose(a, 2 * latent)
    assert torch.allclose(a, b)


# --- the U-Net under fixed conditions -----------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_a_truncated_forward_gives_the_same_feature_and_gradient(unet: Any, block: int) -> None:
    d = denoiser(unet, block=block)
    z = normal(1, 4, 8, 8).requires_grad_()
    whole, _ = d.both(z, 101)
    part = d.feature(z, 101)
    assert torch.equal(whole, part)
    weight = normal(*whole.shape, seed=2)
    grads = [torch.autograd.grad((f * weight).sum(), z)[0] for f in (whole, part)]
    assert torch.equal(*grads)
    assert not any(m._forward_hooks for m in unet.modules())


def test_guidance_combines_two_rows(unet: Any) -> None:
    negative = Prompt(normal(1, 4, 8, seed=9))
    guided = denoiser(unet, negative=negative, guidance=7.5)
    plain, empty = denoiser(unet), Denoiser(unet, guided.schedule, negative)
    z = normal(2, 4, 8, 8)
    with torch.no_grad():
        u, c = empty.eps(z, 101), plain.eps(z, 101)
        assert torch.allclose(guided.eps(z, 101), u + 7.5 * (c - u), atol=1e-5)
        share = 7.5 / 14
        f = torch.cat(
            [(1 - share) * empty.feature(z[:1], 101), share * plain.feature(z[:1], 101)], dim=1
        )
        assert torch.allclose(guided.feature(z[:1], 101), f, atol=1e-5)
    assert (guided.rows, plain.rows) == (2, 1)


def test_frozen_puts_each_switch_back(unet: Any) -> None:
    some = list(unet.parameters())[::3]

    def work() -> None:
        with frozen(unet):
            assert not any(p.requires_grad for p in unet.parameters())
            raise Cancelled

    for p in some:
        p.requires_grad_(True)
    try:
        before = [p.requires_grad for p in unet.parameters()]
        with pytest.raises(Cancelled):
            work()
        assert [p.requires_grad for p in unet.parameters()] == before
    finally:
        unet.requires_grad_(False)


# --- the loop ---------------------------------------------------------------------------------------


@dataclass
class Run:
    """A loop at one timestep: the loop itself, the latent it left, and what it reported."""

    loop: DragLoop
    latent: Tensor
    steps: list[StepInfo]
    state: DragState


def run(unet: Any, rules: Supervision | None = None, **changes: Any) -> Run:
    """One timestep from a latent with given points; `on_step` sees each report."""
    d = changes.pop("denoiser", None) or denoiser(unet)
    start = changes.pop("latent", normal(1, 4, 8, 8))
    on_step = changes.pop("on_step", lambda _s: None)
    with torch.no_grad():
        feature, eps = d.both(normal(1, 4, *start.shape[-2:]), 101)
        previous = d.schedule.step(normal(1, 4, *start.shape[-2:]), eps, 101)
    handles = changes.pop("handles", points((15.0, 10.0), (20.0, 20.0)))
    given: dict[str, Any] = {
        "unet": unet, "schedule": d.schedule, "prompt": Prompt(text()), "inversion_latents": start[None],
        "handles": handles, "targets": points((10.0, 14.0), (26.0, 23.0))[: len(handles)],
        "feature_grid": FEATURE_GRID, "config": DragConfig(steps=4),
    }  # fmt: skip
    heard: list[StepInfo] = []

    def report(step: StepInfo) -> None:
        on_step(step)
        heard.append(step)

    loop = DragLoop(d, DragProblem(**{**given, **changes}), rules or Supervision(), report)
    latent = loop.drag(start, 101, Original(feature, previous))
    loop.finish(latent, 101)
    state = DragState(
        latent=latent, t=101, points=loop.trajectory[-1], trajectory=tuple(loop.trajectory),
        losses=tuple(loop.losses), updates=loop.before + loop.updates, adam=loop.adam,
    )  # fmt: skip
    return Run(loop, latent, heard, state)


def test_every_turn_is_reported_and_the_last_update_tracked(unet: Any) -> None:
    done = run(unet)
    assert [s.step for s in done.steps] == [0, 1, 2, 3, 4]
    assert {s.total for s in done.steps} == {4}
    assert done.steps[0].loss is None
    assert [s.loss for s in done.steps[1:]] == done.loop.losses
    assert len(done.loop.trajectory) == 5
    last = done.steps[-1]
    assert last.points is not None
    assert [[p.y, p.x] for p in last.points] == done.loop.trajectory[-1].tolist()
    assert last.distances == tuple(done.loop.distances.tolist())
    assert done.steps[2].clean is not None
    assert done.steps[2].clean().shape == (1, 4, 8, 8)
    assert done.loop.updates == 4


def test_a_run_in_two_parts_equals_one(unet: Any) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    whole = run(unet, mask=mask, config=DragConfig(steps=6))
    part = run(unet, mask=mask, config=DragConfig(steps=3))
    rest = run(unet, mask=mask, config=DragConfig(steps=3), latent=part.latent, resume=part.state)
    assert torch.equal(rest.latent, whole.latent)
    assert all(map(torch.equal, rest.loop.trajectory, whole.loop.trajectory))
    assert rest.loop.losses == whole.loop.losses
    assert rest.steps[-1].step == 6


def test_points_that_are_there_stop_it_at_once(unet: Any) -> None:
    """docs/faults.md 17: an arrow shorter than the stop distance moves nothing; nor does none at all."""
    for targets in (points((15.0, 11.0), (20.0, 20.0)), points()):
        handles = points((15.0, 10.0), (20.0, 20.0))[: len(targets)]
        done = run(unet, handles=handles, targets=targets)
        assert done.loop.reached
        assert done.loop.updates == 0
        assert torch.equal(done.latent, normal(1, 4, 8, 8))


def test_the_callers_points_and_latent_are_not_changed(unet: Any) -> None:
    handles, latent = points((15.0, 10.0), (20.0, 20.0)), normal(1, 4, 8, 8)
    kept = handles.clone(), latent.clone()
    run(unet, handles=handles, latent=latent)
    assert torch.equal(handles, kept[0])
    assert torch.equal(latent, kept[1])
    assert not latent.requires_grad


def test_the_mask_holds_the_rest(unet: Any) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    strong = run(unet, mask=mask, config=DragConfig(steps=8, mask_weight=100.0))
    loose = run(unet, mask=mask, config=DragConfig(steps=8, mask_weight=0.0))
    outside = (mask == 0).expand(1, 4, 8, 8)
    moved = [(r.latent - normal(1, 4, 8, 8)).abs()[outside].mean() for r in (strong, loose)]
    assert moved[0] < 0.5 * moved[1]


@pytest.mark.parametrize("bad_forward", [1, 3])
def test_infinite_numbers_stop_it_with_the_last_good_latent(
    unet: Any, bad_forward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/faults.md 22."""
    calls = 0
    broken = denoiser(unet)
    plain = broken.feature
    latents = [normal(1, 4, 8, 8)]
    apply = LatentOptimiser.apply

    def feature(z: Tensor, t: int) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(z, t) * (float("nan") if calls > bad_forward else 1.0)

    def applied(self: LatentOptimiser, grad: Tensor) -> None:
        apply(self, grad)
        latents.append(self.latent.detach().clone())

    broken.feature = feature  # type: ignore[method-assign]
    monkeypatch.setattr(LatentOptimiser, "apply", applied)
    steps: list[StepInfo] = []
    with refusal("not-finite", kind=NotFinite) as caught:
        run(unet, denoiser=broken, on_step=steps.append)
    assert isinstance(caught.value, ModelError)
    assert torch.equal(caught.value.latent, latents[bad_forward - 1])
    assert caught.value.t == 101
    assert len(steps) == bad_forward


def test_cancel_passes_through_and_leaves_nothing(unet: Any) -> None:
    def stop(now: StepInfo) -> None:
        if now.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(unet, on_step=stop)
    assert not any(m._forward_hooks for m in unet.modules())
    assert all(p.grad is None for p in unet.parameters())


def test_many_points_go_in_one_batch(unet: Any) -> None:
    grid = torch.cartesian_prod(torch.arange(8.0) * 4, torch.arange(8.0) * 4)
    done = run(unet, handles=grid, targets=grid.flip(0), config=DragConfig(steps=2))
    assert done.loop.trajectory[-1].shape == (64, 2)
    assert len(done.loop.match_error) == len(done.loop.distances) == 64


def test_odd_latents_and_feature_grids(unet: Any) -> None:
    """A picture of 100 x 75 pixels: latent 12 x 9, feature grid 50 x 37."""
    done = run(
        unet, latent=normal(1, 4, 12, 9), feature_grid=(50, 37),
        handles=points((49.0, 36.0)), targets=points((40.0, 30.0)),
    )  # fmt: skip
    assert done.loop.updates == 4
    assert done.latent.isfinite().all()


@pytest.mark.parametrize("rules", [
    Supervision(),
    Supervision(anchored=True, rounds=2, trackings=2, updates_per_tracking=2),
    Supervision(anchored=True, arrived_weight=1.0, stop=StopCriteria(doubt=0.7)),
])  # fmt: skip
def test_no_turn_changes_what_a_recording_reads(
    unet: Any, rules: Supervision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replayed turn finds points and latent where the recorded one found them."""
    plain = run(unet, rules, config=DragConfig(steps=6, patch_radius=2))
    real = LatentOptimiser.__init__

    def without_graphs(self: LatentOptimiser, *given: Any, **more: Any) -> None:
        real(self, *given, **{**more, "graphs": None})  # Adam's own recording needs a GPU

    monkeypatch.setattr(LatentOptimiser, "__init__", without_graphs)
    tape = Tape()
    replayed = run(
        unet, rules, denoiser=denoiser(unet, graphs=tape),
        config=DragConfig(steps=6, patch_radius=2),
    )  # fmt: skip
    assert tape.replayed > 0
    assert torch.equal(plain.latent, replayed.latent)
    assert plain.loop.losses == replayed.loop.losses
    assert all(map(torch.equal, plain.loop.trajectory, replayed.loop.trajectory))


def test_tracking_waits_for_the_updates_of_a_round(unet: Any) -> None:
    rules = Supervision(anchored=True, rounds=1, trackings=2, updates_per_tracking=3)
    done = run(unet, rules, config=DragConfig(steps=50, stop_distance=0.0, patch_radius=2))
    assert done.loop.updates == 6
    # the start, the entry into the round, two trackings, the last look
    assert len(done.loop.trajectory) == 5
    assert len(done.loop.losses) == 6
