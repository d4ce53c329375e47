"""Wrong mathematics turns the parity gates red: one mistake at a time, each must fail a check.

The gates leave room for rounding and for L1 terms that change their sign; this list shows that no
mistake of the kind one makes fits into that room.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import gates
import pytest
import torch
from forced import forced
from golden import Case, Micro, load_case, load_micro

from workbench.diffusion import ddim, lora
from workbench.diffusion import unet as denoiser
from workbench.diffusion.ddim import CLEAN, Schedule
from workbench.diffusion.unet import Denoiser, MutualSelfAttention, shared_layers
from workbench.drag import latents
from workbench.drag import loop as drag
from workbench.drag import tracking as features
from workbench.drag.latents import LatentOptimiser
from workbench.drag.problem import Reference
from workbench.imaging.coords import mask_levels

Tensor = torch.Tensor
Gate = Callable[..., None]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def micro(micro_sd: Path) -> Micro:
    return load_micro(micro_sd)


@pytest.fixture(scope="module")
def case(reference_dir: Path) -> Callable[[str], Case]:
    return cache(lambda name: load_case(reference_dir / name))


@pytest.fixture(scope="module")
def reference(case: Callable[[str], Case], micro: Micro) -> Callable[[str], Reference]:
    """`reference(name)`: the original's pass through the U-Net, made once, without a mistake."""

    @cache
    def made(name: str) -> Reference:
        with lora.merged(micro.unet, case(name).adapter):
            return latents.reference_of(case(name).problem(micro))

    return made


# --- the gates, as short as they still tell --------------------------------------------------------


def first_updates(case: Case, micro: Micro, reference: Reference) -> None:
    gates.updates(case, micro, forced(case, micro, 4, reference))


def first_trackings(case: Case, micro: Micro, reference: Reference) -> None:
    gates.updates(case, micro, forced(case, micro, 12, reference))


def all_updates(case: Case, micro: Micro, reference: Reference) -> None:
    gates.updates(case, micro, forced(case, micro, len(case.tensors["drag_grads"]), reference))


DRAGS = (first_updates, first_trackings, all_updates)
in_pairs = partial(gates.denoising, replayed=False)
replayed = partial(gates.denoising, replayed=True)
trained = partial(gates.training, steps=3)


# --- the mistakes ----------------------------------------------------------------------------------


def swap(patch: Patch, real: Callable[..., Any], wrong: Callable[..., Any]) -> None:
    """Put `wrong` in the place of a function, in whichever modules of ours it was imported into."""
    places = [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] == "workbench"
        for name, value in list(vars(module).items())
        if value is real
    ]
    assert places
    for module, name in places:
        patch.setattr(module, name, wrong)


def in_motion_loss(patch: Patch, **wrong: Callable[[dict[str, Any]], Any]) -> None:
    """Change arguments of the motion loss, each computed from those that were given."""
    real = drag.motion_loss

    def changed(
        feature: Tensor, feature_grid: Any, handles: Tensor, targets: Tensor, **more: Any
    ) -> Any:
        given = {
            "feature": feature, "feature_grid": feature_grid, "handles": handles, "targets": targets, **more
        }  # fmt: skip
        return real(**{**given, **{name: f(given) for name, f in wrong.items()}})

    swap(patch, real, changed)


def wrong_sign_of_the_shift(patch: Patch) -> None:
    in_motion_loss(patch, targets=lambda g: 2 * g["handles"] - g["targets"])


def patch_radius_off_by_one(patch: Patch) -> None:
    in_motion_loss(patch, radius=lambda g: g["radius"] + 1)
    real = drag.anchor_patches
    swap(patch, real, lambda *given: real(*given[:-1], given[-1] + 1))


def shift_twice_as_long(patch: Patch) -> None:
    in_motion_loss(patch, max_shift=lambda g: 2 * g["max_shift"])


def one_point_forgotten(patch: Patch) -> None:
    in_motion_loss(patch, active=lambda g: g["active"] * (torch.arange(len(g["active"])) > 0))


