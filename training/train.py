"""The model from nothing to a diffusers folder: autoencoder, latent bank, U-Net, export.

    train(TrainOptions(vae_minutes=6, bank_minutes=2, unet_minutes=8))

Each stage leaves its state in `options.work`, so that stages can be run in separate commands and
go on where they were stopped. What ships is written to `options.out` by the stage `export` alone.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from training import config
from training.bank import (
    Bank,
    ensure_tokenizer,
    make_bank,
    vae_folder,
)
from training.card import hardware, read_card, write_card
from training.config import TrainOptions
from training.device import pick_device
from training.loop import averaged_weights, read_tensors
from training.photos import origins, read_photos
from training.team import Team, joined
from training.tokenizer import save_tokenizer
from training.unet_train import CHECKPOINT, train_unet
from training.vae_train import export_vae, train_vae
from workbench.core.errors import BadInput

log = logging.getLogger(__name__)


def train(options: TrainOptions) -> dict[str, Any]:
    """Run the stages in their order; returns what each did, as it goes into the model card.

    Raises:
        BadInput: the U-Net is to be trained or exported, and no autoencoder is there.
        ModelError: a checkpoint is of another model, or the loss is not finite from the start.
    """
    with joined(pick_device(options.device)) as (team, device):
        return _train(options, device, team)


def _train(options: TrainOptions, device: torch.device, team: Team) -> dict[str, Any]:
    torch.backends.cudnn.benchmark = True
    options.work.mkdir(parents=True, exist_ok=True)
    log.info("training %s on %s", ", ".join(options.stages), hardware(str(device)))
    report: dict[str, Any] = {}
    bank: Bank | None = None
    start = time.monotonic()
    if "vae" in options.stages:
        report["vae"] = {
            **train_vae(options, device, team),
            "seed": options.seed,
            "hardware": hardware(str(device)),
        }
        if team.leads:
            export_vae(options, device, report["vae"])
        team.wait()
        _release(device)
    try:
        if "bank" in options.stages:
            bank = make_bank(options, device, team)
        if "unet" in options.stages:
            report["unet"] = {
                **train_unet(options, device, bank, team),
                "seed": options.seed,
                "hardware": hardware(str(device)),
            }
            if team.leads:
                (options.work / "unet.json").write_text(json.dumps(report["unet"], indent=1))
        if "export" in options.stages and team.leads:
            export(options)
    except FileNotFoundError as error:
        raise BadInput(f"{error}.", code="missing-stage") from error
    log.info("training took %.1f minutes in all", (time.monotonic() - start) / 60)
    return report


def _release(device: torch.device) -> None:
    """Give the stage's memory back before the next one allocates in other sizes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def export(options: TrainOptions) -> Path:
    """Write the pipeline's folder from `work`: averaged weights in float16, tokenizer, card.

    Everything is written beside `out` first and moved in at the end, so that an interrupted export
    leaves the old model whole. Returns `out`.

    Raises:
        FileNotFoundError: a stage has not been run yet.
        BadInput: the weights are larger than the repository's limit.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    checkpoint = options.work / CHECKPOINT
    if not checkpoint.exists():
        raise FileNotFoundError("no trained U-Net; run the stage 'unet' first")
    tokenizer = ensure_tokenizer(_resumed(options))
    unet = config.build_unet()
    unet.load_state_dict(averaged_weights(checkpoint, "unet"))
    text_encoder = config.build_text_encoder(
        len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id
    )
    text_encoder.load_state_dict(averaged_weights(checkpoint, "text_encoder"))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae_folder(options)),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=config.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    fresh = options.out.with_name(options.out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    save_tokenizer(tokenizer, fresh / "tokenizer")
    _forget_origin(fresh)
    size = sum(path.stat().st_size for path in fresh.rglob("*.safetensors"))
    if size > config.WEIGHT_LIMIT:
        raise BadInput(
            f"The weights take {size / 1e6:.1f} MB, more than the {config.WEIGHT_LIMIT / 1e6:.0f} "
            "MB that the repository allows; make the model smaller.",
            code="too-large",
        )
    for path in fresh.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes for its owner only
    write_card(fresh, _card(options))
    options.out.mkdir(parents=True, exist_ok=True)
    for item in fresh.iterdir():
        target = options.out / item.name
        if target.is_dir():
            shutil.rmtree(target)
        item.replace(target)
    fresh.rmdir()
    log.info("wrote %.1f MB of weights to %s", size / 1e6, options.out.name)
    return options.out


def _forget_origin(folder: Path) -> None:
    """Drop the folder that a part was loaded from, which diffusers notes in its configuration."""
    for path in folder.rglob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _resumed(options: TrainOptions) -> TrainOptions:
    """The same options, reading the tokenizer that the training used."""
    from dataclasses import replace

    return replace(options, resume=True, source=None)


def _card(options: TrainOptions) -> dict[str, Any]:
    """The card's part that training knows: configuration and what each stage did.

    A run that started from shipped weights adds to what their card counted.
    """
    from training import scenes

    before = read_card(options.source) if options.source is not None else {}
    training: dict[str, Any] = {}
    vae_report = vae_folder(options) / "training.json"
    if vae_report.exists():
        training["vae"] = json.loads(vae_report.read_text())
    elif "vae" in before.get("training", {}):
        training["vae"] = before["training"]["vae"]
    unet_report = options.work / "unet.json"
    if unet_report.exists():
        training["unet"] = json.loads(unet_report.read_text())
    else:  # the run was cut off after a checkpoint: its counters are in the header
        _, training["unet"] = read_tensors(options.work / CHECKPOINT)
    if before:
        training["started_from"] = before.get("training", {})
    photos: dict[str, Any] = {}
    if options.photos is not None:
        trained_on, held_out = read_photos(options.photos)
        photos = {
            "trained_on": len(trained_on),
            "held_out": len(held_out),
            "sources": origins(trained_on),
        }
    return {
        "name": config.NAME,
        "photos": photos,
        "scenes_version": scenes.SCENES_VERSION,
        "kinds": list(scenes.KINDS),
        "config": {
            "vae": config.VAE,
            "unet": config.UNET,
            "text_encoder": config.TEXT,
            "scheduler": config.SCHEDULER,
        },
        "training": training,
    }
