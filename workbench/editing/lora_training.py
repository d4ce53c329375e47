"""Train a picture's LoRA and write its file with its origin."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from workbench.core import keys
from workbench.core.config import LoraRef
from workbench.core.errors import BadInput, ModelError
from workbench.core.record import StepInfo
from workbench.diffusion.lora import initial_state, random_draws, train
from workbench.diffusion.lora_files import LoraCard, write
from workbench.diffusion.lora_format import rank_of
from workbench.imaging import decode

if TYPE_CHECKING:
    from workbench.editing.prepare import PreparedEdit


def train_lora(edit: PreparedEdit, start: LoraRef | None) -> bytes:
    """Train the LoRA of a prepared edit, from `start` where one is given; the file's bytes.

    Raises:
        BadInput: when `start` has another rank.
        ModelError: when the weights became NaN.
    """
    request, run, config = edit.request, edit.runtime, edit.request.lora
    before = edit.lora_file(start, style=False) if start is not None else None
    begin = before.weights if before is not None else None
    seed = request.seed
    if start is not None:  # going on with the noise of the first time would teach less
        seed = int(keys.key("further", seed, start.id)[-15:], 16)
    if begin is not None and begin.keys() != initial_state(run.unet, 1, 0).keys():
        raise BadInput(
            "The LoRA to go on from is not a plain one of every attention layer, so training "
            "cannot go on from it; use it as it is, or train a new one.",
            code="cannot-continue",
        )
    if begin is not None and rank_of(begin) != config.rank:
        raise BadInput(
            f"The LoRA to go on from has rank {rank_of(begin)}, and the options say "
            f"{config.rank}; choose rank {rank_of(begin)}."
        )
    mean, std, crop = _training_latent(edit)
    edit.text()  # notes what did not fit
    draws = random_draws(
        mean, std, batch=config.batch_size, seed=seed, crop=crop,
        levels=len(edit.schedule.alphas),
    )  # fmt: skip

    def on_progress(done: int, total: int, loss: float | None) -> None:
        edit.on_step(StepInfo(stage="lora", step=done, total=total, loss=loss))

    edit.on_step(StepInfo(stage="lora", step=0, total=config.steps))
    made = train(
        run.unet, edit.schedule, run.prompt(request.prompt, edit.image.size), config, draws,
        start=begin or initial_state(run.unet, config.rank, seed), graphs=run.graphs,
        on_step=on_progress,
    )  # fmt: skip
    if not all(bool(torch.isfinite(t).all()) for t in made.state.values()):
        raise ModelError(edit.nan_text("training the LoRA", "a lower learning rate"))
    edit.report.lora_losses = made.losses
    return write(made.state, _card(edit, before.card.steps if before is not None else 0))


def _training_latent(edit: PreparedEdit) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean, standard deviation and crop (latent cells) for training at `resolution`."""
    resolution, factor = edit.request.lora.resolution, edit.runtime.factor
    if not resolution:
        return *edit.encoded(), 0
    width, height = edit.image.size
    scale = resolution / min(width, height)
    size = tuple(max(factor, round(side * scale / factor) * factor) for side in (width, height))
    scaled = decode.resize(edit.image.rgb, (size[0], size[1]), "bilinear")
    mean, std = edit.runtime.encode(edit.image.pixels(scaled))
    return mean, std, resolution // factor


def _card(edit: PreparedEdit, before: int) -> LoraCard:
    """Origin of the LoRA; it had been trained for `before` steps already."""
    request = edit.request
    return LoraCard(
        model=edit.runtime.fingerprint,
        model_name=edit.runtime.name,
        image=request.image.id,
        image_name=request.image.name,
        prompt=request.prompt,
        rank=request.lora.rank,
        steps=before + request.lora.steps,
        seed=request.seed,
        config=dataclasses.asdict(request.lora),
    )
