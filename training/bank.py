"""The latent bank: scenes drawn, encoded and captioned once, so that the U-Net never sees pixels.

Per scene: the posterior's mean and standard deviation (float16, [4,32,32] each, 16 KB together) and
the caption's token ids. A training step samples the posterior anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from training.config import HELD_OUT_SEED, SIZE, TrainOptions
from training.device import synchronize
from training.loop import read_tensors
from training.tokenizer import (
    build_tokenizer,
    encode,
    load_tokenizer,
    save_tokenizer,
)
from training.vae_train import load_vae, render_seed

log = logging.getLogger(__name__)

CAPTION_SCENES = 6_000  # scenes whose captions give the vocabulary
BANK_CHUNKS = 500_000  # the bank's chunk numbers begin here, the autoencoder's pool's at 0


@dataclass(frozen=True, slots=True)
class Bank:
    """Latents on the device. mean, std: float16 [N,4,32,32], unscaled; ids: int16 [N,77]."""

    mean: Tensor
    std: Tensor
    ids: Tensor
    scale: float  # the autoencoder's scaling factor

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Scaled latents, sampled from the posterior, [count,4,32,32], and token ids [count,77]."""
        device = self.mean.device
        index = torch.randint(len(self.mean), (count,), generator=generator, device=device)
        mean = self.mean[index].float()
        noise = torch.randn(mean.shape, generator=generator, device=device)
        latents = (mean + self.std[index].float() * noise) * self.scale
        return latents, self.ids[index].long()


def ensure_tokenizer(options: TrainOptions) -> Any:
    """The tokenizer in `work`: of an earlier run, else of `source`, else learnt from captions."""
    from training import scenes

    folder = options.work / "tokenizer"
    if options.source is not None and (options.source / "tokenizer").is_dir():
        tokenizer = load_tokenizer(options.source / "tokenizer")
    elif options.resume and folder.is_dir():
        return load_tokenizer(folder)
    else:
        batch = scenes.sample_batch(CAPTION_SCENES, render_seed(options.seed, BANK_CHUNKS - 1))
        tokenizer = build_tokenizer(scene.caption for scene in batch)
        log.info("tokenizer: %d tokens, e.g. for %r", len(tokenizer), batch[0].caption)
    save_tokenizer(tokenizer, folder)
    return tokenizer


def vae_folder(options: TrainOptions) -> Path:
    """Where the finished autoencoder is: `work/vae`, else the one of `source`.

    Raises:
        FileNotFoundError: there is neither.
    """
    for folder in (options.work / "vae", (options.source or options.out) / "vae"):
        if (folder / "config.json").exists():
            return folder
    raise FileNotFoundError("no finished autoencoder; run the stage 'vae' first")


def _marks(options: TrainOptions, tokenizer: Any) -> dict[str, Any]:
    """What a stored bank must agree with to be used again."""
    from training import scenes

    weights = vae_folder(options) / "diffusion_pytorch_model.safetensors"
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return {
        "vae": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "scenes_version": scenes.SCENES_VERSION,
    }


@torch.no_grad()
def encode_scenes(
    vae: Any, tokenizer: Any, batch: list[Any], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw scenes and encode them: mean and std, float16 [B,4,32,32], and ids int16 [B,77]."""
    from training import scenes

    pixels = scenes.render(batch, size=SIZE, device=device) * 2 - 1
    means, stds = [], []
    for part in torch.split(pixels, 64):
        mean, logvar = vae.quant_conv(vae.encoder(part)).chunk(2, 1)
        means.append(mean.half().contiguous())
        stds.append((0.5 * logvar.clamp(-30, 20)).exp().half().contiguous())
    ids = encode(tokenizer, [scene.caption for scene in batch]).to(device, torch.int16)
    return torch.cat(means), torch.cat(stds), ids


def make_bank(options: TrainOptions, device: torch.device) -> Bank:
    """Fill the bank until `bank_minutes` or `bank_scenes` are used up; or read it from `work`.

    Encoded in float32: the latents are the training's ground truth, and on a GPU the convolutions
    run on tensor cores (TF32) all the same.
    """
    start = time.monotonic()
    tokenizer = ensure_tokenizer(options)
    vae = load_vae(vae_folder(options), device)
    marks = _marks(options, tokenizer)
    stored = options.work / "bank.safetensors"
    scale = float(vae.config.scaling_factor)
    if stored.exists():
        tensors, facts = read_tensors(stored)
        if facts == marks:
            log.info("bank: %d scenes read from the work folder", len(tensors["ids"]))
            mean, std, ids = (tensors[name].to(device) for name in ("mean", "std", "ids"))
            return Bank(mean, std, ids, scale)
        log.info("bank: the stored one is of another autoencoder or tokenizer; making it anew")
    cuda = device.type == "cuda"
    chunk = min(1024 if cuda else 32, options.bank_scenes)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    made, shown = 0, start
    with ThreadPoolExecutor(1) as sampler:

        def sample(number: int) -> Any:
            from training import scenes

            seed = render_seed(options.seed, BANK_CHUNKS + number)
            return sampler.submit(scenes.sample_batch, chunk, seed)

        pending = sample(0)
        while made < options.bank_scenes:
            batch = pending.result()
            pending = sample(len(parts) + 1)
            parts.append(encode_scenes(vae, tokenizer, batch, device))
            made += chunk
            synchronize(device)
            now = time.monotonic()
            if now - shown > 10 or now - start > options.bank_minutes * 60:
                shown = now
                log.info("bank: %d scenes, %.0f/s", made, made / (now - start))
            if now - start > options.bank_minutes * 60:
                break
        pending.cancel()
    mean, std, ids = (torch.cat(column) for column in zip(*parts, strict=True))
    if options.keep_bank:
        from safetensors.torch import save_file

        tensors = {"mean": mean.cpu(), "std": std.cpu(), "ids": ids.cpu()}
        save_file(tensors, stored, metadata={"facts": json.dumps(marks)})
    log.info("bank: %d scenes in %.0f s", len(mean), time.monotonic() - start)
    return Bank(mean, std, ids, scale)


def held_out_bank(count: int, vae: Any, tokenizer: Any, device: torch.device) -> Bank:
    """`count` held-out scenes as a bank; their pictures are those of `vae_train.held_out`."""
    from training import scenes

    batch = scenes.sample_batch(count, HELD_OUT_SEED)
    parts = [encode_scenes(vae, tokenizer, batch[i : i + 32], device) for i in range(0, count, 32)]
    mean, std, ids = (torch.cat(column) for column in zip(*parts, strict=True))
    return Bank(mean, std, ids, float(vae.config.scaling_factor))
