"""The figures of the model card: what the shipped files can do, measured on held-out scenes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.bank import held_out_bank, held_out_photo_bank
from training.card import hardware, read_card, write_card
from training.classifier import adherence, train_classifier
from training.config import HELD_OUT_SEED
from training.device import pick_device
from training.photos import decode, read_photos
from training.pictures import held_out_scenes
from training.samples import contact_sheet, draw_samples
from training.unet_train import denoising_losses
from training.vae_train import Judged, psnr, reconstruct
from workbench.core.errors import BadInput
from workbench.diffusion.registry.loading import quiet_libraries

log = logging.getLogger(__name__)

PROMPT_SEED = HELD_OUT_SEED + 50_000  # captions to be drawn: other held-out scenes than the PSNR's


def load_pipeline(folder: Path, device: torch.device) -> Any:
    """The diffusers pipeline of a folder, float32, quiet.

    Raises:
        BadInput: there is no pipeline in the folder.
    """
    if not (folder / "model_index.json").exists():
        raise BadInput(
            f"There is no model in {folder}; run `python -m training train` first.", code="no-file"
        )
    with quiet_libraries():
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Attributes:
        device: auto, cpu or cuda.
        scenes: held-out scenes for PSNR and denoising loss, 1 or more.
        samples: pictures drawn from captions for the prompt adherence, 1 or more.
        steps: DDIM steps of a sample.
        guidance: classifier-free guidance scale of a sample.
        classifier_seconds: training time of the judging classifier; None: 60 on a GPU, else 300.
        seed: of the samples' noise and of the classifier.
        sheet: where to write a PNG of the first 48 samples and one of reconstructions.
        photos: a folder of pictures whose held-out ones are measured, too.
    """

    device: str = "auto"
    scenes: int = 200
    samples: int = 120
    steps: int = 40
    guidance: float = 5.0
    classifier_seconds: float | None = None
    seed: int = 0
    sheet: Path | None = None
    photos: Path | None = None


def evaluate(folder: Path, options: EvaluateOptions) -> dict[str, Any]:
    """Measure the model in a diffusers folder and write the figures into its card.

    Returns:
        The card's `evaluation` part.

    Raises:
        BadInput: there is no model in the folder, or a count is below 1.
    """
    from training import scenes

    count, samples, seed = options.scenes, options.samples, options.seed
    if count < 1 or samples < 1:
        raise BadInput(
            f"Cannot evaluate {count} scenes and {samples} samples; give 1 or more.",
            code="out-of-range",
        )
    where = pick_device(options.device)
    cuda = where.type == "cuda"
    pipeline = load_pipeline(folder, where)
    vae = pipeline.vae.eval()

    batch, true = held_out_scenes(count, where)
    made = reconstruct(vae, true)
    decibels = psnr(made, true).cpu()
    per_kind = {
        kind: round(float(decibels[torch.tensor([s.kind == kind for s in batch])].mean()), 2)
        for kind in scenes.KINDS
        if any(s.kind == kind for s in batch)
    }
    log.info("autoencoder: %.2f dB; %s", float(decibels.mean()), per_kind)

    bank = held_out_bank(count, vae, pipeline.tokenizer, where)
    losses = denoising_losses(pipeline.unet, pipeline.text_encoder, bank)
    log.info("denoising loss by timestep: %s", losses)

    seconds = options.classifier_seconds or (60 if cuda else 300)
    judge, judge_facts = train_classifier(vae, where, seconds, seed, count)
    asked = scenes.sample_batch(samples, PROMPT_SEED)
    drawn = draw_samples(
        pipeline, [s.caption for s in asked], steps=options.steps, guidance=options.guidance, seed=seed,
        batch=60 if cuda else 12,
    )  # fmt: skip
    share = adherence(judge, drawn, asked)
    log.info("prompt adherence: %s", share)
    if (sheet := options.sheet) is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(drawn[:48]).save(sheet)
        pairs = torch.stack([true[:24], made[:24]], 1).flatten(0, 1)
        contact_sheet(pairs).save(sheet.with_name(sheet.stem + "-reconstructed.png"))

    of_photos: dict[str, Any] = {}
    if (photos := options.photos) is not None:
        held_out = read_photos(photos)[1]
        if not held_out:
            raise BadInput(
                f"No picture of {photos} is held out; mark some with 'held_out'.", code="empty"
            )
        measured = Judged({"photos": (decode(held_out).float() / 255).to(where)}).measure(vae)
        losses_of = held_out_photo_bank(held_out, vae, pipeline.tokenizer, where)
        of_photos = {
            "pictures": len(held_out),
            **measured["photos"],
            "denoising_loss": denoising_losses(pipeline.unet, pipeline.text_encoder, losses_of),
        }
        log.info("photographs: %s", of_photos)

    figures = {
        "photos": of_photos,
        "scenes_version": scenes.SCENES_VERSION,
        "hardware": hardware(str(where)),
        "psnr_db": {
            "mean": round(float(decibels.mean()), 2),
            "worst": round(float(decibels.min()), 2),
            "scenes": count,
            "per_kind": per_kind,
        },
        "denoising_loss": {"scenes": count, "by_timestep": losses},
        "prompt_adherence": {
            **share, "samples": samples, "ddim_steps": options.steps,
            "guidance": options.guidance, "seed": seed, "classifier": judge_facts,
        },
    }  # fmt: skip
    write_card(folder, {**read_card(folder), "evaluation": figures})
    return figures