def arrived_points_still_pulled(patch: Patch) -> None:
    in_motion_loss(patch, active=lambda g: torch.ones_like(g["active"]))


def rows_and_columns_swapped(patch: Patch) -> None:
    in_motion_loss(
        patch, handles=lambda g: g["handles"].flip(1), targets=lambda g: g["targets"].flip(1)
    )


def scaled_motion_loss(patch: Patch, factor: Callable[[int], float]) -> None:
    """The motion loss times a factor of the patch radius."""
    real = drag.motion_loss
    swap(patch, real, lambda *given, **more: factor(more["radius"]) * real(*given, **more))


def mean_over_the_patch_without_its_weight(patch: Patch) -> None:
    scaled_motion_loss(patch, lambda radius: 1 / (2 * radius + 1) ** 2)


def weight_of_the_other_program(patch: Patch) -> None:
    scaled_motion_loss(patch, lambda radius: ((2 * radius + 1) / (2 * radius)) ** 2)


def anchored_at_the_feature_of_now(patch: Patch) -> None:
    in_motion_loss(patch, anchors=lambda _g: None)


def gradient_through_the_anchor(patch: Patch) -> None:
    def anchors(g: dict[str, Any]) -> Tensor:
        corner, side = g["handles"].floor() - g["radius"], 2 * g["radius"] + 1
        return features.patches(g["feature"], g["feature_grid"], corner, side)

    # at a given anchor the loss takes GoodDrag's weight
    scaled_motion_loss(patch, lambda radius: ((2 * radius + 1) / (2 * radius)) ** 2)
    in_motion_loss(patch, anchors=anchors)


def mask_term_missing(patch: Patch) -> None:
    swap(patch, drag.mask_loss, lambda previous, *_: previous.new_zeros(()))


def mask_inverted(patch: Patch) -> None:
    real = drag.mask_loss
    swap(patch, real, lambda previous, reference, mask: real(previous, reference, 1 - mask))


def mask_term_squared(patch: Patch) -> None:
    swap(
        patch, drag.mask_loss,
        lambda previous, reference, mask: (((previous - reference) * (1 - mask)) ** 2).sum(),
    )  # fmt: skip


def mask_term_holds_the_latent_itself(patch: Patch) -> None:
    """Without the DDIM step: the noise that the model predicts is left out of the gradient."""
    real = drag.mask_loss
    swap(
        patch, real,
        lambda previous, reference, mask: real(previous.detach(), reference, mask),
    )  # fmt: skip


def mask_of_the_latent_inverted(patch: Patch) -> None:
    real = mask_levels
    monkey = sys.modules["golden"]
    patch.setattr(monkey, "mask_levels", lambda painted: tuple(~m for m in real(painted)))


def tracking_never_moves(patch: Patch) -> None:
    real = features.track
    swap(
        patch, real,
        lambda feature, feature_grid, points, templates, *rest, **more: real(
            feature, feature_grid, points, features.samples(feature, feature_grid, points), *rest, **more
        ),
    )  # fmt: skip


def tracking_window_off_by_one(patch: Patch) -> None:
    real = features.track
    swap(
        patch, real,
        lambda feature, feature_grid, points, templates, radius, **more: real(
            feature, feature_grid, points, templates, radius - 1, **more
        ),
    )  # fmt: skip


def tracking_off_by_one(patch: Patch) -> None:
    real = features.track

    def shifted(*given: Any, **more: Any) -> Any:
        found = real(*given, **more)
        return dataclasses.replace(found, points=found.points + 1)

    swap(patch, real, shifted)


def feature_grid_off_by_half_a_pixel(patch: Patch) -> None:
    patch.setattr(
        features,
        "_native",
        lambda index, feature_grid, cells: (index * (cells / feature_grid)).clamp(min=0),
    )


def alpha_of_the_neighbouring_timestep(patch: Patch) -> None:
    patch.setattr(
        Schedule, "alpha", lambda self, t: self.final_alpha if t <= 0 else self.alphas[t - 1]
    )


