"""Samples by prompt: single ones for the evaluation, sheets while training goes on."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch
from torch import Generator, Tensor

from training import config
from training.config import HELD_OUT_SEED, TrainOptions
from training.photos import read_photos
from workbench.diffusion.registry.loading import quiet_libraries

log = logging.getLogger(__name__)

SHEET_PHOTOS, SHEET_SCENES = 20, 12  # prompts of a sheet
SHEET_STEPS = 25


def draw_samples(
    pipeline: Any,
    prompts: list[str],
    *,
    steps: int = 40,
    guidance: float = 5.0,
    seed: int = 0,
    batch: int = 24,
) -> Tensor:
    """One sample per prompt, [N,3,256,256] in [0,1]; the noise is drawn on the CPU.

    Args:
        pipeline: what `load_pipeline` gave.
        prompts: captions.
        steps: DDIM steps.
        guidance: classifier-free guidance scale.
        seed: of the first latent noise.
        batch: pictures at a time.
    """
    generator = Generator("cpu").manual_seed(seed)
    parts = []
    for start in range(0, len(prompts), batch):
        began = time.monotonic()
        made = pipeline(
            prompts[start : start + batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="pt",
        ).images
        parts.append(made.float())
        log.info(
            "samples: %d of %d (%.1f s)",
            start + len(made), len(prompts), time.monotonic() - began,
        )  # fmt: skip
    return torch.cat(parts)


def contact_sheet(pictures: Tensor, columns: int = 8, gap: int = 4) -> Any:
    """Pictures [N,3,H,W] in [0,1] as one Pillow image, row by row, white between them."""
    from PIL import Image

    count, _, height, width = pictures.shape
    rows = math.ceil(count / columns)
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255)
    )
    pixels = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for index, picture in enumerate(pixels):
        row, column = divmod(index, columns)
        sheet.paste(
            Image.fromarray(picture), (gap + column * (width + gap), gap + row * (height + gap))
        )
    return sheet


class Sheet:
    """Draws the same prompts with the same noise again and again into `work/sheets`."""

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, options: TrainOptions
    ) -> None:
        """Choose the prompts: the photographs' by weight, one a caption, and held-out scenes'."""
        with quiet_libraries():
            from diffusers import StableDiffusionPipeline

            self._pipeline = StableDiffusionPipeline(
                vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
                scheduler=config.build_scheduler(), safety_checker=None, feature_extractor=None,
                requires_safety_checker=False,
            )  # fmt: skip
        self._pipeline.set_progress_bar_config(disable=True)
        self._folder = options.work / "sheets"
        self.prompts = sheet_prompts(options)

    def draw(self, name: str) -> None:
        """Write `name`.png; the prompts are in prompts.txt beside it, row by row."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "prompts.txt").write_text("\n".join(self.prompts) + "\n")
        modules = (self._pipeline.unet, self._pipeline.text_encoder)
        for module in modules:
            module.eval()
        with torch.no_grad():
            drawn = draw_samples(
                self._pipeline, self.prompts, steps=SHEET_STEPS, batch=len(self.prompts)
            )
        for module in modules:
            module.train()
        contact_sheet(drawn).save(self._folder / f"{name}.png")


def sheet_prompts(options: TrainOptions) -> list[str]:
    """Up to 20 captions of photographs, evenly from heavy to light ones, and 12 of scenes."""
    from training import scenes

    prompts: list[str] = []
    if options.photos is not None:
        weights: dict[str, float] = {}
        for photo in read_photos(options.photos)[0]:
            weights[photo.captions[0]] = weights.get(photo.captions[0], 0.0) + photo.weight
        order = sorted(weights, key=lambda text: -weights[text])
        step = max(1, len(order) // (2 * SHEET_PHOTOS))
        prompts = order[::step][:SHEET_PHOTOS]
    batch = scenes.sample_batch(SHEET_SCENES, HELD_OUT_SEED + 50_000)
    return prompts + [scene.caption for scene in batch]
