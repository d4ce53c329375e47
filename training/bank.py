"""The latent bank: pictures encoded and captioned once, so that the U-Net never sees pixels.

Per picture: the posterior's mean and standard deviation (float16, [12,32,32] each, 49 KB together)
and the caption's token ids. A training step samples the posterior afresh. Each process keeps a bank
of its own: every photograph in a few variants, and scenes that no other process has.
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
import torch.nn.functional as F
from torch import Generator, Tensor

from training.config import HELD_OUT_SEED, SIZE, TrainOptions
from training.device import synchronize
from training.loop import read_tensors
from training.photos import CAPTIONS, Photo, decode, read_photos
from training.pictures import render_seed
from training.team import Team
from training.tokenizer import build_tokenizer, encode, load_tokenizer, save_tokenizer
from training.vae_train import load_vae

log = logging.getLogger(__name__)

CAPTION_SCENES = 6_000  # scenes whose captions give the vocabulary, beside all photographs'
BANK_CHUNKS = 500_000  # the bank's chunk numbers begin here, the autoencoder's pool's at 0
CLOSEST = 0.85  # smallest side of a photograph's variant, of the whole picture's


@dataclass(frozen=True, slots=True)
class Bank:
    """Latents on the device. mean, std: float16 [N,12,32,32], unscaled; ids: int16 [N,77]."""

    mean: Tensor
    std: Tensor
    ids: Tensor
    scale: float  # the autoencoder's scaling factor
    weights: Tensor | None = None  # [P], of the photographs; they come first, `variants` rows each
    variants: int = 1
    photo_share: float = 0.0

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Scaled latents, sampled from the posterior, [count,12,32,32], and token ids [count,77]."""
        device = self.mean.device
        first, parts = 0, []
        if self.weights is not None:
            first = len(self.weights) * self.variants
            from_photos = count if first == len(self.mean) else round(self.photo_share * count)
            if from_photos:
                photo = torch.multinomial(self.weights, from_photos, True, generator=generator)
                variant = torch.randint(
                    self.variants, (from_photos,), generator=generator, device=device
                )
                parts.append(photo * self.variants + variant)
        left = count - sum(map(len, parts))
        if left:
            parts.append(
                torch.randint(first, len(self.mean), (left,), generator=generator, device=device)
            )
        index = torch.cat(parts)
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
        captions = [scene.caption for scene in batch]
        if options.photos is not None:
            training, held_out = read_photos(options.photos)
            captions += [text for photo in training + held_out for text in photo.captions]
        tokenizer = build_tokenizer(captions)
        log.info("tokenizer: %d tokens, e.g. for %r", len(tokenizer), batch[0].caption)
    save_tokenizer(tokenizer, folder)
    return tokenizer


def vae_folder(options: TrainOptions) -> Path:
    """Folder of the finished autoencoder: `work/vae`, else the one of `source`.

    Raises:
        FileNotFoundError: there is neither.
    """
    for folder in (options.work / "vae", (options.source or options.out) / "vae"):
        if (folder / "config.json").exists():
            return folder
    raise FileNotFoundError("no finished autoencoder; run the stage 'vae' first")


def _marks(options: TrainOptions, tokenizer: Any) -> dict[str, Any]:
    """Fingerprint that a stored bank must match to be used again."""
    from training import scenes

    weights = vae_folder(options) / "diffusion_pytorch_model.safetensors"
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    listing = (options.photos / CAPTIONS).read_bytes() if options.photos is not None else b""
    return {
        "photos": hashlib.sha256(listing).hexdigest(),
        "variants": options.bank_variants,
        "vae": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "scenes_version": scenes.SCENES_VERSION,
    }