def clean_without_its_final_alpha(patch: Patch) -> None:
    patch.setattr(Schedule, "alpha", lambda self, t: 1.0 if t < 0 else self.alphas[t])


def inversion_asks_at_the_earlier_level(patch: Patch) -> None:
    def invert(denoise: Any, z: Tensor, schedule: Schedule, n: int) -> Tensor:
        trail, level = [z], CLEAN
        for tau in reversed(schedule.tail(n)):
            eps = denoise(z, max(level, 0))
            z = schedule.noised(schedule.clean(z, eps, level), eps, tau)
            trail.append(z)
            level = tau
        return torch.stack(trail)

    patch.setattr(ddim, "invert", invert)


def feature_of_the_wrong_layer(patch: Patch) -> None:
    real = denoiser.block_of
    swap(patch, real, lambda unet, block: real(unet, block - 1))


def attention_shared_from_the_wrong_layer(patch: Patch) -> None:
    swap(patch, shared_layers, lambda unet, start: shared_layers(unet, start + 1))


def attention_shared_from_the_wrong_step(patch: Patch) -> None:
    real = latents.denoise
    monkey = sys.modules["gates"]
    patch.setattr(monkey, "denoise", lambda *given: real(*given, share_from=1))


def attention_of_the_edited_row(patch: Patch) -> None:
    real = MutualSelfAttention.source

    def source(self: MutualSelfAttention, layer: int, hidden: Tensor) -> Tensor:
        if self.mode != "pairs":
            return real(self, layer, hidden)
        return hidden.unflatten(0, (-1, 2))[:, 1:].expand(-1, 2, -1, -1).flatten(0, 1)

    patch.setattr(MutualSelfAttention, "source", source)


def replay_of_another_timestep(patch: Patch) -> None:
    real = MutualSelfAttention.source

    def source(self: MutualSelfAttention, layer: int, hidden: Tensor) -> Tensor:
        if self.mode != "replay":
            return real(self, layer, hidden)
        return self.kv.states[min(t for t, _ in self.kv.states), layer]

    patch.setattr(MutualSelfAttention, "source", source)


def uphill(patch: Patch) -> None:
    real = LatentOptimiser.gradient
    patch.setattr(LatentOptimiser, "gradient", lambda self, loss: -real(self, loss))


def another_rate(patch: Patch) -> None:
    real = LatentOptimiser.__init__
    patch.setattr(
        LatentOptimiser, "__init__",
        lambda self, latent, lr, **more: real(self, latent, 1.01 * lr, **more),
    )  # fmt: skip


def adam_with_decay_of_its_second_moment_off(patch: Patch) -> None:
    real = torch.optim.Adam
    patch.setattr(
        torch.optim, "Adam", lambda given, **more: real(given, **{**more, "betas": (0.9, 0.99)})
    )


def guidance_the_wrong_way_round(patch: Patch) -> None:
    real = Denoiser._noise
    patch.setattr(
        Denoiser, "_noise",
        lambda self, z, out, t: real(self, z, out.flip(0) if self.guided else out, t),
    )  # fmt: skip


def features_without_guidance(patch: Patch) -> None:
    patch.setattr(
        Denoiser, "_weighted",
        lambda self, feature: torch.cat(feature.chunk(2), dim=1) if self.guided else feature,
    )  # fmt: skip


def lora_subtracted(patch: Patch) -> None:
    real = lora.merged
    swap(patch, real, lambda unet, state, weight=1.0: real(unet, state, -weight))


def lora_left_out(patch: Patch) -> None:
    swap(patch, lora.merged, lambda *_given, **_more: contextlib.nullcontext())


def training_towards_the_picture(patch: Patch) -> None:
    patch.setattr(Schedule, "training_target", lambda self, x0, noise, t: x0)


def training_at_the_wrong_noise(patch: Patch) -> None:
    real = Schedule.add_noise
    patch.setattr(
        Schedule, "add_noise", lambda self, x0, noise, t: real(self, x0, noise, (t - 1).clamp(0))
    )


def noise_without_its_root(patch: Patch) -> None:
    def noised(self: Schedule, x0: Tensor, eps: Tensor, t: int) -> Tensor:
        return math.sqrt(self.alpha(t)) * x0 + (1 - self.alpha(t)) * eps

    patch.setattr(Schedule, "noised", noised)


MISTAKES: list[tuple[Callable[[Patch], None], str, Gate]] = [
    (wrong_sign_of_the_shift, "nomask", first_updates),
    (wrong_sign_of_the_shift, "gooddrag_masked", first_updates),
    (patch_radius_off_by_one, "nomask", first_updates),
    (patch_radius_off_by_one, "gooddrag_masked", first_updates),
    (shift_twice_as_long, "nomask", first_updates),
    (shift_twice_as_long, "gooddrag_masked", first_updates),
    (one_point_forgotten, "masked", first_updates),
    (arrived_points_still_pulled, "masked", all_updates),
    (rows_and_columns_swapped, "masked", first_updates),
    (mean_over_the_patch_without_its_weight, "nomask", first_updates),
    (weight_of_the_other_program, "gooddrag_masked", first_updates),
    (anchored_at_the_feature_of_now, "gooddrag_masked", first_updates),
    (gradient_through_the_anchor, "nomask", first_updates),
    (mask_term_missing, "masked", first_updates),
    (mask_term_missing, "gooddrag_nomask", first_updates),
    (mask_inverted, "masked", first_updates),
    (mask_term_squared, "masked", first_updates),
    (mask_term_holds_the_latent_itself, "masked", first_updates),
    (mask_of_the_latent_inverted, "masked", gates.mask),
    (tracking_never_moves, "masked", first_trackings),
    (tracking_window_off_by_one, "masked", all_updates),
    (tracking_off_by_one, "nomask", first_updates),
    (feature_grid_off_by_half_a_pixel, "odd", gates.feature),
    (feature_grid_off_by_half_a_pixel, "nomask", first_updates),
    (alpha_of_the_neighbouring_timestep, "nomask", gates.inversion),
    (clean_without_its_final_alpha, "nomask", gates.inversion),
    (inversion_asks_at_the_earlier_level, "nomask", gates.inversion),
    (noise_without_its_root, "nomask", gates.inversion),
    (feature_of_the_wrong_layer, "nomask", gates.feature),
    (feature_of_the_wrong_layer, "nomask", first_updates),
    (attention_shared_from_the_wrong_layer, "nomask", in_pairs),
    (attention_shared_from_the_wrong_layer, "nomask", replayed),
    (attention_shared_from_the_wrong_step, "nomask", in_pairs),
    (attention_of_the_edited_row, "nomask", in_pairs),
    (replay_of_another_timestep, "nomask", replayed),
    (uphill, "nomask", first_updates),
    (another_rate, "nomask", first_updates),
    (adam_with_decay_of_its_second_moment_off, "nomask", first_updates),
    (guidance_the_wrong_way_round, "gen", in_pairs),
    (features_without_guidance, "gen", gates.feature),
    (lora_subtracted, "masked", gates.inversion),
    (lora_left_out, "masked", first_updates),
    (training_towards_the_picture, "masked", trained),
    (training_at_the_wrong_noise, "masked", trained),
]


@pytest.mark.parametrize(
    ("mistake", "name", "gate"),
    MISTAKES,
    ids=[f"{m.__name__}-{n}" for m, n, _ in MISTAKES],
)
def test_this_mistake_is_found(
    mistake: Callable[[Patch], None],
    name: str,
    gate: Gate,
    case: Callable[[str], Case],
    reference: Callable[[str], Reference],
    micro: Micro,
    monkeypatch: Patch,
) -> None:
    given = [case(name), micro]
    if gate in DRAGS:
        given.append(reference(name))
    mistake(monkeypatch)
    with lora.merged(micro.unet, case(name).adapter), pytest.raises(AssertionError):
        gate(*given)