@torch.no_grad()
def encode_pictures(vae: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std, float16 [B,12,32,32], of pictures [B,3,256,256] in [0,1]."""
    means, stds = [], []
    for part in torch.split(pictures * 2 - 1, 64):
        mean, logvar = vae.quant_conv(vae.encoder(part)).chunk(2, 1)
        means.append(mean.half().contiguous())
        stds.append((0.5 * logvar.clamp(-30, 20)).exp().half().contiguous())
    return torch.cat(means), torch.cat(stds)


def encode_scenes(
    vae: Any, tokenizer: Any, batch: list[Any], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw scenes and encode them: mean and std, float16 [B,12,32,32], and ids int16 [B,77]."""
    from training import scenes

    pictures = scenes.render(batch, size=SIZE, device=device)
    ids = encode(tokenizer, [scene.caption for scene in batch]).to(device, torch.int16)
    return (*encode_pictures(vae, pictures), ids)


def variant(pictures: Tensor, number: int, generator: Generator) -> Tensor:
    """The `number`-th variant of pictures [B,3,256,256]: odd ones mirrored, from 2 on cut closer."""
    if number % 2:
        pictures = pictures.flip(-1)
    if number < 2:
        return pictures
    count, device = len(pictures), pictures.device
    zoom = CLOSEST + (1 - CLOSEST) * torch.rand(count, generator=generator, device=device)
    shift = (2 * torch.rand((count, 2), generator=generator, device=device) - 1) * (
        1 - zoom[:, None]
    )
    matrix = torch.zeros(count, 2, 3, device=device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = zoom
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    cut = F.grid_sample(pictures, grid, "bicubic", "reflection", align_corners=False)
    return cut.clamp(0, 1)


def encode_photos(
    vae: Any, tokenizer: Any, photos: list[Photo], variants: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode `variants` of each photograph, side by side; captions are used in turn."""
    device = generator.device
    pictures = decode(photos)
    means, stds = [], []
    for part in torch.split(pictures, 64):
        whole = part.to(device).float() / 255
        made = [encode_pictures(vae, variant(whole, n, generator)) for n in range(variants)]
        means.append(torch.stack([mean for mean, _ in made], 1).flatten(0, 1))
        stds.append(torch.stack([std for _, std in made], 1).flatten(0, 1))
    texts = [p.captions[n % len(p.captions)] for p in photos for n in range(variants)]
    known = sorted(set(texts))
    ids = encode(tokenizer, known).to(device, torch.int16)
    place = {text: index for index, text in enumerate(known)}
    index = torch.tensor([place[text] for text in texts], device=device)
    return torch.cat(means), torch.cat(stds), ids[index]


def make_bank(options: TrainOptions, device: torch.device, team: Team | None = None) -> Bank:
    """Encode all photographs, and scenes until `bank_minutes` or `bank_scenes` are used up.

    Or read the bank from `work`. Encoded in float32: the latents are the training's ground truth,
    and on a GPU the convolutions run on tensor cores (TF32) all the same.
    """
    team = team or Team()
    start = time.monotonic()
    tokenizer = ensure_tokenizer(options)
    vae = load_vae(vae_folder(options), device)
    scale = float(vae.config.scaling_factor)
    photos = read_photos(options.photos)[0] if options.photos is not None else []
    weights = torch.tensor([photo.weight for photo in photos], device=device) if photos else None

    def bank(mean: Tensor, std: Tensor, ids: Tensor) -> Bank:
        return Bank(mean, std, ids, scale, weights, options.bank_variants, options.photo_share)

    marks = _marks(options, tokenizer)
    stored = options.work / f"bank-{team.rank}.safetensors"
    if stored.exists():
        tensors, facts = read_tensors(stored)
        if facts == marks:
            log.info("bank: %d pictures read from the work folder", len(tensors["ids"]))
            return bank(*(tensors[name].to(device) for name in ("mean", "std", "ids")))
        log.info("bank: the stored one is of other pictures, autoencoder or tokenizer; making it")
    cuda = device.type == "cuda"
    chunk = min(512 if cuda else 32, options.bank_scenes)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    if photos:
        generator = Generator(device).manual_seed(options.seed + team.rank)
        parts.append(encode_photos(vae, tokenizer, photos, options.bank_variants, generator))
        log.info("bank: %d photographs in %.0f s", len(photos), time.monotonic() - start)
    made, shown = 0, start
    with ThreadPoolExecutor(1) as sampler:

        def sample(number: int) -> Any:
            from training import scenes

            seed = render_seed(options.seed, BANK_CHUNKS + number * team.size + team.rank)
            return sampler.submit(scenes.sample_batch, chunk, seed)

        pending = sample(0)
        while made < options.bank_scenes:
            batch = pending.result()
            pending = sample(made // chunk + 1)
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
    log.info("bank: %d pictures in %.0f s", len(mean), time.monotonic() - start)
    return bank(mean, std, ids)


def held_out_photo_bank(
    photos: list[Photo], vae: Any, tokenizer: Any, device: torch.device
) -> Bank:
    """The held-out photographs as a bank, one variant each."""
    parts = encode_photos(vae, tokenizer, photos, 1, Generator(device).manual_seed(0))
    return Bank(*parts, float(vae.config.scaling_factor))


def held_out_bank(count: int, vae: Any, tokenizer: Any, device: torch.device) -> Bank:
    """`count` held-out scenes as a bank; their pictures are those of `held_out_scenes`."""
    from training import scenes

    batch = scenes.sample_batch(count, HELD_OUT_SEED)
    parts = [encode_scenes(vae, tokenizer, batch[i : i + 32], device) for i in range(0, count, 32)]
    mean, std, ids = (torch.cat(column) for column in zip(*parts, strict=True))
    return Bank(mean, std, ids, float(vae.config.scaling_factor))
